// math.h on vectors, operation by operation. Included by each file that is compiled for one
// instruction set; everything here has internal linkage, so that none of it is shared with code for
// older CPUs.
#ifndef TIM4REC_MODEL_KERNELS_SIMD_MATH_INL_H_
#define TIM4REC_MODEL_KERNELS_SIMD_MATH_INL_H_

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace tim4rec::kernels {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Bits = hn::RebindToUnsigned<Floats>;
using Ints = hn::RebindToSigned<Floats>;
using V = hn::Vec<Floats>;

constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Floats()));
constexpr Floats kF;
constexpr Bits kU;
constexpr Ints kI;

static_assert(kLanes == 8 || kLanes == 16, "Sum16 below knows these");

HWY_INLINE V Constant(float value) { return hn::Set(kF, value); }

// Below, max(constant, x) and min(constant, x) keep an x that is not a number, as the comparisons
// of math.h do: the x86 instructions return their second operand then.
HWY_INLINE V VecExp(V x) {
  x = hn::Max(Constant(-105.0f), x);
  x = hn::Min(Constant(89.0f), x);
  const V magic = Constant(12582912.0f);
  const V shifted = hn::MulAdd(x, Constant(1.44269502f), magic);
  const V n = hn::Sub(shifted, magic);
  V r = hn::MulAdd(n, Constant(-0.693147182f), x);
  r = hn::MulAdd(n, Constant(1.904654212e-09f), r);
  V p = Constant(1.979006338e-04f);
  p = hn::MulAdd(p, r, Constant(1.394484425e-03f));
  p = hn::MulAdd(p, r, Constant(8.333498612e-03f));
  p = hn::MulAdd(p, r, Constant(4.166629165e-02f));
  p = hn::MulAdd(p, r, Constant(1.666666567e-01f));
  p = hn::MulAdd(p, r, Constant(0.5f));
  p = hn::MulAdd(p, r, Constant(1.0f));
  p = hn::MulAdd(p, r, Constant(1.0f));
  const auto biased = hn::Sub(hn::BitCast(kU, shifted), hn::Set(kU, 0x4b400000u - 256u));
  const auto half = hn::ShiftRight<1>(biased);
  const auto one = hn::Set(kU, 1u);
  const V factor1 = hn::BitCast(kF, hn::ShiftLeft<23>(hn::Sub(half, one)));
  const V factor2 = hn::BitCast(kF, hn::ShiftLeft<23>(hn::Sub(hn::Sub(biased, half), one)));
  return hn::Mul(hn::Mul(p, factor1), factor2);
}

HWY_INLINE V VecLog1p(V x) {
  const V u = hn::Add(x, Constant(1.0f));
  const auto k_bits =
      hn::And(hn::Sub(hn::BitCast(kU, u), hn::Set(kU, 0x3f400000u)), hn::Set(kU, 0xff800000u));
  const V scale4 = hn::BitCast(kF, hn::Sub(hn::Set(kU, 0x40800000u), k_bits));
  const V scaled_x = hn::BitCast(kF, hn::Sub(hn::BitCast(kU, x), k_bits));
  const V offset = hn::MulAdd(Constant(0.25f), scale4, Constant(-1.0f));
  // Where k is 0, scaled_x is x.
  const V m = hn::Add(scaled_x, offset);
  V q = Constant(-4.645058140e-02f);
  q = hn::MulAdd(q, m, Constant(1.061125323e-01f));
  q = hn::MulAdd(q, m, Constant(-1.318997145e-01f));
  q = hn::MulAdd(q, m, Constant(1.446340680e-01f));
  q = hn::MulAdd(q, m, Constant(-1.664281636e-01f));
  q = hn::MulAdd(q, m, Constant(1.999129951e-01f));
  q = hn::MulAdd(q, m, Constant(-2.500024438e-01f));
  q = hn::MulAdd(q, m, Constant(3.333344460e-01f));
  q = hn::MulAdd(q, m, Constant(-0.5f));
  const V log_m = hn::MulAdd(hn::Mul(m, m), q, m);
  const V k =
      hn::Mul(hn::ConvertTo(kF, hn::BitCast(kI, k_bits)), Constant(1.1920928955078125e-07f));
  const V result = hn::MulAdd(k, Constant(0.693147182f), log_m);
  return hn::IfThenElse(hn::Le(x, Constant(3.40282347e+38f)), result, x);
}

HWY_INLINE V VecSoftplus(V x) {
  const V positive = hn::IfThenElseZero(hn::Gt(x, hn::Zero(kF)), x);
  return hn::Add(positive, VecLog1p(VecExp(hn::Neg(hn::Abs(x)))));
}

HWY_INLINE V VecSigmoid(V x) {
  const V one = Constant(1.0f);
  const V e = VecExp(hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(kF)), e, one), hn::Add(one, e));
}

HWY_INLINE V VecSilu(V x) { return hn::Mul(x, VecSigmoid(x)); }

HWY_INLINE V VecHardswish(V x) {
  V c = hn::Add(x, Constant(3.0f));
  c = hn::Max(hn::Zero(kF), c);
  c = hn::Min(Constant(6.0f), c);
  return hn::Mul(x, hn::Mul(c, Constant(0.166666672f)));
}

template <bool kSilu>
HWY_INLINE V Activated(V x) {
  return kSilu ? VecSilu(x) : VecHardswish(x);
}

// ---- Sum16 of kernels.h: 16 partial sums in 16 / kLanes vectors

constexpr int64_t kParts = 16 / kLanes;

struct Partials {
  V p[kParts];
};

HWY_INLINE float FoldPartials(const Partials& partials) {
  const hn::FixedTag<float, 8> f8;
  const hn::FixedTag<float, 4> f4;
#if HWY_TARGET == HWY_AVX2
  const auto v8 = hn::Add(partials.p[0], partials.p[1]);
#else
  const auto v8 = hn::Add(hn::LowerHalf(f8, partials.p[0]), hn::UpperHalf(f8, partials.p[0]));
#endif
  (void)f8;
  auto v4 = hn::Add(hn::LowerHalf(f4, v8), hn::UpperHalf(f4, v8));
  v4 = hn::Add(v4, hn::Shuffle1032(v4));
  v4 = hn::Add(v4, hn::Shuffle2301(v4));
  return hn::GetLane(v4);
}

// The vector at i of a row of n values, zeros from n on. What lies behind a row is not read.
HWY_INLINE V LoadUpTo(const float* row, int64_t i, int64_t n) {
  if (i + kLanes <= n) return hn::LoadU(kF, row + i);
  if (i >= n) return hn::Zero(kF);
  return hn::MaskedLoad(hn::FirstN(kF, static_cast<size_t>(n - i)), kF, row + i);
}

HWY_INLINE void StoreUpTo(V v, float* row, int64_t i, int64_t n) {
  if (i + kLanes <= n) {
    hn::StoreU(v, kF, row + i);
  } else if (i < n) {
    hn::BlendedStore(v, hn::FirstN(kF, static_cast<size_t>(n - i)), kF, row + i);
  }
}

template <typename Op>
HWY_INLINE void Map(const float* v, int64_t n, float* result, Op op) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(op(hn::LoadU(kF, v + i)), kF, result + i);
  if (i < n) StoreUpTo(op(LoadUpTo(v, i, n)), result, i, n);
}

}  // namespace
}  // namespace tim4rec::kernels
HWY_AFTER_NAMESPACE();

#endif  // TIM4REC_MODEL_KERNELS_SIMD_MATH_INL_H_
