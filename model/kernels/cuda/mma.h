// Matrix instructions of a warp. All 32 lanes call them together; the layouts are those of PTX's
// mma.sync fragments. Lane l is (g, t) = (l / 4, l % 4).
#ifndef TIM4REC_MODEL_KERNELS_CUDA_MMA_H_
#define TIM4REC_MODEL_KERNELS_CUDA_MMA_H_

#include "model/kernels/cuda/device.h"

namespace tim4rec::cuda {

// d = c + a b, exact: a [16][32] and b [32][8] signed bytes, c and d [16][8] int32.
// a: rows g, g + 8, g, g + 8 at k = 4 t, 4 t, 16 + 4 t, 16 + 4 t, four bytes each; b: column g at
// k = 4 t and 16 + 4 t; c, d: row g columns 2 t and 2 t + 1, then row g + 8.
__device__ inline void MmaInt8(int (&d)[4], const uint4& a, const uint2& b, const int (&c)[4]) {
#ifdef __CUDA_ARCH__
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
#elif defined(TIM4REC_HOST_DEVICE)
  const auto pair = [](unsigned low, unsigned high) { return uint64_t{high} << 32 | low; };
  const auto give = [](uint64_t value, uint64_t(&from)[32]) {
    const uint64_t* given =
        host_device::Exchange(0xffffffffu, value, host_device::Where::current());
    for (int i = 0; i < 32; ++i) from[i] = given[i];
  };
  uint64_t low[32], high[32], columns[32];
  give(pair(a.x, a.y), low);
  give(pair(a.z, a.w), high);
  give(pair(b.x, b.y), columns);
  const int g = host_device::Lane() / 4, t = host_device::Lane() % 4;
  const auto byte = [](uint64_t word, int at) {
    return static_cast<int>(static_cast<int8_t>(word >> (8 * at)));
  };
  for (int i = 0; i < 4; ++i) {
    const int row_word = i / 2 * 4, column = 2 * t + i % 2;
    int sum = c[i];
    for (int from = 0; from < 4; ++from) {
      for (int k = 0; k < 4; ++k) {
        const uint64_t values = columns[column * 4 + from];
        sum += byte(low[g * 4 + from], row_word + k) * byte(values, k);
        sum += byte(high[g * 4 + from], row_word + k) * byte(values, 4 + k);
      }
    }
    d[i] = sum;
  }
#endif
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_MMA_H_
