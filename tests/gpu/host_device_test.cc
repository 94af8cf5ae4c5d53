// The device on the host itself: it computes what a GPU does, and finds the faults that it names.
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "model/kernels/cuda/device.h"

namespace tim4rec {
namespace {

// Each block reverses its part through shared memory.
__global__ void Reverse(const int32_t* in, int32_t* out, bool barrier) {
  auto* shared = cuda::SharedMemory<int32_t>();
  const unsigned base = blockIdx.x * blockDim.x;
  shared[threadIdx.x] = in[base + threadIdx.x];
  if (barrier) __syncthreads();
  out[base + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

std::vector<int32_t> RunReverse(bool barrier, size_t shared_bytes = 100 * sizeof(int32_t)) {
  std::vector<int32_t> in(300), out(300);
  for (int32_t i = 0; i < 300; ++i) in[static_cast<size_t>(i)] = i;
  EXPECT_EQ(cuda::Launch(Reverse, {3, 100, shared_bytes}, nullptr, in.data(), out.data(), barrier),
            nullptr);
  return out;
}

TEST(HostDevice, RunsThreadsOfAllBlocks) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    host_device::SetSeed(seed);
    const std::vector<int32_t> out = RunReverse(/*barrier=*/true);
    for (int32_t i = 0; i < 300; ++i) {
      ASSERT_EQ(out[static_cast<size_t>(i)], i / 100 * 100 + 99 - i % 100);
    }
  }
}

TEST(HostDevice, ShowsAMissingBarrier) {
  host_device::SetSeed(1);
  const std::vector<int32_t> right = RunReverse(/*barrier=*/true);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    host_device::SetSeed(seed);
    EXPECT_NE(RunReverse(/*barrier=*/false), right);
  }
}

__global__ void WarpFunctions(uint32_t* out) {
  const unsigned lane = threadIdx.x % 32;
  uint32_t* at = out + threadIdx.x * 8;
  at[0] = __shfl_sync(0xffffffffu, threadIdx.x, 5);
  at[1] = __shfl_down_sync(0xffffffffu, threadIdx.x, 3, 16);
  at[2] = __shfl_up_sync(0xffffffffu, threadIdx.x, 3);
  at[3] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 9);
  at[4] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  if (lane < 8) {
    at[5] = __shfl_xor_sync(0x000000ffu, threadIdx.x, 1);
  } else {
    at[5] = __shfl_xor_sync(0xffffff00u, threadIdx.x, 2);
  }
  at[6] = __any_sync(0xffffffffu, lane == 7) ? 1 : 0;
  at[7] = __all_sync(0xffffffffu, lane != 7) ? 1 : 0;
}

TEST(HostDevice, WarpFunctionsGiveWhatADeviceGives) {
  std::vector<uint32_t> out(64 * 8);
  ASSERT_EQ(cuda::Launch(WarpFunctions, {1, 64, 0}, nullptr, out.data()), nullptr);
  for (uint32_t i = 0; i < 64; ++i) {
    const uint32_t* at = out.data() + i * 8;
    const uint32_t warp = i / 32 * 32, lane = i % 32;
    ASSERT_EQ(at[0], warp + 5);
    ASSERT_EQ(at[1], lane % 16 + 3 < 16 ? i + 3 : i);
    ASSERT_EQ(at[2], lane >= 3 ? i - 3 : i);
    ASSERT_EQ(at[3], warp + (lane ^ 9));
    ASSERT_EQ(at[4], 0x49249249u);
    ASSERT_EQ(at[5], lane < 8 ? i ^ 1 : i ^ 2);
    ASSERT_EQ(at[6], 1u);
    ASSERT_EQ(at[7], 0u);
  }
}

__global__ void CopyThrough(const uint4* in, uint4* out, bool awaits) {
  auto* shared = cuda::SharedMemory<uint4>();
  cuda::CopyAsync16(&shared[threadIdx.x], &in[threadIdx.x]);
  cuda::CommitCopies();
  cuda::CopyAsync16(&shared[32 + threadIdx.x], &in[32 + threadIdx.x]);
  cuda::CommitCopies();
  if (awaits) cuda::AwaitCopies<1>();
  __syncthreads();
  out[31 - threadIdx.x] = shared[31 - threadIdx.x];
  cuda::AwaitCopies<0>();
  __syncthreads();
  out[63 - threadIdx.x] = shared[63 - threadIdx.x];
}

TEST(HostDevice, CopiesArriveWhenAwaited) {
  std::vector<uint32_t> in(256), out(256);
  for (uint32_t i = 0; i < 256; ++i) in[i] = i;
  const auto run = [&](bool awaits) {
    ASSERT_EQ(
        cuda::Launch(CopyThrough, {1, 32, 1024}, nullptr, reinterpret_cast<const uint4*>(in.data()),
                     reinterpret_cast<uint4*>(out.data()), awaits),
        nullptr);
  };
  run(true);
  EXPECT_EQ(out, in);
  run(false);
  EXPECT_NE(out, in);
}

__global__ void DivergeAtBarrier() {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void DivergeInWarp(float* out) {
  if (threadIdx.x != 3) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  if (threadIdx.x == 3) __syncthreads();
}

__global__ void WriteBeyondShared() { cuda::SharedMemory<char>()[100] = 1; }

TEST(HostDeviceDeathTest, NamesFaults) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(static_cast<void>(cuda::Launch(DivergeAtBarrier, {1, 64, 0}, nullptr)),
               "barriers of different lines");
  std::vector<float> out(32);
  EXPECT_DEATH(static_cast<void>(cuda::Launch(DivergeInWarp, {1, 32, 0}, nullptr, out.data())),
               "deadlock in block 0");
  EXPECT_DEATH(static_cast<void>(cuda::Launch(WriteBeyondShared, {1, 32, 100}, nullptr)),
               "beyond its shared memory|use-after-poison");
}

__global__ void ReadUnwritten(uint32_t* out) { *out = *cuda::SharedMemory<uint32_t>(); }

TEST(HostDevice, PoisonsSharedAndFreshMemory) {
  uint32_t* out = nullptr;
  ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&out), sizeof(*out)), cudaSuccess);
  EXPECT_EQ(*out, 0xffffffffu);
  *out = 0;
  ASSERT_EQ(cuda::Launch(ReadUnwritten, {1, 1, 16}, nullptr, out), nullptr);
  EXPECT_EQ(*out, 0xffffffffu);
  EXPECT_EQ(cudaFree(out), cudaSuccess);
  EXPECT_EQ(cudaFree(out + 1), cudaErrorInvalidValue);
}

__global__ void Count(uint32_t* total) { atomicAdd(total, threadIdx.x); }

TEST(HostDevice, AddsAtomically) {
  uint32_t total = 0;
  ASSERT_EQ(cuda::Launch(Count, {4, 100, 0}, nullptr, &total), nullptr);
  EXPECT_EQ(total, 4u * 4950u);
}

}  // namespace
}  // namespace tim4rec
