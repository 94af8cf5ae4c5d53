// EventLog and StateStore in one RocksDB database (bytes: FORMAT.md).
#ifndef TIM4REC_STORE_ROCKSDB_STORE_H_
#define TIM4REC_STORE_ROCKSDB_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/event_log.h"
#include "store/item_use.h"
#include "store/state_store.h"

namespace rocksdb {
class Env;
}

namespace tim4rec {

struct RocksDbStoreOptions {
  int64_t block_cache_bytes = 256 << 20;  // shared by all column families
  int64_t write_buffer_bytes = 64 << 20;  // per column family
  bool create_if_missing = true;
  bool read_only = false;
  rocksdb::Env* env = nullptr;  // null: the default; tests inject faults here. Not owned.
};

struct StoreStats {
  uint64_t corrupt_states = 0;   // checkpoints ignored because a check failed
  uint64_t corrupt_bases = 0;    // bases refused because a check failed
  uint64_t recounts = 0;         // damaged counts of the items' use replaced by those of the logs
  uint64_t append_failures = 0;  // Append calls that the disk refused
};

// Of RocksDB, for telemetry.
struct StoreSizes {
  uint64_t table_bytes = 0;               // files on disk
  uint64_t memtable_bytes = 0;            // in memory, not yet flushed
  uint64_t cache_bytes = 0;               // of the block cache, in use
  uint64_t pending_compaction_bytes = 0;  // still to be rewritten, estimated
  bool writes_slowed = false;             // delayed or stopped until compaction has caught up
};

struct StoredState {
  std::string_view user_id;      // empty if the key is malformed
  std::string_view fingerprint;  // of the model, 32 hex digits; empty if the key is malformed
  std::string_view key_hex;
  bool base = false;                    // no checkpoint, but a base
  const StateRecord* record = nullptr;  // null if a check failed
};

struct Backup {
  uint64_t files = 0;
  uint64_t bytes = 0;
};

struct DeletedUser {
  uint64_t events = 0;
  uint64_t states = 0;  // checkpoints and bases
};

// The first events of a user's log go. All of it was read or folded since the last write of that
// user.
struct UserTruncation {
  std::string_view user_id;
  Truncation truncation;              // from now on; covers those that went before
  std::span<const Position> removed;  // the events that go, in any order
  std::span<const UserState> bases;   // of this user; their lineage is the truncation's
};

class RocksDbStore final : public EventLog, public StateStore {
 public:
  // UNAVAILABLE when another process holds the directory, INVALID_ARGUMENT on a newer format
  // version.
  static absl::StatusOr<std::unique_ptr<RocksDbStore>> Open(
      const std::string& dir, const RocksDbStoreOptions& options = {});
  ~RocksDbStore() override;

  absl::StatusOr<std::vector<std::vector<AppendOutcome>>> Append(std::span<const UserEvents> batch,
                                                                 Durability durability) override;
  absl::Status Read(std::string_view user_id, const Visitor& visitor) const override;
  absl::StatusOr<std::optional<Truncation>> ReadTruncation(std::string_view user_id) const override;
  absl::Status ForEachUser(std::string_view after,
                           const std::function<bool(std::string_view)>& visitor) const override;
  uint64_t generation() const override;
  absl::StatusOr<std::optional<StateRecord>> Get(std::string_view user_id,
                                                 std::string_view fingerprint) const override;
  absl::StatusOr<std::optional<StateRecord>> GetBase(std::string_view user_id,
                                                     std::string_view fingerprint) const override;
  absl::Status Put(std::span<const UserState> states) override;
  absl::Status Flush() override;
  absl::Status DeleteStates(std::string_view fingerprint) override;

  // Durably and atomically: the truncations are set, their events removed, all checkpoints and
  // bases of these users replaced by the bases given. INVALID_ARGUMENT for what does not fit
  // together. Else errors as Append: a failed call may have done all of it once the store is opened
  // anew.
  absl::Status Truncate(std::span<const UserTruncation> users);

  // Whether any log was ever truncated.
  bool truncated() const;

  // Removes the user's events and the states of all models, durably and atomically.
  absl::StatusOr<DeletedUser> DeleteUser(std::string_view user_id);

  // After DeleteUser: rewrites what else holds the user's bytes, so that no file of the store does:
  // tables, logs, manifest. Takes a flush and the compaction of the tables in which the user lay.
  // Waits, up to a minute (then UNAVAILABLE), for readers who have such a file open and for
  // compactions that read one. Safe beside everything.
  absl::Status PurgeDeleted(std::string_view user_id);

  // Visits all checkpoints and bases in key order until the visitor returns false.
  absl::Status ForEachState(const std::function<bool(const StoredState&)>& visitor) const;

  // How often items were used: every event added is counted once, on its own time's day, and no
  // more once its user is deleted; what retention removes stays counted. FORMAT.md says which days.
  // False if it does not: a store of an older format that was opened read-only.
  bool keeps_use() const;
  // The first day that counts; the least number there is before the first event.
  int64_t first_use_day() const;
  // Visits the counts of `from_day` and later, in order of day and item. DATA_LOSS if one is
  // damaged. A store of an older format, opened read-only, counts what its logs hold, in memory.
  absl::Status ReadUse(int64_t from_day, const UseVisitor& visitor) const;
  // Tells `observer` the counts, and from then on, as long as it lives, every change, each once.
  // Also after the store was opened anew, from zero. Not while it is being told.
  absl::Status ObserveUse(const std::shared_ptr<UseObserver>& observer);

  // Makes `dir`, which must not exist (ALREADY_EXISTS) but whose parent must, a store of its own
  // that holds every event appended and every state put before the call, and perhaps some of those
  // meanwhile. Durable when it returns. Appends go on; on one file system tables are hard links.
  absl::StatusOr<Backup> CreateBackup(const std::string& dir);

  // OK if writes are possible: a small synced write and RocksDB's background error state. After a
  // failed write it brings the store back once the disk takes data again, if need be by opening the
  // database anew, which waits for other calls and lets them wait. States not flushed are lost
  // then.
  absl::Status CheckWritable();
  // Whether what CheckWritable returned is no fault: writes wait until compaction has caught up,
  // and go on by themselves.
  static bool IsWait(const absl::Status& status);
  StoreStats stats() const;
  // Zeros while the database is closed after an error. Takes RocksDB's lock: not for every call.
  StoreSizes sizes() const;

 private:
  struct Rep;
  explicit RocksDbStore(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ROCKSDB_STORE_H_
