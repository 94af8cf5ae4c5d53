// RocksDbStore::PurgeDeleted: no file holds a byte of a deleted user any more.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/transaction_log.h"
#include "store/record_codec.h"
#include "store/rocksdb_rep.h"

namespace tim4rec {
namespace {

// The number of a table, a log or a manifest; 0 of other files.
uint64_t FileNumber(std::string_view file) {
  absl::string_view name = View(file);
  absl::ConsumePrefix(&name, "/");
  uint64_t number = 0;
  const bool numbered = absl::ConsumePrefix(&name, "MANIFEST-") ||
                        absl::ConsumeSuffix(&name, ".sst") || absl::ConsumeSuffix(&name, ".log");
  return numbered && absl::SimpleAtoi(name, &number) ? number : 0;
}

}  // namespace

// One that ran beside a CompactRange could move a table down to a level that the latter has found
// empty, and it would stay as it is.
rocksdb::Status RocksDbStore::Rep::SetAutoCompactions(bool on) {
  for (const ColumnFamily family : {kEventsFamily, kStatesFamily, kUseFamily}) {
    rocksdb::Status set =
        db->SetOptions(families[family], {{"disable_auto_compactions", on ? "false" : "true"}});
    if (!set.ok()) return set;
  }
  uint64_t running = on ? 0 : 1;
  while (running > 0) {
    if (!db->GetIntProperty(rocksdb::DB::Properties::kNumRunningCompactions, &running)) break;
    if (running > 0) absl::SleepFor(absl::Milliseconds(1));
  }
  return rocksdb::Status::OK();
}

// Looks at the directory, since RocksDB's threads delete files on their own, after the change that
// made them needless is visible. Files that are being written count too: they may be of a
// compaction that began before.
rocksdb::Status RocksDbStore::Rep::WaitForDeletions() {
  constexpr absl::Duration kPatience = absl::Seconds(60);
  const absl::Time end = absl::Now() + kPatience;
  std::vector<std::string> live;
  uint64_t manifest_bytes = 0;
  if (rocksdb::Status s = db->GetLiveFiles(live, &manifest_bytes, false); !s.ok()) return s;
  uint64_t newest = 0;  // what is newer was begun after the user was gone
  for (const std::string& file : live) newest = std::max(newest, FileNumber(file));
  for (;;) {
    rocksdb::VectorLogPtr logs;
    std::vector<rocksdb::Env::FileAttributes> files;
    rocksdb::Status status = db->GetLiveFiles(live, &manifest_bytes, false);
    if (status.ok()) status = db->GetSortedWalFiles(logs);
    if (status.ok()) status = db->GetEnv()->GetChildrenFileAttributes(dir, &files);
    if (!status.ok()) return status;
    absl::flat_hash_set<uint64_t> used;
    for (const std::string& file : live) used.insert(FileNumber(file));
    for (const auto& log : logs) used.insert(log->LogNumber());
    // An empty log, such as a new one, is not among those listed, and holds nothing.
    const bool done = std::none_of(files.begin(), files.end(), [&](const auto& file) {
      const uint64_t number = FileNumber(file.name);
      return number > 0 && number <= newest && file.size_bytes > 0 && !used.contains(number);
    });
    if (done) return status;
    if (absl::Now() > end) return rocksdb::Status::TimedOut("old files are still in use");
    absl::SleepFor(absl::Milliseconds(2));
  }
}

absl::Status RocksDbStore::PurgeDeleted(std::string_view user_id) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  if (absl::Status id = CheckId("user_id", user_id); !id.ok()) return id;
  const std::string begin = UserPrefix(user_id);
  const std::string end = PrefixEnd(begin);
  const rocksdb::Slice begin_slice(begin);
  const rocksdb::Slice end_slice(end);
  const std::lock_guard purge(rep_->purge_mutex);
  rocksdb::Status status = rep_->SetAutoCompactions(false);
  const absl::Cleanup resume = [&] { (void)rep_->SetAutoCompactions(true); };
  // Out of the log into tables; then out of the tables, down to the last level, where tombstones
  // go too.
  if (status.ok()) status = rep_->db->Flush({}, rep_->families);
  rocksdb::CompactRangeOptions compact;
  compact.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  for (const ColumnFamily family : {kEventsFamily, kStatesFamily}) {
    if (!status.ok()) break;
    status = rep_->db->CompactRange(compact, rep_->families[family], &begin_slice, &end_slice);
  }
  // Merged down there, counts of nothing are left out, and with them items of this user alone.
  if (status.ok()) {
    status = rep_->db->CompactRange(compact, rep_->families[kUseFamily], nullptr, nullptr);
  }
  // The manifest names the first and last key of every table. It is begun anew with each change
  // (max_manifest_file_size), with the state before that change: one more, and it has forgotten.
  rocksdb::WriteOptions write;
  if (status.ok()) status = rep_->db->Put(write, rep_->families[kMetaFamily], kProbeKey, "");
  if (status.ok()) status = rep_->db->Flush({}, rep_->families[kMetaFamily]);
  if (status.ok()) status = rep_->WaitForDeletions();
  return StatusOf(status, absl::StrCat("purge what was user ", Quoted(user_id)));
}

}  // namespace tim4rec
