// The chunked masked SSD: the recurrence of rules 9 and 10 of kernels.h for whole sequences on
// matrix units, for work whose states are not kept. Within a chunk of Q events
//
//   y_i = sum_{j <= i} M_ij (C_i . B_j) Delta_j x_j + M_i0 C_i S + D x_i,   M_ij = exp(l_{j+1} + …
//   + l_i)
//
// and S, the state before the chunk, becomes M_Q0 S + sum_j M_Qj Delta_j B_j x_j. The mask M is
// made in registers from differences of cumulative logarithms l = A Delta - lambda <= 0 in fixed
// point (base 2, 17 bits after the point, each l at least -160): differences are exact, so that
// neither a gap of years before them nor their number takes any precision from close events, and no
// exponential is above 1.
//
// PRECISION. Operands are rounded to tf32 (10 bits), sums are float32: bfloat16 would be twice as
// fast where memory is not the limit, which it is here, and 8 times as coarse. Four roundings of
// 2^-11 reach a product of C, B, Delta x or of C, S, x, so
//   |y - exact| <= 5 2^-11 sum of the magnitudes of all products,
// the fifth part covering the mask (2^-17) and float32 sums.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_BULK_SSD_H_
#define TIM4REC_MODEL_KERNELS_CUDA_BULK_SSD_H_

#include <cstdint>

#include "model/kernels/cuda/fault.h"

namespace tim4rec::cuda {

// All pointers are device memory. T events of `count` sequences lie one after the other: sequence i
// is events first[i] … first[i+1] - 1, and may be empty.
struct BulkSsd {
  int32_t count, h, p, n;  // H heads of P, state width N: any
  const int32_t* first;    // [count + 1]
  const float *x, *b, *c;  // [T] rows of x [H][P], B [N] and C [N], `stride` floats apart
  int64_t stride;
  const float* delta;      // [T][H], >= 0
  const float* log_carry;  // [T][H]: l, <= 0
  const float* skip;       // [H]: D
  const float* initial;    // [count][H][N][P]: states before; null: zeros
  float* final;            // [count][H][N][P]: states after; null: not wanted
  float* y;                // [T] rows of [H][P], `y_stride` floats apart
  int64_t y_stride;
};

// Puts it on the stream. Deterministic: a sequence's results do not depend on the others.
Fault RunBulkSsd(const BulkSsd& arguments, Stream stream);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_BULK_SSD_H_
