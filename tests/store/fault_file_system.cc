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

class WatchedReader final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  WatchedReader(std::unique_ptr<rocksdb::FSRandomAccessFile> file, FaultFileSystem& fs)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), fs_(fs) {}

  IOStatus Read(uint64_t offset, size_t bytes, const IOOptions& options, Slice* result,
                char* scratch, IODebugContext* debug) const override {
    const IOStatus readable = fs_.CheckReadable();
    return readable.ok() ? target()->Read(offset, bytes, options, result, scratch, debug)
                         : readable;
  }
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t count, const IOOptions& options,
                     IODebugContext* debug) override {
    const IOStatus readable = fs_.CheckReadable();
    if (readable.ok()) return target()->MultiRead(requests, count, options, debug);
    for (size_t i = 0; i < count; ++i) requests[i].status = readable;
    return IOStatus::OK();
  }

 private:
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
    fs_.SyncDirectory(name_);
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
  const size_t kept_changes = tail == TornTail::kDropped ? 0 : random() % (changes_.size() + 1);
  while (changes_.size() > kept_changes) {
    TakeBack(changes_.back());
    changes_.pop_back();
  }
  for (const auto& [name, file] : files_) {
    std::error_code error;
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
  for (const Change& change : changes_) std::filesystem::remove(change.shadow);
  changes_.clear();
  power_ = true;
}

void FaultFileSystem::SetFreeBytes(int64_t bytes) {
  std::lock_guard lock(mutex_);
  free_bytes_ = bytes;
}

void FaultFileSystem::FailWrites(bool fail) {
  std::lock_guard lock(mutex_);
  fail_writes_ = fail;
}

void FaultFileSystem::FailReads(bool fail) {
  std::lock_guard lock(mutex_);
  fail_reads_ = fail;
}

void FaultFileSystem::HoldTables(bool hold) {
  std::lock_guard lock(mutex_);
  hold_tables_ = hold;
  tables_go_on_.notify_all();
}

void FaultFileSystem::FailSyncs(bool fail) {
  std::lock_guard lock(mutex_);
  fail_syncs_ = fail;
}

IOStatus FaultFileSystem::CheckPower() {
  std::lock_guard lock(mutex_);
  return power_ ? IOStatus::OK() : IOStatus::IOError("no power");
}

IOStatus FaultFileSystem::CheckReadable() {
  std::lock_guard lock(mutex_);
  return fail_reads_ ? IOStatus::IOError("injected read failure") : IOStatus::OK();
}

// Notes, before it is done, that `name` is about to be another file or none.
FaultFileSystem::Change& FaultFileSystem::Remember(const std::string& name) {
  Change& change = changes_.emplace_back();
  change.name = name;
  if (!std::filesystem::exists(name)) return change;
  const std::string shadows = std::filesystem::path(name).parent_path().string() + ".shadows";
  std::filesystem::create_directories(shadows);
  change.shadow = shadows + "/" + std::to_string(++shadows_);
  std::filesystem::create_hard_link(name, change.shadow);
  const auto file = files_.find(name);
  const uint64_t size = std::filesystem::file_size(name);
  change.before = file == files_.end() ? File{size, size} : file->second;
  return change;
}

void FaultFileSystem::TakeBack(const Change& change) {
  std::error_code error;
  if (!change.from.empty()) {
    std::filesystem::rename(change.name, change.from, error);
    files_[change.from] = files_[change.name];
  } else if (!change.gone) {
    std::filesystem::remove(change.name, error);
  }
  files_.erase(change.name);
  if (change.shadow.empty()) return;
  std::filesystem::rename(change.shadow, change.name, error);
  files_[change.name] = change.before;
}

void FaultFileSystem::SyncDirectory(const std::string& directory) {
  const auto durable =
      std::stable_partition(changes_.begin(), changes_.end(), [&](const Change& change) {
        return std::filesystem::path(change.name).parent_path() != std::filesystem::path(directory);
      });
  for (auto change = durable; change != changes_.end(); ++change) {
    if (!change->shadow.empty()) std::filesystem::remove(change->shadow);
  }
  changes_.erase(durable, changes_.end());
}

IOStatus FaultFileSystem::Take(uint64_t bytes, uint64_t& allowed) {
  std::lock_guard lock(mutex_);
  allowed = 0;
  if (!power_) return IOStatus::IOError("no power");
  if (fail_writes_) return IOStatus::IOError("injected write failure");
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
  std::unique_lock lock(mutex_);
  if (name.ends_with(".sst")) tables_go_on_.wait(lock, [this] { return !hold_tables_; });
  // What had the name keeps its bytes.
  if (!Remember(name).shadow.empty()) std::filesystem::remove(name);
  const IOStatus made = target()->NewWritableFile(name, options, &file, debug);
  if (!made.ok()) {
    changes_.pop_back();
    return made;
  }
  files_[name] = {};
  *result = std::make_unique<WatchedFile>(std::move(file), name, *this);
  return made;
}

IOStatus FaultFileSystem::NewRandomAccessFile(const std::string& name,
                                              const rocksdb::FileOptions& options,
                                              std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                                              IODebugContext* debug) {
  std::unique_ptr<rocksdb::FSRandomAccessFile> file;
  const IOStatus made = target()->NewRandomAccessFile(name, options, &file, debug);
  if (made.ok()) *result = std::make_unique<WatchedReader>(std::move(file), *this);
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
  std::lock_guard lock(mutex_);
  Remember(name).gone = true;
  const IOStatus deleted = target()->DeleteFile(name, options, debug);
  if (deleted.ok()) {
    files_.erase(name);
  } else {
    changes_.pop_back();
  }
  return deleted;
}

IOStatus FaultFileSystem::RenameFile(const std::string& from, const std::string& to,
                                     const IOOptions& options, IODebugContext* debug) {
  if (const IOStatus power = CheckPower(); !power.ok()) return power;
  std::lock_guard lock(mutex_);
  Remember(to).from = from;
  const IOStatus renamed = target()->RenameFile(from, to, options, debug);
  if (!renamed.ok()) {
    changes_.pop_back();
    return renamed;
  }
  const auto file = files_.find(from);
  if (file != files_.end()) {
    files_[to] = file->second;
    files_.erase(file);
  }
  return renamed;
}

}  // namespace tim4rec
