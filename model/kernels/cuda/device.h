// What kernel sources are written in: CUDA as nvcc compiles it, or the same source as plain C++
// whose threads run on the host, where tests/gpu/host_device.h is included before anything else.
// For that, a kernel source
//   - launches through Launch, never by <<<>>>;
//   - takes all its shared memory dynamically, from SharedMemory;
//   - puts instructions that only the device has behind a function of this header, or behind
//     #ifdef __CUDA_ARCH__ beside the same in C++.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_DEVICE_H_
#define TIM4REC_MODEL_KERNELS_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#elif !defined(TIM4REC_HOST_DEVICE)
#error "a kernel source needs nvcc, or tests/gpu/host_device.h included first"
#endif

#include "model/kernels/cuda/fault.h"

namespace tim4rec::cuda {

inline Fault Describe(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

struct Grid {
  unsigned blocks = 1;
  unsigned threads = 1;  // of a block
  size_t shared_bytes = 0;
};

// Starts `kernel` on the stream and returns at once; reports a launch that is refused. A fault
// while it runs is reported by a later call of the runtime.
template <typename... Parameters, typename... Arguments>
Fault Launch(void (*kernel)(Parameters...), const Grid& grid, Stream stream,
             const Arguments&... arguments) {
  constexpr size_t kWithoutAsking = 48 << 10;  // a kernel that takes more must say so
  if (grid.shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(grid.shared_bytes));
    if (error != cudaSuccess) return Describe(error);
  }
#ifdef __CUDACC__
  kernel<<<grid.blocks, grid.threads, grid.shared_bytes, stream>>>(
      static_cast<Parameters>(arguments)...);
#else
  static_cast<void>(stream);
  host_device::RunGrid(grid.blocks, grid.threads, grid.shared_bytes,
                       [&] { kernel(static_cast<Parameters>(arguments)...); });
#endif
  return Describe(cudaGetLastError());
}

// The block's dynamic shared memory, 16-byte aligned; undefined when the kernel starts.
template <typename T>
__device__ inline T* SharedMemory() {
#ifdef __CUDACC__
  extern __shared__ uint4 shared[];
  return reinterpret_cast<T*>(shared);
#else
  return reinterpret_cast<T*>(host_device::SharedBytes());
#endif
}

// Brings [at, at + bytes) into the second-level cache, by whichever threads call it: each one its
// own range. 16-byte aligned, a multiple of 16 bytes.
__device__ inline void PrefetchToL2(const void* at, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(at)),
               "r"(bytes)
               : "memory");
#elif defined(__CUDA_ARCH__)
  constexpr uint32_t kLine = 128;
  for (uint32_t i = 0; i < bytes; i += kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(
        __cvta_generic_to_global(static_cast<const char*>(at) + i)));
  }
#elif defined(TIM4REC_HOST_DEVICE)
  host_device::CheckPrefetch(at, bytes);
#endif
}

// 16 bytes from global to shared memory, both so aligned, without waiting.
__device__ inline void CopyAsync16(void* shared, const void* global) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#elif defined(TIM4REC_HOST_DEVICE)
  host_device::BeginCopy16(shared, global);
#endif
}

// Ends a group of this thread's copies.
__device__ inline void CommitCopies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(TIM4REC_HOST_DEVICE)
  host_device::CommitCopies();
#endif
}

// Waits until at most the `pending` latest groups of this thread's copies are under way. Other
// threads see what has arrived after a barrier.
template <int pending>
__device__ inline void AwaitCopies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#elif defined(TIM4REC_HOST_DEVICE)
  host_device::AwaitCopies(pending);
#endif
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_DEVICE_H_
