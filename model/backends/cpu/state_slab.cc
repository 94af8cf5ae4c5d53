#include "model/backends/cpu/state_slab.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/backends/cpu/huge_pages.h"

namespace tim4rec {

StateSlab::StateSlab(int64_t record_bytes)
    : record_bytes_(record_bytes),
      records_per_chunk_(std::max<int64_t>(1, int64_t{kHugePageBytes} / record_bytes)),
      ahead_([this] { KeepAhead(); }) {}

StateSlab::~StateSlab() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  low_.notify_one();
  ahead_.join();
  for (int table = 0; table < kTables; ++table) {
    std::atomic<std::byte*>* entries = tables_[table].load();
    if (entries == nullptr) continue;
    for (int64_t i = 0; i < int64_t{1} << table; ++i) {
      FreeHugePages(entries[i].load());
    }
    delete[] entries;
  }
}

std::atomic<std::byte*>& StateSlab::ChunkEntry(int64_t chunk) const {
  const uint64_t position = uint64_t{static_cast<uint32_t>(chunk)} + 1;
  const int table = std::bit_width(position) - 1;
  return tables_[table].load(std::memory_order_acquire)[position - std::bit_floor(position)];
}

std::byte* StateSlab::record(int32_t slot) const {
  std::byte* chunk = ChunkEntry(slot / records_per_chunk_).load(std::memory_order_acquire);
  return chunk + slot % records_per_chunk_ * record_bytes_;
}

void StateSlab::KeepAhead() {
  const size_t bytes = static_cast<size_t>(records_per_chunk_ * record_bytes_);
  const auto ahead = static_cast<size_t>(records_per_chunk_);
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    if (free_.size() < ahead) {
      lock.unlock();
      auto* chunk = static_cast<std::byte*>(AllocateHugePages(bytes));
      if (chunk != nullptr) std::memset(chunk, 0, bytes);
      lock.lock();
      if (AddChunk(chunk)) continue;
    }
    low_.wait(lock);
  }
}

bool StateSlab::Grow() {
  return AddChunk(static_cast<std::byte*>(
      AllocateHugePages(static_cast<size_t>(records_per_chunk_ * record_bytes_))));
}

bool StateSlab::AddChunk(std::byte* chunk) {
  if (chunk == nullptr) return false;
  const int32_t slots = slots_.load();
  const int64_t index = slots / records_per_chunk_;
  const uint64_t position = uint64_t{static_cast<uint32_t>(index)} + 1;
  const int table = std::bit_width(position) - 1;
  bool fits = slots <= INT32_MAX - records_per_chunk_;
  if (fits && tables_[table].load() == nullptr) {
    auto* entries = new (std::nothrow) std::atomic<std::byte*>[std::bit_floor(position)]();
    tables_[table].store(entries, std::memory_order_release);
    fits = entries != nullptr;
  }
  if (!fits) {
    FreeHugePages(chunk);
    return false;
  }
  ChunkEntry(index).store(chunk, std::memory_order_release);
  // The lowest on top, but below what was free before.
  free_.insert(free_.begin(), static_cast<size_t>(records_per_chunk_), 0);
  for (int64_t i = 0; i < records_per_chunk_; ++i) {
    free_[static_cast<size_t>(records_per_chunk_ - 1 - i)] = slots + static_cast<int32_t>(i);
  }
  slots_.store(slots + static_cast<int32_t>(records_per_chunk_), std::memory_order_release);
  return true;
}

absl::StatusOr<int32_t> StateSlab::Allocate() {
  int32_t slot;
  {
    const std::lock_guard lock(mutex_);
    if (free_.empty() && !Grow()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no memory for another state of ", record_bytes_, " bytes after ", slots_.load()));
    }
    slot = free_.back();
    free_.pop_back();
    if (free_.size() + 1 == static_cast<size_t>(records_per_chunk_)) low_.notify_one();
  }
  std::memset(record(slot), 0, static_cast<size_t>(record_bytes_));
  return slot;
}

void StateSlab::Release(int32_t slot) {
  if (!Contains(slot)) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(slot);
}

}  // namespace tim4rec
