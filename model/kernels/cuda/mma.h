// Matrix instructions of a warp. All 32 lanes call them together; the layouts are those of PTX's
// mma.sync fragments. Lane l is (g, t) = (l / 4, l % 4).
#ifndef TIM4REC_MODEL_KERNELS_CUDA_MMA_H_
#define TIM4REC_MODEL_KERNELS_CUDA_MMA_H_

#include "model/kernels/cuda/device.h"
#include "model/kernels/math.h"

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

// The nearest value with ten bits after the point (ties away from zero): |error| <= 2^-11 |x|.
__host__ __device__ inline float RoundToTf32(float x) {
#ifdef __CUDA_ARCH__
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
#else
  return kernels::FloatOf((kernels::BitsOf(x) + 0x1000u) & ~0x1fffu);
#endif
}

// d += a b: a [16][8] and b [8][8] rounded by RoundToTf32, d [16][8]; products are exact, sums
// about float32's. a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g); d as
// MmaInt8.
__device__ inline void MmaTf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#ifdef __CUDA_ARCH__
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#elif defined(TIM4REC_HOST_DEVICE)
  float from[3][32][2];
  const float own[3][2] = {{a[0], a[1]}, {a[2], a[3]}, {b[0], b[1]}};
  for (int part = 0; part < 3; ++part) {
    const float2 pair = {own[part][0], own[part][1]};
    const uint64_t* given = host_device::Exchange(0xffffffffu, host_device::ToBits(pair),
                                                  host_device::Where::current());
    for (int i = 0; i < 32; ++i) std::memcpy(from[part][i], &given[i], sizeof(from[part][i]));
  }
  const int g = host_device::Lane() / 4, t = host_device::Lane() % 4;
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 8; ++k) {
      const float left = from[k / 4][g * 4 + k % 4][i / 2];
      const float right = from[2][(2 * t + i % 2) * 4 + k % 4][k / 4];
      d[i] += left * right;
    }
  }
#endif
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_MMA_H_
