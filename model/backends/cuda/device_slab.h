// Device memory for state records of one size, by slot.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_SLAB_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_SLAB_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "model/backends/cuda/device.h"

namespace tim4rec::cuda {

// Records lie in chunks that never move and are kept until the end. A chunk is allocated when there
// is no free record and the device has more free memory than it and the reserve. Thread-safe.
class DeviceSlab {
 public:
  // `device` outlives the slab; a chunk has at most `chunk_bytes`, and at least one record.
  DeviceSlab(Device* device, int64_t record_bytes, int64_t chunk_bytes, int64_t reserve_bytes);
  ~DeviceSlab();
  DeviceSlab(const DeviceSlab&) = delete;
  DeviceSlab& operator=(const DeviceSlab&) = delete;

  static constexpr int32_t kMostSlots = 1 << 30;

  // A slot whose record's content is undefined; none if there is no room: then the device is asked
  // again only every 1024 calls, since asking takes as long as a fold. A device that refuses a
  // chunk that it should have room for is not asked again. A fault of anything else is returned.
  Fault Allocate(std::optional<int32_t>* slot);
  void Release(int32_t slot);  // allocated and no longer used

  // Whether `slot` was ever given out.
  bool Contains(int32_t slot) const {
    return slot >= 0 && slot < slots_.load(std::memory_order_acquire);
  }
  // In device memory, 16-byte aligned. Needs Contains(slot).
  std::byte* record(int32_t slot) const;
  // The slot's notes; those of a slot belong to who uses it.
  struct Notes {
    int64_t events = 0;   // folded into it
    int32_t staged = -1;  // Staging's
  };
  Notes& notes(int32_t slot) const;

  int64_t used() const;
  int64_t slots() const { return slots_.load(std::memory_order_acquire); }  // with memory
  // Slots that `free_bytes` of device memory leave room for, beside those that have theirs.
  int64_t RoomFor(int64_t free_bytes) const;

 private:
  struct Chunk {
    std::byte* records = nullptr;
    std::unique_ptr<Notes[]> notes;
  };
  static constexpr int64_t kMostChunks = 1 << 12;
  static constexpr int64_t kAskEvery = 1024;

  Fault Grow();  // holding mutex_

  Device* const device_;
  const int64_t record_bytes_;
  const int64_t records_per_chunk_;
  const int64_t reserve_bytes_;
  std::atomic<int32_t> slots_ = 0;
  const std::unique_ptr<Chunk[]> chunks_;  // below slots_ they do not change

  // Not absl::Mutex: the system's abseil is built without what the thread sanitizer needs to see
  // it.
  mutable std::mutex mutex_;
  std::vector<int32_t> free_;  // guarded by mutex_, as is what follows
  bool full_ = false;          // the device refused a chunk
  int64_t without_room_ = 0;   // calls since it had none
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_SLAB_H_
