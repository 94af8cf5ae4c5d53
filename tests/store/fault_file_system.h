// A file system that can lose what was not synced, run full, and refuse to sync.
#ifndef TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_
#define TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>

#include "rocksdb/file_system.h"

namespace tim4rec {

// What becomes of the bytes behind the last sync when the power goes.
enum class TornTail { kDropped, kCutAnywhere, kPartlyZero };

// Thread-safe. Files live in the real file system; only writes are watched. A rename counts as
// durable at once, a new file only after a sync of its directory.
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

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* result,
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
  friend class WatchedDirectory;
  struct File {
    uint64_t size = 0;
    uint64_t synced = 0;
    bool entry_synced = false;
  };

  rocksdb::IOStatus CheckPower();
  // How many of the bytes may be written before the disk is full; also an error without power.
  rocksdb::IOStatus Take(uint64_t bytes, uint64_t& allowed);

  std::mutex mutex_;
  std::map<std::string, File> files_;
  bool power_ = true;
  bool fail_syncs_ = false;
  int64_t free_bytes_ = -1;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_FAULT_FILE_SYSTEM_H_
