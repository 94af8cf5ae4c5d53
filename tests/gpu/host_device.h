// A GPU in one host thread, for tests: kernel sources are compiled as C++ with this header included
// first (-include), and their threads run as fibers, a block at a time. Correctness only.
//
// What it finds, each ending the process with a text that names the block, the thread and the line:
//   - barriers that not all threads of a block reach, or reach at different lines; warp functions
//     that not all lanes of their mask reach; any other deadlock;
//   - shared memory read before it is written (poisoned with 0xff before every block) and written
//     beyond its end (guard bands; with the address sanitizer, at the access);
//   - copies (CopyAsync16) whose bytes are used before they are awaited: they arrive only then;
//   - device memory that is written beyond its end, when it is freed; fresh memory is poisoned.
// What it makes likely to be found: missing barriers, since blocks and threads take turns in a
// random order, and about half of a block's warps lag behind the others as far as barriers let
// them. TIM4REC_SEED sets the order's seed, else it is fixed; SetSeed changes it.
//
// Not there: blocks that wait for each other, streams that run later (every call is finished when
// it returns), memory spaces (any pointer is good anywhere). Launches of several host threads take
// turns.
#ifndef TIM4REC_TESTS_GPU_HOST_DEVICE_H_
#define TIM4REC_TESTS_GPU_HOST_DEVICE_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#define TIM4REC_HOST_DEVICE

// ---- the language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)

#define threadIdx (::tim4rec::host_device::ThreadIndex())
#define blockIdx (::tim4rec::host_device::BlockIndex())
#define blockDim (::tim4rec::host_device::BlockSize())
#define gridDim (::tim4rec::host_device::GridSize())

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace tim4rec::host_device {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

using Where = std::source_location;

const Index& ThreadIndex();
const Index& BlockIndex();
const Index& BlockSize();
const Index& GridSize();
void* SharedBytes();

void SetSeed(uint64_t seed);
// Runs `body` once for every thread of every block.
void RunGrid(unsigned blocks, unsigned threads, size_t shared_bytes,
             const std::function<void()>& body);

void AwaitBlock(Where where);
// Gives `value` to the other lanes of `mask` and waits for theirs: returns what lane i gave at [i],
// 0 for lanes outside the mask. Valid until the thread's next call.
const uint64_t* Exchange(unsigned mask, uint64_t value, Where where);

void CheckPrefetch(const void* at, size_t bytes);
void BeginCopy16(void* shared, const void* global);
void CommitCopies();
void AwaitCopies(int pending);

// Ends the process, naming the thread that calls.
[[noreturn]] void Fail(const char* what, Where where = Where::current());

template <typename T>
uint64_t ToBits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T FromBits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int Lane() { return static_cast<int>(ThreadIndex().x % 32); }

// The lane's own value where `source` leaves its group of `width`, as on the device.
template <typename T>
T Shuffle(unsigned mask, T value, int source, int width, Where where) {
  const uint64_t* given = Exchange(mask, ToBits(value), where);
  const int group = Lane() / width * width;
  if (source < group || source >= group + width) return value;
  if ((mask >> source & 1) == 0) Fail("a shuffle reads a lane outside its mask", where);
  return FromBits<T>(given[source]);
}

}  // namespace tim4rec::host_device

// ---- barriers and warp functions

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  tim4rec::host_device::AwaitBlock(where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  tim4rec::host_device::Exchange(mask, 0, where);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location where = std::source_location::current()) {
  const int group = tim4rec::host_device::Lane() / width * width;
  return tim4rec::host_device::Shuffle(mask, value, group + (source & (width - 1)), width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location where = std::source_location::current()) {
  const int source = tim4rec::host_device::Lane() + static_cast<int>(delta);
  return tim4rec::host_device::Shuffle(mask, value, source, width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 std::source_location where = std::source_location::current()) {
  const int source = tim4rec::host_device::Lane() - static_cast<int>(delta);
  return tim4rec::host_device::Shuffle(mask, value, source, width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  std::source_location where = std::source_location::current()) {
  return tim4rec::host_device::Shuffle(mask, value, tim4rec::host_device::Lane() ^ lanes, width,
                                       where);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              std::source_location where = std::source_location::current()) {
  const uint64_t* given = tim4rec::host_device::Exchange(mask, predicate ? 1 : 0, where);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= given[i] != 0 ? 1u << i : 0;
  return result;
}
inline bool __any_sync(unsigned mask, bool predicate,
                       std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline bool __all_sync(unsigned mask, bool predicate,
                       std::source_location where = std::source_location::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}

// ---- functions

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
void __stcg(T* at, T value) {
  *at = value;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __float_as_int(float x) {
  return tim4rec::host_device::FromBits<int>(tim4rec::host_device::ToBits(x));
}
inline unsigned __float_as_uint(float x) {
  return tim4rec::host_device::FromBits<unsigned>(tim4rec::host_device::ToBits(x));
}
inline float __int_as_float(int x) {
  return tim4rec::host_device::FromBits<float>(tim4rec::host_device::ToBits(x));
}
inline float __uint_as_float(unsigned x) {
  return tim4rec::host_device::FromBits<float>(tim4rec::host_device::ToBits(x));
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// One fiber runs at a time, so that plain code is atomic.
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = before < value ? value : before;
  return before;
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = value < before ? value : before;
  return before;
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = before | value;
  return before;
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  const T before = *at;
  *at = value;
  return before;
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T before = *at;
  if (before == expected) *at = value;
  return before;
}

// ---- the runtime, as far as our sources use it

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

cudaError_t cudaMalloc(void** at, size_t bytes);
cudaError_t cudaFree(void* at);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* at, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
// 8 multiprocessors of 227 KiB.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
const char* cudaGetErrorString(cudaError_t error);

#endif  // TIM4REC_TESTS_GPU_HOST_DEVICE_H_
