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
  uint64_t append_failures = 0;  // Append calls that the disk refused
};

struct DeletedUser {
  uint64_t events = 0;
  uint64_t states = 0;
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
  absl::Status ForEachUser(const std::function<bool(std::string_view)>& visitor) const override;
  uint64_t generation() const override;
  absl::StatusOr<std::optional<StateRecord>> Get(std::string_view user_id,
                                                 std::string_view fingerprint) const override;
  absl::Status Put(std::span<const UserState> states) override;
  absl::Status Flush() override;
  absl::Status DeleteStates(std::string_view fingerprint) override;

  // Removes the user's events and the states of all models, durably and atomically.
  absl::StatusOr<DeletedUser> DeleteUser(std::string_view user_id);

  // OK if writes are possible: a small synced write and RocksDB's background error state. After a
  // failed write it brings the store back once the disk takes data again, if need be by opening the
  // database anew, which waits for other calls and lets them wait. States not flushed are lost
  // then.
  absl::Status CheckWritable();
  StoreStats stats() const;

 private:
  struct Rep;
  explicit RocksDbStore(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ROCKSDB_STORE_H_
