// Records on their way to the device: kept in pinned memory until somebody needs them there.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_STAGING_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_STAGING_H_

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "model/backends/cuda/device.h"
#include "model/backends/cuda/device_slab.h"

namespace tim4rec::cuda {

// Put and Clear are cheap: what they ask for is copied in batches, on a lane of its own, when the
// rows are used up or a launch needs the records. Thread-safe; calls for one slot must not overlap.
class Staging {
 public:
  static constexpr int64_t kRows = 128;

  // All outlive the staging. `rows` is pinned memory for kRows records.
  Staging(Device* device, DeviceSlab* slab, int64_t record_bytes, std::byte* rows);

  // Makes the slot's record a copy of `record`, or all zero.
  Fault Put(int32_t slot, std::span<const std::byte> record);
  Fault Clear(int32_t slot);

  // What is put on `lane` from now on sees all that was put and cleared before.
  Fault Before(Lane lane);

  int64_t bytes() const;  // copied so far

 private:
  struct Staged {
    int32_t slot;
    int32_t row;  // -1: zeros
  };

  void Add(int32_t slot, int32_t row);  // holding mutex_, as the others
  Fault Flush();
  Fault Drain();
  Fault TakeRow(std::unique_lock<std::mutex>* lock, int32_t* row);

  Device* const device_;
  DeviceSlab* const slab_;
  const int64_t record_bytes_;
  std::byte* const rows_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable row_staged_;
  std::vector<int32_t> free_rows_;
  std::vector<Staged> staged_;            // not yet on the lane; a slot is there once at most
  std::vector<int32_t> in_flight_;        // rows that the lane may still read
  std::vector<RecordCopy> copies_;        // scratch of Flush
  std::array<bool, kLanes> behind_ = {};  // it was not yet told to wait for the last flush
  int64_t bytes_ = 0;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_STAGING_H_
