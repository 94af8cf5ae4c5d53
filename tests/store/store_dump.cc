#include "tests/store/store_dump.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

std::string Hex(std::string_view bytes) {
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

std::string LineageText(const Lineage& lineage) {
  return absl::StrCat(" events=", lineage.event_count, " watermark=", Hex(lineage.watermark),
                      " hash=", absl::Hex(lineage.hash[1], absl::kZeroPad16),
                      absl::Hex(lineage.hash[0], absl::kZeroPad16),
                      " truncated=", lineage.log_truncated ? 1 : 0);
}

}  // namespace

absl::StatusOr<std::string> DumpStore(const RocksDbStore& store) {
  std::string text;
  absl::Status read;
  absl::Status listed = store.ForEachUser("", [&](std::string_view user_id) {
    const auto truncation = store.ReadTruncation(user_id);
    read = truncation.status();
    if (!read.ok()) return false;
    if (*truncation) {
      absl::StrAppend(&text, "truncation user=", Hex(user_id), LineageText((*truncation)->lineage),
                      " last_event_ms=", (*truncation)->last_event_ms, "\n");
    }
    read = store.Read(user_id, [&](std::string_view position, const Event& event) {
      absl::StrAppend(&text, "event user=", Hex(user_id), " position=", Hex(position),
                      " timestamp_ms=", event.timestamp_ms, " item=", Hex(event.item_id),
                      " event_id=", Hex(event.event_id), " behind=", Hex(event.late.position),
                      " rank=", event.late.rank, "\n");
      return true;
    });
    return read.ok();
  });
  if (!read.ok()) return read;
  if (!listed.ok()) return listed;
  bool sound = true;
  listed = store.ForEachState([&](const StoredState& state) {
    sound = state.record != nullptr;
    if (!sound) return false;
    absl::StrAppend(&text, state.base ? "base" : "state", " user=", Hex(state.user_id),
                    " model=", std::string(state.fingerprint), LineageText(state.record->lineage),
                    " payload=", Hex(state.record->payload), "\n");
    return true;
  });
  if (!listed.ok()) return listed;
  if (!sound) return absl::DataLossError("a checkpoint fails its checks");
  return text;
}

absl::StatusOr<std::string> DumpUse(const RocksDbStore& store) {
  std::string text = absl::StrCat("first_day=", store.first_use_day(), "\n");
  absl::Status read = store.ReadUse(store.first_use_day(), [&](const ItemUse& use) {
    absl::StrAppend(&text, "day=", use.day, " item=", Hex(use.item_id), " events=", use.events,
                    "\n");
    return true;
  });
  if (!read.ok()) return read;
  return text;
}

}  // namespace tim4rec
