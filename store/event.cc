#include "store/event.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "store/bytes.h"
#include "store/record_codec.h"

namespace tim4rec {

Position PositionOf(const Event& event) {
  Position position;
  AppendPosition(event, position);
  return position;
}

absl::StatusOr<int64_t> TimestampOf(std::string_view position) {
  const std::optional<int64_t> timestamp_ms = DecodePosition(position);
  if (timestamp_ms) return *timestamp_ms;
  return absl::InvalidArgumentError(absl::StrCat(
      "not a position (", position.size(),
      " bytes): expected a timestamp of 8 bytes, a tag of 1 or 2, and an event id of 1 "
      "to ",
      kMaxIdBytes, " bytes or an item hash of 16"));
}

FoldPlace FoldPlaceOf(const Event& event) {
  return event.late.rank > 0 ? event.late : FoldPlace{PositionOf(event), 0};
}

int64_t FoldTimeMs(const Event& event) {
  if (event.late.rank == 0) return event.timestamp_ms;
  return DecodePosition(event.late.position).value_or(event.timestamp_ms);
}

void Lineage::Extend(std::string_view position, std::string_view item_id) {
  std::string bytes;
  bytes.reserve(2 * 8 + 2 * 4 + position.size() + item_id.size());
  AppendLittleEndian(hash[0], 8, bytes);
  AppendLittleEndian(hash[1], 8, bytes);
  AppendLittleEndian(position.size(), 4, bytes);
  bytes.append(position);
  AppendLittleEndian(item_id.size(), 4, bytes);
  bytes.append(item_id);
  const XXH128_hash_t next = XXH3_128bits(bytes.data(), bytes.size());
  hash = {next.low64, next.high64};
  if (position > watermark) watermark.assign(position);
  ++event_count;
}

}  // namespace tim4rec
