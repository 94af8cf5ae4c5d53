#include "model/backends/cuda/staging.h"

#include <cstring>

namespace tim4rec::cuda {

Staging::Staging(Device* device, DeviceSlab* slab, int64_t record_bytes, std::byte* rows)
    : device_(device), slab_(slab), record_bytes_(record_bytes), rows_(rows) {
  for (int32_t row = kRows - 1; row >= 0; --row) free_rows_.push_back(row);
}

void Staging::Add(int32_t slot, int32_t row) {
  int32_t& index = slab_->notes(slot).staged;
  if (index >= 0) {  // what was staged before it is void
    Staged& staged = staged_[index];
    if (staged.row >= 0) free_rows_.push_back(staged.row);
    staged.row = row;
    return;
  }
  index = static_cast<int32_t>(staged_.size());
  staged_.push_back({slot, row});
}

Fault Staging::Flush() {
  if (staged_.empty()) return nullptr;
  copies_.clear();
  for (const Staged& staged : staged_) {
    const std::byte* from = staged.row < 0 ? nullptr : rows_ + staged.row * record_bytes_;
    copies_.push_back({slab_->record(staged.slot), from});
    if (staged.row >= 0) {
      in_flight_.push_back(staged.row);
      bytes_ += record_bytes_;
    }
    slab_->notes(staged.slot).staged = -1;
  }
  staged_.clear();
  behind_.fill(true);
  return device_->CopyRecords(Lane::kImport, copies_.data(), static_cast<int64_t>(copies_.size()),
                              record_bytes_);
}

Fault Staging::Drain() {
  double seconds = 0;
  const Fault fault = device_->Wait(Lane::kImport, &seconds);
  free_rows_.insert(free_rows_.end(), in_flight_.begin(), in_flight_.end());
  in_flight_.clear();
  return fault;
}

Fault Staging::TakeRow(std::unique_lock<std::mutex>* lock, int32_t* row) {
  while (free_rows_.empty()) {
    if (staged_.empty() && in_flight_.empty()) {  // others are filling all of them
      row_staged_.wait(*lock);
      continue;
    }
    if (const Fault fault = Flush(); fault != nullptr) return fault;
    if (const Fault fault = Drain(); fault != nullptr) return fault;
  }
  *row = free_rows_.back();
  free_rows_.pop_back();
  return nullptr;
}

Fault Staging::Put(int32_t slot, std::span<const std::byte> record) {
  std::unique_lock lock(mutex_);
  int32_t row = 0;
  if (const Fault fault = TakeRow(&lock, &row); fault != nullptr) return fault;
  lock.unlock();
  std::memcpy(rows_ + row * record_bytes_, record.data(), record.size());
  lock.lock();
  Add(slot, row);
  row_staged_.notify_one();
  return nullptr;
}

Fault Staging::Clear(int32_t slot) {
  const std::lock_guard lock(mutex_);
  Add(slot, -1);
  return nullptr;
}

Fault Staging::Before(Lane lane) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Flush(); fault != nullptr) return fault;
  bool& behind = behind_[static_cast<int>(lane)];
  if (!behind) return nullptr;
  behind = false;
  return device_->After(lane, Lane::kImport);
}

int64_t Staging::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace tim4rec::cuda
