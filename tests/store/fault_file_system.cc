#include "tests/store/fault_file_system.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

namespace tim4rec {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

class WatchedFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WatchedFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string name, FaultFileSystem& fs)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), fs_(fs) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    uint64_t allowed = 0;
    const IOStatus taken = fs_.Take(data.size(), allowed);
    if (allowed > 0) {
      const IOStatus written = target()->Append(Slice(data.data(), allowed), options, debug);
      if (!written.ok()) return written;
      std::lock_guard lock(fs_.mutex_);
      fs_.files_[name_].size += allowed;
    }
    return taken;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    uint64_t size = 0;
    {
      std::lock_guard lock(fs_.mutex_);
      if (!fs_.power_) return IOStatus::IOError("no power");
      if (fs_.fail_syncs_) return IOStatus::IOError("injected sync failure");
      size = fs_.files_[name_].size;
    }
    const IOStatus synced = target()->Flush(options, debug);  // the real disk's sync adds nothing
    if (!synced.ok()) return synced;
    std::lock_guard lock(fs_.mutex_);
    FaultFileSystem::File& file = fs_.files_[name_];
    file.synced = std::max(file.synced, size);
    return synced;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return Sync(options, debug);
  }

 private:
  const std::string name_;
  FaultFileSystem& fs_;
};

class WatchedDirectory final : public rocksdb::FSDirectoryWrapper {
 public:
  WatchedDirectory(std::unique_ptr<rocksdb::FSDirectory> directory, std::string name,
                   FaultFileSystem& fs)
      : FSDirectoryWrapper(std::move(directory)), name_(std::move(name)), fs_(fs) {}

  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    std::lock_guard lock(fs_.mutex_);
    if (!fs_.power_) return IOStatus::IOError("no power");
    for (auto& [name, file] : fs_.files_) {
      if (std::filesystem::path(name).parent_path() == std::filesystem::path(name_)) {
        file.entry_synced = true;
      }
    }
    return IOStatus::OK();
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions&) override {
    return Fsync(options, debug);
  }

 private:
  const std::string name_;
  FaultFileSystem& fs_;
};

void FaultFileSystem::CutPower() {
  std::lock_guard lock(mutex_);
  power_ = false;
}

void FaultFileSystem::LoseUnsynced(TornTail tail, std::mt19937_64& random) {
  std::lock_guard lock(mutex_);
  for (const auto& [name, file] : files_) {
    std::error_code error;
    if (!file.entry_synced) {
      std::filesystem::remove(name, error);
      continue;
    }
    const uint64_t unsynced = file.size - file.synced;
    const uint64_t kept = tail == TornTail::kDropped ? 0 : random() % (unsynced + 1);
    std::filesystem::resize_file(name, file.synced + kept, error);
    if (tail == TornTail::kPartlyZero && kept > 0) {
      const uint64_t from = random() % kept;
      std::fstream bytes(name, std::ios::in | std::ios::out | std::ios::binary);
      bytes.seekp(static_cast<std::streamoff>(file.synced + from));
      bytes << std::string(kept - from, '\0');
    }
  }
  files_.clear();
  power_ = true;
}

void FaultFileSystem::SetFreeBytes(int64_t bytes) {
  std::lock_guard lock(mutex_);
  free_bytes_ = bytes;
}

void FaultFileSystem::FailSyncs(bool fail) {
  std::lock_guard lock(mutex_);
  fail_syncs_ = fail;
}

IOStatus FaultFileSystem::CheckPower() {
  std::lock_guard lock(mutex_);
  return power_ ? IOStatus::OK() : IOStatus::IOError("no power");
}

IOStatus FaultFileSystem::Take(uint64_t bytes, uint64_t& allowed) {
  std::lock_guard lock(mutex_);
  allowed = 0;
  if (!power_) return IOStatus::IOError("no power");
  allowed = bytes;
  if (free_bytes_ < 0) return IOStatus::OK();
  allowed = std::min(bytes, static_cast<uint64_t>(free_bytes_));
  free_bytes_ -= static_cast<int64_t>(allowed);
  return allowed == bytes ? IOStatus::OK() : IOStatus::NoSpace("injected: disk full");
}

IOStatus FaultFileSystem::NewWritableFile(const std::string& name,
                                          const rocksdb::FileOptions& options,
                                          std::unique_ptr<rocksdb::FSWritableFile>* result,
                                          IODebugContext* debug) {
  if (const IOStatus power = CheckPower(); !power.ok()) return power;
  std::unique_ptr<rocksdb::FSWritableFile> file;
  const IOStatus made = target()->NewWritableFile(name, options, &file, debug);
  if (!made.ok()) return made;
  {
    std::lock_guard lock(mutex_);
    files_[name] = {};
  }
  *result = std::make_unique<WatchedFile>(std::move(file), name, *this);
  return made;
}

IOStatus FaultFileSystem::NewDirectory(const std::string& name, const IOOptions& options,
                                       std::unique_ptr<rocksdb::FSDirectory>* result,
                                       IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSDirectory> directory;
  const IOStatus made = target()->NewDirectory(name, options, &directory, debug);
  if (!made.ok()) return made;
  *result = std::make_unique<WatchedDirectory>(std::move(directory), name, *this);
  return made;
}

IOStatus FaultFileSystem::DeleteFile(const std::string& name, const IOOptions& options,
                                     IODebugContext* debug) {
  if (const IOStatus power = CheckPower(); !power.ok()) return power;
  const IOStatus deleted = target()->DeleteFile(name, options, debug);
  std::lock_guard lock(mutex_);
  if (deleted.ok()) files_.erase(name);
  return deleted;
}

IOStatus FaultFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const IOOptions& options, IODebugContext* debug) {
  if (const IOStatus power = CheckPower(); !power.ok()) return power;
  const IOStatus renamed = target()->RenameFile(from, to, options, debug);
  std::lock_guard lock(mutex_);
  const auto file = files_.find(from);
  if (renamed.ok() && file != files_.end()) {
    File moved = file->second;
    moved.entry_synced = true;
    files_.erase(file);
    files_[to] = moved;
  }
  return renamed;
}

}  // namespace tim4rec
