// The item table for exact ranking: one byte per value finds the few items that can be among the
// best, float32 scores decide.
//
// WHY THE RESULT IS EXACT. Item v's values are e_i, its codes q_i (integers, |q_i| <= 127) and its
// scale s > 0; a query's values are x_i, its codes p_i (as many levels as its sums are exact with:
// |p_i| <= 127 with VNNI, 31 with AVX2) and its scale t > 0. With norms Euclidean,
// residual >= |e - s q| / s and code_norm >= |q| for all items, Cauchy and Schwarz give
//
//   |x.e - t s (p.q)|  =  |x.(e - s q) + (x - t p).(s q)|  <=  s (|x| residual + |x - t p|
//   code_norm)
//
// The canonical score, D roundings of partial sums each at most |x| |e|, differs from x.e by at
// most g |x| |e| <= g |x| s (residual + code_norm), g = D 2^-24 / (1 - D 2^-24), or in the
// denormals by D 2^-149. So with c the sum of these bounds over s, no score is above
//
//   bound_v = s (t (p.q) + c)
//
// which is computed in float32 with three roundings: c is raised by 2^-20 of (|x| code_norm + c),
// more than they can take away, and by 2^-50, more than denormals can, since s >= 2^-80. An item is
// left out only if bound_v is below the k-th best score known at that time, so no item that is
// among the best k, or ties with the last of them, is ever left out. Where a sum could overflow or
// is not a number, c is infinite and nothing is left out.
//
// What a query adds to an item's score is added to its bound too: score <= bound_v, both float32,
// and rounding is monotone, so that the sums keep their order.
#ifndef TIM4REC_MODEL_KERNELS_RANK_TABLE_H_
#define TIM4REC_MODEL_KERNELS_RANK_TABLE_H_

#include <cstdint>

#include "model/kernels/kernels.h"
#include "model/kernels/math.h"

namespace tim4rec::kernels {

// Bytes per item: D rounded up to 4, and 4 for the scale. The embedding is read for the few items
// that are scored, where the package maps it.
struct RankTable {
  int32_t items, d;
  const float* embedding;  // [V][D]
  const uint8_t* codes;    // [ceil(V/16)][ceil(D/4)][16][4], q + 128; 64-byte aligned
  const float* scales;     // [ceil(V/16)][16], s; zeros after the last item
  float residual, code_norm, largest_scale;
};

int64_t RankCodes(int32_t items, int32_t d);  // bytes
int64_t RankScales(int32_t items);            // floats
// Writes codes and scales; `embedding` is finite.
RankTable QuantizeItems(const float* embedding, int32_t items, int32_t d, uint8_t* codes,
                        float* scales);

// c, for a query with norms |x| <= `norm` and |x - t p| <= `difference`.
TIM4REC_KERNEL_FUNCTION float RankSlack(double norm, double difference, float residual,
                                        float code_norm, int32_t d) {
  const double roundings = 0x1p-24 * d;
  const double spread = static_cast<double>(residual) + static_cast<double>(code_norm);
  const double slack = norm * static_cast<double>(residual) +
                       difference * static_cast<double>(code_norm) +
                       roundings / (1 - roundings) * norm * spread;
  // The scale's own product sum is at most 2 norm code_norm.
  const double raised = slack + 0x1p-20 * (norm * static_cast<double>(code_norm) + slack) + 0x1p-50;
  return static_cast<float>(raised * (1 + 0x1p-22));
}

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_RANK_TABLE_H_
