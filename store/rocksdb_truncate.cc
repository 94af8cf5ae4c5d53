// RocksDbStore: what retention removes from the front of logs, and what it keeps of it.
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"
#include "store/record_codec.h"
#include "store/rocksdb_rep.h"

namespace tim4rec {
namespace {

absl::Status CheckTruncation(const UserTruncation& user) {
  if (absl::Status id = CheckId("user_id", user.user_id); !id.ok()) return id;
  const Lineage& lineage = user.truncation.lineage;
  if (!lineage.log_truncated || lineage.event_count == 0 || !DecodePosition(lineage.watermark)) {
    return absl::InvalidArgumentError("truncation: its lineage is none of removed events");
  }
  for (const UserState& base : user.bases) {
    if (absl::Status key = CheckStateKey(base.user_id, base.fingerprint); !key.ok()) return key;
    if (base.user_id != user.user_id || !(base.record->lineage == lineage)) {
      return absl::InvalidArgumentError("bases: one is of another user or another lineage");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::optional<Truncation>> RocksDbStore::Rep::ReadTruncation(
    std::string_view user_id) const {
  if (!truncated) return std::nullopt;
  const std::string key = UserPrefix(user_id);
  rocksdb::PinnableSlice value;
  const rocksdb::Status found = db->Get({}, families[kEventsFamily], key, &value);
  if (found.IsNotFound()) return std::nullopt;
  if (!found.ok()) {
    return StatusOf(found, absl::StrCat("read the truncation of user ", Quoted(user_id)));
  }
  Truncation truncation;
  if (DecodeTruncation(key, StdView(value), truncation)) return truncation;
  return absl::DataLossError(absl::StrCat("user ", Quoted(user_id),
                                          ": the record of what retention removed fails its "
                                          "checksum: restore a backup, or delete the user"));
}

absl::StatusOr<std::optional<Truncation>> RocksDbStore::ReadTruncation(
    std::string_view user_id) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  if (absl::Status id = CheckId("user_id", user_id); !id.ok()) return id;
  return rep_->ReadTruncation(user_id);
}

bool RocksDbStore::truncated() const { return rep_->truncated; }

absl::StatusOr<std::optional<StateRecord>> RocksDbStore::GetBase(
    std::string_view user_id, std::string_view fingerprint) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  if (absl::Status s = CheckStateKey(user_id, fingerprint); !s.ok()) return s;
  const std::string key = BaseKey(user_id, fingerprint);
  rocksdb::PinnableSlice value;
  const rocksdb::Status found = rep_->db->Get({}, rep_->families[kStatesFamily], key, &value);
  if (found.IsNotFound()) return std::nullopt;
  if (!found.ok() && !found.IsCorruption()) {
    return StatusOf(found, absl::StrCat("read the base of user ", Quoted(user_id)));
  }
  StateRecord record;
  if (found.ok() && DecodeState(key, StdView(value), record)) return record;
  rep_->corrupt_bases.fetch_add(1, std::memory_order_relaxed);
  return absl::DataLossError(
      absl::StrCat("user ", Quoted(user_id), ": the state that retention kept for model ",
                   View(fingerprint), " fails its checks: restore a backup, or delete the user"));
}

absl::Status RocksDbStore::Truncate(std::span<const UserTruncation> users) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  rocksdb::ColumnFamilyHandle* events = rep_->families[kEventsFamily];
  rocksdb::ColumnFamilyHandle* states = rep_->families[kStatesFamily];
  rocksdb::WriteBatch writes;
  std::string value;
  for (const UserTruncation& user : users) {
    if (absl::Status s = CheckTruncation(user); !s.ok()) return s;
    const std::string prefix = UserPrefix(user.user_id);
    value.clear();
    AppendTruncationValue(prefix, user.truncation, value);
    rocksdb::Status collected = writes.Put(events, prefix, value);
    for (const Position& position : user.removed) {
      if (collected.ok()) collected = writes.Delete(events, prefix + position);
    }
    if (!collected.ok()) return StatusOf(collected, "collect a truncation");
    uint64_t replaced = 0;
    absl::Status found = rep_->DeletePrefix(kStatesFamily, prefix, writes, replaced);
    if (!found.ok()) return found;
    for (const UserState& base : user.bases) {
      const std::string key = BaseKey(base.user_id, base.fingerprint);
      value.clear();
      AppendStateValue(key, *base.record, value);
      collected = writes.Put(states, key, value);
      if (!collected.ok()) return StatusOf(collected, "collect a base");
    }
  }
  if (writes.Count() == 0) return absl::OkStatus();
  const rocksdb::Status noted = writes.Put(rep_->families[kMetaFamily], kTruncatedKey, "");
  if (!noted.ok()) return StatusOf(noted, "collect that logs are truncated");
  rep_->truncated = true;
  // All families through the log: after a crash either all of it is there or nothing.
  rocksdb::WriteOptions write;
  write.sync = true;
  return StatusOf(rep_->db->Write(write, &writes), "truncate logs");
}

}  // namespace tim4rec
