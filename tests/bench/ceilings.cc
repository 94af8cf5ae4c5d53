#include "tests/bench/ceilings.h"

#include <benchmark/benchmark.h>

#include <time.h>
#include <cstring>
#include <string_view>
#include <vector>

namespace tim4rec {
namespace {

constexpr int kChains = 12;
constexpr int kRounds = 20'000;

#if defined(__x86_64__)
typedef float Float16 __attribute__((vector_size(64)));
typedef float Float8 __attribute__((vector_size(32)));

__attribute__((target("avx512f"))) void Fma512() {
  Float16 sum[kChains] = {};
  Float16 factor = {};
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      asm volatile("vfmadd231ps %1, %1, %0" : "+v"(sum[c]) : "v"(factor));
    }
  }
}

__attribute__((target("avx2,fma"))) void Fma256() {
  Float8 sum[kChains] = {};
  Float8 factor = {};
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      asm volatile("vfmadd231ps %1, %1, %0" : "+x"(sum[c]) : "x"(factor));
    }
  }
}
#endif

constexpr size_t kBufferBytes = size_t{256} << 20;

std::vector<uint64_t>& Buffer(int i) {
  static std::vector<uint64_t> buffers[2] = {std::vector<uint64_t>(kBufferBytes / 8, 1),
                                             std::vector<uint64_t>(kBufferBytes / 8, 2)};
  return buffers[i];
}

}  // namespace

int64_t MultiplyAddInRegisters(const char* isa) {
  int64_t lanes = 1;
#if defined(__x86_64__)
  if (isa == std::string_view("avx512")) {
    Fma512();
    lanes = 16;
  } else if (isa == std::string_view("avx2")) {
    Fma256();
    lanes = 8;
  }
#endif
  if (lanes == 1) {
    for (int i = 0; i < kRounds * kChains; ++i) {
      float sum = static_cast<float>(i);
      benchmark::DoNotOptimize(sum = sum * sum + sum);
    }
  }
  return 2 * lanes * kChains * kRounds;
}

int64_t CopyMemory() {
  std::memcpy(Buffer(1).data(), Buffer(0).data(), kBufferBytes);
  benchmark::ClobberMemory();
  return 2 * static_cast<int64_t>(kBufferBytes);
}

int64_t ReadMemory() {
  typedef uint64_t Words __attribute__((vector_size(32)));
  const auto* at = reinterpret_cast<const char*>(Buffer(0).data());
  const char* const end = at + kBufferBytes;
  Words sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  const auto load = [](const char* from) {
    Words value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  };
  for (; at != end; at += 4 * sizeof(Words)) {
    sum0 += load(at);
    sum1 += load(at + sizeof(Words));
    sum2 += load(at + 2 * sizeof(Words));
    sum3 += load(at + 3 * sizeof(Words));
  }
  const Words sum = (sum0 + sum1) + (sum2 + sum3);
  benchmark::DoNotOptimize(sum[0] + sum[1] + sum[2] + sum[3]);
  return static_cast<int64_t>(kBufferBytes);
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace tim4rec
