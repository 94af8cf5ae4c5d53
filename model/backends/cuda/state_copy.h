// Moves state records between the device's slab and packed buffers. Plain C++: neither this header
// nor its source includes anything but the CUDA runtime and the standard library.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_STATE_COPY_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_STATE_COPY_H_

#include <cstddef>
#include <cstdint>

namespace tim4rec::cuda {

// Null if all went well, else the runtime's or driver's own text for what went wrong.
using Fault = const char*;

// Whether device 0 can be used: starts it.
Fault StartDevice();

// Device memory. Contents are undefined at first.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  Fault Allocate(size_t bytes);
  Fault Upload(const void* host, size_t bytes);
  Fault Download(void* host, size_t bytes) const;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// packed[i] = slab[slots[i]] for i < count; all pointers on the device. Records are 16-byte aligned
// and `record_bytes` is a multiple of 16. Returns once the copy is done; reports a failed launch
// and a failed run.
Fault GatherRecords(const void* slab, const int32_t* slots, int64_t count, int64_t record_bytes,
                    void* packed);
// slab[slots[i]] = packed[i]; the slots are distinct.
Fault ScatterRecords(const void* packed, const int32_t* slots, int64_t count, int64_t record_bytes,
                     void* slab);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_STATE_COPY_H_
