// Times exact ranking on a GPU (goal G4), with its ceilings in the same run. One line of JSON each:
// median and range of the milliseconds of `rounds` rounds, events around graph replays over
// rotating queries. Usage: bench_rank [rounds]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "model/kernels/cuda/mma.h"
#include "model/kernels/cuda/rank.h"
#include "tests/gpu/bench_timing.h"
#include "tests/gpu/device_array.h"

namespace tim4rec::cuda {
namespace {

constexpr int kThreads = 256;

// About normal, from a hash of the index.
__global__ void FillNormal(float* values, int64_t count, uint64_t seed) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += stride) {
    uint64_t x = (static_cast<uint64_t>(i) + seed) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    float sum = 0;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>(x >> (16 * part) & 0xffff) / 65536.0f - 0.5f;
    }
    values[i] = sum * 1.7320508f;
  }
}

// The least that a pass over a table costs: all bytes are read, in 16 per thread and load.
__global__ void __launch_bounds__(kThreads)
    ReadAll(const uint4* words, int64_t count, uint32_t* result) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t bits = 0;
  int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = __ldg(words + i), b = __ldg(words + i + stride);
    const uint4 c = __ldg(words + i + 2 * stride), d = __ldg(words + i + 3 * stride);
    bits ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
    bits ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += stride) bits ^= __ldg(words + i).x;
  if (bits == 0x12345678u) *result = bits;  // so that the loads are not left out
}

// Matrix instructions alone: eight independent chains of each warp.
__global__ void __launch_bounds__(kThreads) MultiplyAll(int rounds, int* result) {
  int sums[8][4] = {};
  const uint4 a = make_uint4(threadIdx.x, 2, 3, 4);
  const uint2 b = make_uint2(threadIdx.x, 5);
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < 8; ++chain) MmaInt8(sums[chain], a, b, sums[chain]);
  }
  int all = 0;
  for (const auto& sum : sums) all ^= sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  if (all == 0x12345678) *result = all;
}

void BenchTable(cudaStream_t stream, int rounds, int32_t items, const std::vector<int32_t>& counts,
                const std::vector<int32_t>& ks) {
  constexpr int32_t kD = 64;
  const unsigned blocks = 2 * Processors();
  DeviceArray<float> embedding(static_cast<size_t>(items) * kD);
  FillNormal<<<4 * blocks, kThreads, 0, stream>>>(embedding.data(), int64_t{items} * kD, 1);
  DeviceArray<uint8_t> memory(static_cast<size_t>(ItemTableBytes(items, kD)));
  ItemTable table;
  Check(BuildItemTable(embedding.data(), items, kD, memory.data(), stream, &table));
  const int64_t table_bytes = int64_t{items} * (kD + 4);
  DeviceArray<uint32_t> sink(1);
  const Times pass = Measure(stream, rounds, [&](int) {
    ReadAll<<<4 * blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(memory.data()),
                                                 table_bytes / 16, sink.data());
  });
  Print("empty pass over " + std::to_string(items) + " items", pass,
        Number("GB/s", static_cast<double>(table_bytes) / pass.median / 1e6));

  for (const int32_t count : counts) {
    for (const int32_t k : ks) {
      const RankMemory needed = RankMemoryFor(table, count, k);
      DeviceArray<float> vectors(static_cast<size_t>(kSets) * count * kD);
      FillNormal<<<blocks, kThreads, 0, stream>>>(vectors.data(), int64_t{kSets} * count * kD, 777);
      DeviceArray<uint8_t> device(static_cast<size_t>(needed.device_bytes));
      DeviceArray<kernels::Scored> best(static_cast<size_t>(count) * k);
      DeviceArray<int32_t> found(static_cast<size_t>(count));
      std::vector<void*> staging(kSets);
      for (void*& host : staging) {
        Check(Describe(cudaMallocHost(&host, static_cast<size_t>(needed.host_bytes))));
      }
      const Times times = Measure(stream, rounds, [&](int set) {
        std::vector<kernels::TopKQuery> queries(static_cast<size_t>(count));
        for (int32_t q = 0; q < count; ++q) {
          queries[static_cast<size_t>(q)] = {};
          queries[static_cast<size_t>(q)].query =
              vectors.data() + (static_cast<int64_t>(set) * count + q) * kD;
          queries[static_cast<size_t>(q)].k = k;
        }
        Check(Rank(table, queries.data(), count, k, staging[static_cast<size_t>(set)],
                   device.data(), stream, best.data(), found.data()));
      });
      int32_t exactly = 0;
      Check(Describe(cudaMemcpy(&exactly, device.data(), sizeof(exactly), cudaMemcpyDeviceToHost)));
      for (void* host : staging) cudaFreeHost(host);
      const double operations = 2.0 * count * items * kD;
      Print("rank B=" + std::to_string(count) + " V=" + std::to_string(items) +
                " k=" + std::to_string(k),
            times,
            Number("times an empty pass", times.median / pass.median) +
                Number("TOP/s", operations / times.median / 1e9) +
                Number("ranked exactly", exactly));
    }
  }
}

void Bench(int rounds) {
  cudaStream_t stream;
  Check(Describe(cudaStreamCreate(&stream)));
  {
    constexpr size_t kBytes = size_t{1} << 30;
    DeviceArray<uint8_t> from(kBytes), to(kBytes);
    const Times copy = Measure(stream, rounds, [&](int) {
      Check(Describe(
          cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream)));
    });
    Print("copy of 1 GiB", copy, Number("GB/s", 2.0 * kBytes / copy.median / 1e6));
  }
  {
    constexpr int kRounds = 4096;
    const unsigned blocks = 4 * Processors();
    DeviceArray<int> sink(1);
    const Times all = Measure(stream, rounds, [&](int) {
      MultiplyAll<<<blocks, kThreads, 0, stream>>>(kRounds, sink.data());
    });
    const double operations = 2.0 * 16 * 8 * 32 * 8 * kRounds * blocks * (kThreads / 32);
    Print("int8 matrix instructions alone", all, Number("TOP/s", operations / all.median / 1e9));
  }
  BenchTable(stream, rounds, 1'000'000, {1, 16, 256, 4096}, {100});
  BenchTable(stream, rounds, 1'000'000, {256}, {1000});
  BenchTable(stream, rounds, 10'000'000, {1, 16}, {100});
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace tim4rec::cuda

int main(int argc, char** argv) {
  if (!tim4rec::cuda::HasDevice()) return 77;
  tim4rec::cuda::Bench(argc > 1 ? std::atoi(argv[1]) : 15);
  return 0;
}
