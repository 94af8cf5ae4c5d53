// The elementary functions of the canonical arithmetic: the same bits from every compiler, CPU and
// GPU. Every fused operation is written out; the compiler must not contract others
// (-ffp-contract=off, --fmad=false), must round division correctly and must keep denormals.
//
// One ulp is the distance of the neighbouring float32 values at the exact result; within the
// denormals it is 2^-149. Bounds are asserted by tests/model/kernel_math_test.cc.
#ifndef TIM4REC_MODEL_KERNELS_MATH_H_
#define TIM4REC_MODEL_KERNELS_MATH_H_

#include <cstdint>
#include <cstring>

// Static, so that no object takes the copy that another compiled for a newer CPU.
#ifdef __CUDACC__
#define TIM4REC_KERNEL_FUNCTION __host__ __device__ static inline
#else
#define TIM4REC_KERNEL_FUNCTION static inline
#endif

namespace tim4rec::kernels {

TIM4REC_KERNEL_FUNCTION float FusedMultiplyAdd(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

TIM4REC_KERNEL_FUNCTION float Divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

TIM4REC_KERNEL_FUNCTION float SquareRoot(float x) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

TIM4REC_KERNEL_FUNCTION uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

TIM4REC_KERNEL_FUNCTION float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

TIM4REC_KERNEL_FUNCTION float Magnitude(float x) { return FloatOf(BitsOf(x) & 0x7fffffffu); }

// exp(x): at most 1 ulp. +inf above 88.7229, 0 below -103.98, NaN for NaN.
// x = n ln2 + r with |r| <= ln2/2; exp(r) = 1 + r + r^2 q(r); the two factors of 2^n make the
// denormal results round once.
TIM4REC_KERNEL_FUNCTION float Exp(float x) {
  x = x < -105.0f ? -105.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = FusedMultiplyAdd(x, 1.44269502f, magic);
  const float n = shifted - magic;
  float r = FusedMultiplyAdd(n, -0.693147182f, x);
  r = FusedMultiplyAdd(n, 1.904654212e-09f, r);
  float p = 1.979006338e-04f;
  p = FusedMultiplyAdd(p, r, 1.394484425e-03f);
  p = FusedMultiplyAdd(p, r, 8.333498612e-03f);
  p = FusedMultiplyAdd(p, r, 4.166629165e-02f);
  p = FusedMultiplyAdd(p, r, 1.666666567e-01f);
  p = FusedMultiplyAdd(p, r, 0.5f);
  p = FusedMultiplyAdd(p, r, 1.0f);
  p = FusedMultiplyAdd(p, r, 1.0f);
  // n + 256 as an unsigned number, halved: exponents of two factors, each within the normal range.
  const uint32_t biased = BitsOf(shifted) - BitsOf(magic) + 256u;
  const uint32_t half = biased >> 1;
  const float factor1 = FloatOf((half - 1u) << 23);
  const float factor2 = FloatOf((biased - half - 1u) << 23);
  return (p * factor1) * factor2;
}

// log(1 + x) for x >= 0: at most 1 ulp. +inf for +inf, NaN for NaN; other x are outside the domain.
// 1 + x = 2^k (1 + m) with m in [-0.25, 0.5), m exact but for one rounding;
// log(1 + m) = m + m^2 q(m).
TIM4REC_KERNEL_FUNCTION float Log1p(float x) {
  const float u = x + 1.0f;
  const uint32_t k_bits = (BitsOf(u) - 0x3f400000u) & 0xff800000u;  // k * 2^23
  const float scale4 = FloatOf(0x40800000u - k_bits);               // 4 * 2^-k
  const float scaled_x = FloatOf(BitsOf(x) - k_bits);               // x * 2^-k
  const float offset = FusedMultiplyAdd(0.25f, scale4, -1.0f);      // 2^-k - 1
  const float m = (k_bits == 0 ? x : scaled_x) + offset;
  float q = -4.645058140e-02f;
  q = FusedMultiplyAdd(q, m, 1.061125323e-01f);
  q = FusedMultiplyAdd(q, m, -1.318997145e-01f);
  q = FusedMultiplyAdd(q, m, 1.446340680e-01f);
  q = FusedMultiplyAdd(q, m, -1.664281636e-01f);
  q = FusedMultiplyAdd(q, m, 1.999129951e-01f);
  q = FusedMultiplyAdd(q, m, -2.500024438e-01f);
  q = FusedMultiplyAdd(q, m, 3.333344460e-01f);
  q = FusedMultiplyAdd(q, m, -0.5f);
  const float log_m = FusedMultiplyAdd(m * m, q, m);
  const float k = static_cast<float>(static_cast<int32_t>(k_bits)) * 1.1920928955078125e-07f;
  const float result = FusedMultiplyAdd(k, 0.693147182f, log_m);
  return x <= 3.40282347e+38f ? result : x;
}

// log(1 + exp(x)): at most 2 ulp. +inf for +inf, 0 for -inf.
TIM4REC_KERNEL_FUNCTION float Softplus(float x) {
  return (x > 0.0f ? x : 0.0f) + Log1p(Exp(-Magnitude(x)));
}

// 1 / (1 + exp(-x)): at most 3 ulp. 1 for +inf, 0 for -inf.
TIM4REC_KERNEL_FUNCTION float Sigmoid(float x) {
  const float e = Exp(-Magnitude(x));
  return Divide(x < 0.0f ? e : 1.0f, 1.0f + e);
}

// x sigmoid(x): at most 4 ulp above -87. NaN for -inf.
TIM4REC_KERNEL_FUNCTION float Silu(float x) { return x * Sigmoid(x); }

// x min(max(x + 3, 0), 6) / 6: at most 3 ulp where x + 3 does not cancel. NaN for -inf.
TIM4REC_KERNEL_FUNCTION float Hardswish(float x) {
  float c = x + 3.0f;
  c = c < 0.0f ? 0.0f : c;
  c = c > 6.0f ? 6.0f : c;
  return x * (c * 0.166666672f);
}

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_MATH_H_
