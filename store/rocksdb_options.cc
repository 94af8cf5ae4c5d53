#include "store/rocksdb_options.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "rocksdb/cache.h"
#include "rocksdb/convenience.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/options.h"
#include "rocksdb/slice_transform.h"
#include "rocksdb/table.h"
#include "store/record_codec.h"

namespace tim4rec {
namespace {

// The prefix of a key that names the user, so that filters answer "nothing of this user here".
class UserPrefixTransform final : public rocksdb::SliceTransform {
 public:
  // Stored in the table files: a new rule needs a new name.
  const char* Name() const override { return "tim4rec.UserPrefix"; }
  rocksdb::Slice Transform(const rocksdb::Slice& key) const override {
    return {key.data(), UserPrefixBytes({key.data(), key.size()})};
  }
  bool InDomain(const rocksdb::Slice& key) const override {
    return UserPrefixBytes({key.data(), key.size()}) != 0;
  }
};

// Values and operands are what AppendUse writes. Items' numbers are added up, and those that are
// nothing are left out.
class UseMergeOperator final : public rocksdb::MergeOperator {
 public:
  // Stored in the manifest: a new rule needs a new name.
  const char* Name() const override { return "tim4rec.UseSum"; }
  bool FullMergeV2(const MergeOperationInput& in, MergeOperationOutput* out) const override {
    Sums sums;
    if (in.existing_value != nullptr && !Add(*in.existing_value, &sums)) return false;
    return AddAll(in.operand_list, &sums, &out->new_value);
  }
  bool PartialMergeMulti(const rocksdb::Slice& /*key*/, const std::deque<rocksdb::Slice>& operands,
                         std::string* new_value, rocksdb::Logger* /*logger*/) const override {
    Sums sums;
    return AddAll(operands, &sums, new_value);
  }

 private:
  using Sums = absl::flat_hash_map<absl::string_view, uint64_t>;  // no overflow, whatever is read

  template <typename Operands>
  static bool AddAll(const Operands& operands, Sums* sums, std::string* merged) {
    for (const rocksdb::Slice& operand : operands) {
      if (!Add(operand, sums)) return false;
    }
    std::vector<std::pair<absl::string_view, uint64_t>> ordered(sums->begin(), sums->end());
    std::sort(ordered.begin(), ordered.end());
    std::string row;
    for (const auto& [item_id, events] : ordered) {
      if (events == 0) continue;
      AppendUse({item_id.data(), item_id.size()}, static_cast<int64_t>(events), row);
    }
    *merged = std::move(row);  // RocksDB's string may hold another row
    return true;
  }

  static bool Add(const rocksdb::Slice& value, Sums* sums) {
    UseReader use({value.data(), value.size()});
    while (use.Next()) {
      (*sums)[absl::string_view(use.item_id().data(), use.item_id().size())] +=
          static_cast<uint64_t>(use.events());
    }
    return use.ok();
  }
};

rocksdb::CompressionType EventCompression() {
  for (rocksdb::CompressionType type : rocksdb::GetSupportedCompressions()) {
    if (type == rocksdb::kLZ4Compression) return type;
  }
  return rocksdb::kNoCompression;
}

rocksdb::BlockBasedTableOptions TableOptions(std::shared_ptr<rocksdb::Cache> cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = std::move(cache);
  table.checksum = rocksdb::kXXH3;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  // Indexes and filters grow with the data: in the cache, memory stays bounded.
  table.cache_index_and_filter_blocks = true;
  table.cache_index_and_filter_blocks_with_high_priority = true;
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  table.format_version = 5;
  return table;
}

rocksdb::ColumnFamilyOptions FamilyOptions(const rocksdb::BlockBasedTableOptions& table,
                                           int64_t write_buffer_bytes) {
  rocksdb::ColumnFamilyOptions family;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  family.write_buffer_size = static_cast<size_t>(write_buffer_bytes);
  family.max_write_buffer_number = 3;
  family.level_compaction_dynamic_level_bytes = true;
  family.compression = rocksdb::kNoCompression;
  return family;
}

}  // namespace

std::shared_ptr<rocksdb::MergeOperator> NewUseMergeOperator() {
  return std::make_shared<UseMergeOperator>();
}

rocksdb::DBOptions DatabaseOptions(const RocksDbStoreOptions& options) {
  rocksdb::DBOptions db;
  if (options.env != nullptr) db.env = options.env;
  db.create_if_missing = options.create_if_missing;
  db.create_missing_column_families = options.create_if_missing;
  // A record cut off at the end of the log was never acknowledged as synced; any other damage is an
  // error. The default mode would open as of before the damage and lose what came behind it.
  db.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  // A closed log that was synced and is gone or shorter is an error, not an older database.
  db.track_and_verify_wals_in_manifest = true;
  db.max_open_files = 1024;
  db.max_total_wal_size = 4 * static_cast<uint64_t>(options.write_buffer_bytes);
  db.max_background_jobs = 2;
  db.bytes_per_sync = 1 << 20;
  // Written anew with every flush and compaction, which are seldom: an old manifest holds keys of
  // users who may since be deleted.
  db.max_manifest_file_size = 1;
  db.db_host_id = "";  // tables, and so backups, name no machine
  db.stats_dump_period_sec = 0;
  db.stats_persist_period_sec = 0;
  return db;
}

std::vector<rocksdb::ColumnFamilyDescriptor> ColumnFamilies(const RocksDbStoreOptions& options) {
  constexpr int64_t kSmallBufferBytes = 1 << 20;
  constexpr int64_t kUseBufferShare = 4;  // a count takes less than an event
  auto cache = rocksdb::NewLRUCache(static_cast<size_t>(options.block_cache_bytes));
  auto prefix = std::make_shared<UserPrefixTransform>();
  const rocksdb::BlockBasedTableOptions table = TableOptions(cache);

  rocksdb::ColumnFamilyOptions events = FamilyOptions(table, options.write_buffer_bytes);
  events.prefix_extractor = prefix;
  // Most appends ask for keys that are not there.
  events.memtable_prefix_bloom_size_ratio = 0.05;
  events.memtable_whole_key_filtering = true;
  // A user's events come in the order of their keys: the place of the last one leads to the next.
  events.memtable_insert_with_hint_prefix_extractor = prefix;
  events.compression = EventCompression();

  rocksdb::ColumnFamilyOptions states = FamilyOptions(table, options.write_buffer_bytes);
  states.prefix_extractor = prefix;
  states.memtable_prefix_bloom_size_ratio = 0.01;

  // Every event changes a count there.
  rocksdb::ColumnFamilyOptions use =
      FamilyOptions(table, options.write_buffer_bytes / kUseBufferShare);
  use.merge_operator = NewUseMergeOperator();
  // A change comes before those of its day that came earlier: next to the last one.
  use.memtable_insert_with_hint_prefix_extractor.reset(
      rocksdb::NewCappedPrefixTransform(UseKey(0).size()));
  use.compression = EventCompression();

  const rocksdb::ColumnFamilyOptions small = FamilyOptions(table, kSmallBufferBytes);
  return {{rocksdb::kDefaultColumnFamilyName, small},
          {"events", events},
          {"states", states},
          {"meta", small},
          {"use", use}};
}

}  // namespace tim4rec
