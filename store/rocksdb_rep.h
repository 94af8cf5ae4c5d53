// What the files of RocksDbStore share. Internal to store/.
#ifndef TIM4REC_STORE_ROCKSDB_REP_H_
#define TIM4REC_STORE_ROCKSDB_REP_H_

#include <atomic>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"
#include "store/item_use.h"
#include "store/record_codec.h"
#include "store/rocksdb_options.h"
#include "store/rocksdb_store.h"
#include "store/write_gate.h"

namespace tim4rec {

inline constexpr char kFormatKey[] = "format";  // in meta
inline constexpr char kProbeKey[] = "probe";
inline constexpr char kTruncatedKey[] = "truncated";        // there once a log was truncated
inline constexpr char kFirstUseDayKey[] = "first use day";  // in use; there once all is counted

inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view StdView(const rocksdb::Slice& slice) {
  return {slice.data(), slice.size()};
}

std::string Quoted(std::string_view id);
absl::Status StatusOf(const rocksdb::Status& status, std::string_view action);
absl::Status CheckId(std::string_view field, std::string_view id);
absl::Status CheckStateKey(std::string_view user_id, std::string_view fingerprint);

// By how much counts change, collected for one write. What is added lives until that.
class UseChanges {
 public:
  void Add(const Event& event, int64_t events) { Add(event.timestamp_ms, event.item_id, events); }
  void Add(int64_t timestamp_ms, std::string_view item_id, int64_t events);
  // In order of day and item, each at most once.
  std::span<const ItemUse> Summed();

 private:
  std::vector<ItemUse> changes_;
  bool summed_ = true;
};

struct RocksDbStore::Rep {
  using KeyValueVisitor = std::function<void(std::string_view key, std::string_view value)>;
  static constexpr int64_t kNoUseDay = std::numeric_limits<int64_t>::min();

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

  // Of the items' use (rocksdb_use.cc).
  bool counted = false;    // the store holds counts, and every write of events changes them
  absl::Status use_fault;  // why there are none, if anything is damaged
  std::atomic<int64_t> first_use_day = kNoUseDay;
  std::mutex raise_mutex;  // held while first_use_day is raised
  WriteGate use_gate;      // passed by all that changes counts
  mutable std::mutex observers_mutex;
  std::vector<std::weak_ptr<UseObserver>> observers;  // guarded by observers_mutex

  mutable std::atomic<uint64_t> corrupt_states = 0;
  mutable std::atomic<uint64_t> corrupt_bases = 0;
  std::atomic<uint64_t> recounts = 0;
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
  absl::Status CreateUseFamily();
  // Off: returns when none runs any more.
  rocksdb::Status SetAutoCompactions(bool on);
  // Until no file is left that the database has done with.
  rocksdb::Status WaitForDeletions();
  absl::Status FindPresent(const std::vector<std::string>& keys, std::vector<bool>& present) const;
  absl::StatusOr<std::optional<Truncation>> ReadTruncation(std::string_view user_id) const;
  // Writes the batch and what it changes of the counts, atomically, and tells the observers.
  rocksdb::Status WriteCounted(const rocksdb::WriteOptions& write, UseChanges& changes,
                               rocksdb::WriteBatch& batch);
  std::vector<std::shared_ptr<UseObserver>> Observers();
  std::unique_ptr<rocksdb::Iterator> UseIterator() const;
  // The iterator's counts of `from_day` and later.
  absl::Status VisitUse(std::unique_ptr<rocksdb::Iterator> iterator, int64_t from_day,
                        const UseVisitor& visitor) const;
  // Counts what all logs hold; damaged events are passed over. Returns the first day that counts.
  absl::StatusOr<int64_t> CountLogs(
      std::map<int64_t, absl::flat_hash_map<std::string, int64_t>>& counts) const;
  // Reads all counts: NOT_FOUND if not all logs were counted, DATA_LOSS if any is damaged.
  absl::Status CheckUse();
  // Counts what the logs hold, if the store has no sound counts and may be written.
  absl::Status OpenUse();
  absl::Status CountAnew();
  absl::Status EmptyUseFamily();
  // After its Begin.
  absl::Status TellAll(UseObserver& observer, std::unique_ptr<rocksdb::Iterator> iterator) const;
  std::unique_ptr<rocksdb::Iterator> UserIterator(ColumnFamily family, const std::string& prefix,
                                                  const rocksdb::Slice& end) const;
  // Counts what lies behind the prefix, not a key that is the prefix alone. `deleted` sees each
  // pair.
  absl::Status DeletePrefix(ColumnFamily family, const std::string& prefix,
                            rocksdb::WriteBatch& batch, uint64_t& count,
                            const KeyValueVisitor& deleted = nullptr) const;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ROCKSDB_REP_H_
