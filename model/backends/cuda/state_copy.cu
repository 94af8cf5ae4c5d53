#include <cuda_runtime.h>

#include "model/backends/cuda/state_copy.h"

namespace tim4rec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

Fault Describe(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// A block per record, 16 bytes per thread and pass. `to_slab` picks the direction.
template <bool to_slab>
__global__ void CopyRecords(uint4* __restrict__ slab, uint4* __restrict__ packed,
                            const int32_t* __restrict__ slots, int64_t count, int64_t words) {
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    uint4* in_slab = slab + slots[i] * words;
    uint4* in_packed = packed + i * words;
    for (int64_t w = threadIdx.x; w < words; w += blockDim.x) {
      if constexpr (to_slab) {
        in_slab[w] = in_packed[w];
      } else {
        in_packed[w] = in_slab[w];
      }
    }
  }
}

template <bool to_slab>
Fault Copy(const void* slab, const void* packed, const int32_t* slots, int64_t count,
           int64_t record_bytes) {
  if (count == 0) return nullptr;
  const auto blocks = static_cast<unsigned>(count < kMaxBlocks ? count : kMaxBlocks);
  CopyRecords<to_slab><<<blocks, kThreads>>>(
      static_cast<uint4*>(const_cast<void*>(slab)), static_cast<uint4*>(const_cast<void*>(packed)),
      slots, count, record_bytes / static_cast<int64_t>(sizeof(uint4)));
  if (const Fault fault = Describe(cudaGetLastError()); fault != nullptr) return fault;
  return Describe(cudaDeviceSynchronize());
}

}  // namespace

Fault StartDevice() {
  int devices = 0;
  if (const Fault fault = Describe(cudaGetDeviceCount(&devices)); fault != nullptr) return fault;
  if (devices == 0) return Describe(cudaErrorNoDevice);
  return Describe(cudaSetDevice(0));
}

DeviceMemory::~DeviceMemory() { cudaFree(data_); }

Fault DeviceMemory::Allocate(size_t bytes) {
  cudaFree(data_);
  data_ = nullptr;
  return Describe(cudaMalloc(&data_, bytes));
}

Fault DeviceMemory::Upload(const void* host, size_t bytes) {
  return Describe(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice));
}

Fault DeviceMemory::Download(void* host, size_t bytes) const {
  return Describe(cudaMemcpy(host, data_, bytes, cudaMemcpyDeviceToHost));
}

Fault GatherRecords(const void* slab, const int32_t* slots, int64_t count, int64_t record_bytes,
                    void* packed) {
  return Copy<false>(slab, packed, slots, count, record_bytes);
}

Fault ScatterRecords(const void* packed, const int32_t* slots, int64_t count, int64_t record_bytes,
                     void* slab) {
  return Copy<true>(slab, packed, slots, count, record_bytes);
}

}  // namespace tim4rec::cuda
