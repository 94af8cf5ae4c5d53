#include "model/backends/cuda/device_slab.h"

#include <algorithm>

namespace tim4rec::cuda {

DeviceSlab::DeviceSlab(Device* device, int64_t record_bytes, int64_t chunk_bytes,
                       int64_t reserve_bytes)
    : device_(device),
      record_bytes_(record_bytes),
      records_per_chunk_(std::max<int64_t>(1, chunk_bytes / record_bytes)),
      reserve_bytes_(reserve_bytes),
      chunks_(std::make_unique<Chunk[]>(kMostChunks)) {}

DeviceSlab::~DeviceSlab() {
  for (int64_t i = 0; i < slots_ / records_per_chunk_; ++i) device_->Free(chunks_[i].records);
}

std::byte* DeviceSlab::record(int32_t slot) const {
  return chunks_[slot / records_per_chunk_].records + slot % records_per_chunk_ * record_bytes_;
}

DeviceSlab::Notes& DeviceSlab::notes(int32_t slot) const {
  return chunks_[slot / records_per_chunk_].notes[slot % records_per_chunk_];
}

int64_t DeviceSlab::RoomFor(int64_t free_bytes) const {
  const int64_t chunk_bytes = records_per_chunk_ * record_bytes_;
  return std::max<int64_t>(0, free_bytes - reserve_bytes_) / chunk_bytes * records_per_chunk_;
}

Fault DeviceSlab::Grow() {
  const int32_t slots = slots_.load();
  const int64_t chunk = slots / records_per_chunk_;
  if (full_ || chunk == kMostChunks || slots > kMostSlots - records_per_chunk_) return nullptr;
  if (without_room_++ % kAskEvery != 0) return nullptr;
  MemoryInfo memory;
  if (const Fault fault = device_->Memory(&memory); fault != nullptr) return fault;
  if (RoomFor(memory.free_bytes) == 0) return nullptr;
  void* records = nullptr;
  if (device_->Allocate(static_cast<size_t>(records_per_chunk_ * record_bytes_), &records) !=
      nullptr) {
    full_ = true;
    return nullptr;
  }
  without_room_ = 0;
  chunks_[chunk].records = static_cast<std::byte*>(records);
  chunks_[chunk].notes = std::make_unique<Notes[]>(static_cast<size_t>(records_per_chunk_));
  for (int64_t i = records_per_chunk_; i > 0; --i) {
    free_.push_back(slots + static_cast<int32_t>(i) - 1);  // lowest slot on top
  }
  slots_.store(slots + static_cast<int32_t>(records_per_chunk_), std::memory_order_release);
  return nullptr;
}

Fault DeviceSlab::Allocate(std::optional<int32_t>* slot) {
  const std::lock_guard lock(mutex_);
  slot->reset();
  if (free_.empty()) {
    if (const Fault fault = Grow(); fault != nullptr) return fault;
    if (free_.empty()) return nullptr;
  }
  *slot = free_.back();
  free_.pop_back();
  return nullptr;
}

void DeviceSlab::Release(int32_t slot) {
  if (!Contains(slot)) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(slot);
}

int64_t DeviceSlab::used() const {
  const std::lock_guard lock(mutex_);
  return slots_.load() - static_cast<int64_t>(free_.size());
}

}  // namespace tim4rec::cuda
