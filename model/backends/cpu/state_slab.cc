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
      records_per_chunk_(std::max<int64_t>(1, int64_t{kHugePageBytes} / record_bytes)) {}

StateSlab::~StateSlab() {
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

bool StateSlab::Grow() {
  const int32_t slots = slots_.load();
  const int64_t chunk = slots / records_per_chunk_;
  if (slots > INT32_MAX - records_per_chunk_) return false;
  const uint64_t position = uint64_t{static_cast<uint32_t>(chunk)} + 1;
  const int table = std::bit_width(position) - 1;
  if (tables_[table].load() == nullptr) {
    auto* entries = new (std::nothrow) std::atomic<std::byte*>[std::bit_floor(position)]();
    if (entries == nullptr) return false;
    tables_[table].store(entries, std::memory_order_release);
  }
  auto* memory = static_cast<std::byte*>(
      AllocateHugePages(static_cast<size_t>(records_per_chunk_ * record_bytes_)));
  if (memory == nullptr) return false;
  ChunkEntry(chunk).store(memory, std::memory_order_release);
  for (int64_t i = records_per_chunk_; i > 0; --i) {
    free_.push_back(slots + static_cast<int32_t>(i) - 1);  // lowest slot on top
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
