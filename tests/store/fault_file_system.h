// A file system that can lose what was not synced, run full, and fail to read, write or sync.
#ifndef TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_
#define TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "rocksdb/file_system.h"

namespace tim4rec {

// What becomes of what was not synced when the power goes: of the bytes behind a file's last sync,
// and of the directory's latest changes, which go in reverse order (all of them, or some).
enum class TornTail { kDropped, kCutAnywhere, kPartlyZero };

// Thread-safe. Files live in the real file system. A new file, a rename and a deletion are durable
// only after a sync of their directory.
class FaultFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FaultFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultFileSystem"; }

  // From here on nothing reaches the disk any more: call, destroy the store, then LoseUnsynced.
  void CutPower();
  // Applies the loss to the files and turns the power on.
  void LoseUnsynced(TornTail tail, std::mt19937_64& random);

  // Appends fail with "no space" once this many bytes more have been written; negative: never.
  void SetFreeBytes(int64_t bytes);
  void FailSyncs(bool fail);
  void FailWrites(bool fail);
  void FailReads(bool fail);   // of open table files and of new ones
  void HoldTables(bool hold);  // who would begin a table file waits meanwhile; not when destroyed

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* result,
                                    rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                                        rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* result,
                                 rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to,
                               const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* debug) override;

 private:
  friend class WatchedFile;
  friend class WatchedReader;
  friend class WatchedDirectory;
  struct File {
    uint64_t size = 0;
    uint64_t synced = 0;
  };
  // A change of a directory that the power may still take back.
  struct Change {
    std::string name;
    std::string from;    // of a rename
    bool gone = false;   // a deletion
    std::string shadow;  // a link to what had the name before; empty if nothing had
    File before;         // what the shadow is
  };

  rocksdb::IOStatus CheckPower();
  rocksdb::IOStatus CheckReadable();
  // How many of the bytes may be written before the disk is full; also an error without power.
  rocksdb::IOStatus Take(uint64_t bytes, uint64_t& allowed);
  Change& Remember(const std::string& name);
  void TakeBack(const Change& change);
  void SyncDirectory(const std::string& directory);

  std::mutex mutex_;
  std::map<std::string, File> files_;
  std::vector<Change> changes_;
  uint64_t shadows_ = 0;
  bool power_ = true;
  bool fail_syncs_ = false;
  bool fail_writes_ = false;
  bool fail_reads_ = false;
  bool hold_tables_ = false;
  std::condition_variable tables_go_on_;
  int64_t free_bytes_ = -1;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_
