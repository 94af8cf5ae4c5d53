// What the files of RocksDbStore share. Internal to store/.
#ifndef TIM4REC_STORE_ROCKSDB_REP_H_
#define TIM4REC_STORE_ROCKSDB_REP_H_

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"
#include "store/rocksdb_options.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

inline constexpr char kFormatKey[] = "format";  // in meta
inline constexpr char kProbeKey[] = "probe";

inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(const rocksdb::Slice& slice) {
  return {slice.data(), slice.size()};
}

std::string Quoted(std::string_view id);
absl::Status StatusOf(const rocksdb::Status& status, std::string_view action);
absl::Status CheckId(std::string_view field, std::string_view id);
absl::Status CheckStateKey(std::string_view user_id, std::string_view fingerprint);

struct RocksDbStore::Rep {
  // Shared by every call that uses the database, exclusive while it is opened anew. It is only ever
  // tried for exclusively, so that a visitor may call the store again.
  mutable std::shared_mutex mutex;
  std::unique_ptr<rocksdb::DB> db;  // null if opening anew has failed
  std::vector<rocksdb::ColumnFamilyHandle*> families;

  std::string dir;
  RocksDbStoreOptions options;
  bool read_only = false;
  std::mutex purge_mutex;  // one purge at a time
  // Whether the store may hold truncations, so that one without pays nothing for them. Set before
  // the first is written.
  std::atomic<bool> truncated = false;
  mutable std::atomic<uint64_t> corrupt_states = 0;
  mutable std::atomic<uint64_t> corrupt_bases = 0;
  std::atomic<uint64_t> append_failures = 0;
  std::atomic<uint64_t> generation = 0;

  ~Rep() { Close(); }
  void Close();

  // What a call holds; to be used if the status is OK.
  struct Use {
    std::shared_lock<std::shared_mutex> lock;
    absl::Status status;
  };
  Use Reading() const;
  Use Writing() const;

  absl::Status Open();
  absl::Status WriteProbe();
  absl::Status OpenAnew(const absl::Status& cause);
  rocksdb::Status OpenDatabase(const rocksdb::DBOptions& options,
                               const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors);
  rocksdb::Status OpenWithoutZeroTails(
      const rocksdb::DBOptions& options,
      const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors, rocksdb::Status refused);
  absl::Status CheckFormat();
  // Off: returns when none runs any more.
  rocksdb::Status SetAutoCompactions(bool on);
  // Until no file is left that the database has done with.
  rocksdb::Status WaitForDeletions();
  absl::Status FindPresent(const std::vector<std::string>& keys, std::vector<bool>& present) const;
  absl::StatusOr<std::optional<Truncation>> ReadTruncation(std::string_view user_id) const;
  std::unique_ptr<rocksdb::Iterator> UserIterator(ColumnFamily family, const std::string& prefix,
                                                  const rocksdb::Slice& end) const;
  // Counts what lies behind the prefix, not a key that is the prefix alone.
  absl::Status DeletePrefix(ColumnFamily family, const std::string& prefix,
                            rocksdb::WriteBatch& batch, uint64_t& count) const;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ROCKSDB_REP_H_
