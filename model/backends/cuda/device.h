// What the cuda backend asks of a device: memory, and work on lanes. Implemented over the CUDA
// runtime (runtime_device.h) and, for tests, by a device that computes with the scalar truth and
// fails where a test says so. Plain C++17, which nvcc compiles without abseil.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/kernels/cuda/fault.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/kernels.h"

namespace tim4rec::cuda {

// The runtime's own text for want of memory.
inline bool IsOutOfMemory(Fault fault) { return std::string_view(fault) == "out of memory"; }

// A stream of the device: work on one is done in order, on several at the same time.
enum class Lane { kFold, kQuery, kRank, kImport, kExport };
inline constexpr int kLanes = 5;

// A state record to be copied: both 16-byte aligned, in device memory or in pinned host memory.
struct RecordCopy {
  void* to;
  const void* from;  // null: zeros
};

struct MemoryInfo {
  int64_t free_bytes;
  int64_t total_bytes;
};

// In one launch.
inline constexpr int32_t kMostRuns = 4096;
inline constexpr int32_t kMostEvents = 65536;
inline constexpr int32_t kMostQueries = 1024;
inline constexpr int32_t kMostRankings = 1024;
inline constexpr int32_t kMostBest = 1000;  // k
// Events of the windows that the bulk mode encodes: at D = 64 3072 blocks of its largest product.
inline constexpr int32_t kMostEncoded = 32768;
// A boost on the device has a whole number of these, the items' first.
inline constexpr int32_t kBoostTile = 64;

// Thread-safe, but that calls on one lane must not overlap. Nothing waits for the device but Wait,
// LoadModel and LoadBulk; what is put on a lane reads and writes its memory until Wait returns.
// Host memory is pinned, from AllocateHost. A fault of anything but an allocation leaves the device
// in no state to go on with; the fault of work on a lane is reported by Wait or by any later call.
class Device {
 public:
  virtual ~Device() = default;

  // What computes, as "sm_90".
  virtual const char* name() const = 0;

  virtual Fault Memory(MemoryInfo* memory) = 0;
  // Device memory, 256-byte aligned, contents undefined. Null on a fault.
  virtual Fault Allocate(size_t bytes, void** memory) = 0;
  virtual void Free(void* memory) = 0;  // or null
  // Pinned host memory, which the device can read and write.
  virtual Fault AllocateHost(size_t bytes, void** memory) = 0;
  virtual void FreeHost(void* memory) = 0;  // or null

  // Device memory that LoadModel takes, the scratch of all launches included.
  virtual int64_t ModelBytes(const kernels::Dims& dims) const = 0;
  // Copies the model to the device, once, before anything is launched; `weights` is read before it
  // returns.
  virtual Fault LoadModel(const kernels::Dims& dims, const kernels::Weights& weights) = 0;

  // Of a model with a window: device memory that LoadBulk takes.
  virtual int64_t BulkBytes(const kernels::Dims& dims, const kernels::Weights& weights,
                            int32_t most_events) const = 0;
  // After LoadModel: readies EncodeWindows for launches of up to `most_events` events, as many as a
  // window has or more. Refused for want of memory, it may be called again with fewer.
  virtual Fault LoadBulk(const kernels::Dims& dims, const kernels::Weights& weights,
                         int32_t most_events) = 0;

  // Copies from pinned to device memory or back.
  virtual Fault Copy(Lane lane, void* to, const void* from, size_t bytes) = 0;
  // Copies `count` records of `record_bytes`, a multiple of 16, to distinct places. `copies` is
  // read before it returns.
  virtual Fault CopyRecords(Lane lane, const RecordCopy* copies, int64_t count,
                            int64_t record_bytes) = 0;
  // On kFold: DeviceModel::Fold of pinned runs and events. Where `most_events` is `run_count` and a
  // power of two, always in the same memory, the launch is kept as a graph and repeated.
  virtual Fault Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
                     int32_t most_events) = 0;
  // On kQuery: DeviceModel::Query of pinned requests, [count][D] to pinned memory.
  virtual Fault Query(const DeviceQuery* requests, int32_t count, float* queries) = 0;
  // On kQuery: BulkModel::EncodeWindows of pinned requests and `first` [count + 1], [count][D] to
  // pinned memory.
  virtual Fault EncodeWindows(const DeviceQuery* requests, const int32_t* first, int32_t count,
                              float* queries) = 0;
  // On kRank: ranks as cuda::Rank does, all of whose pointers but `queries` are device memory.
  virtual Fault Rank(const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
                     kernels::Scored* best, int32_t* found) = 0;
  // What is put on `lane` from now on begins once all that is on `first` now is done.
  virtual Fault After(Lane lane, Lane first) = 0;
  // Until all work on the lane is done; `seconds` is what it took on the device since the last
  // Wait.
  virtual Fault Wait(Lane lane, double* seconds) = 0;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_H_
