// Which items a query may not be answered with.
#ifndef TIM4REC_MODEL_KERNELS_LEFT_OUT_H_
#define TIM4REC_MODEL_KERNELS_LEFT_OUT_H_

#include <cstdint>

#include "model/kernels/kernels.h"
#include "model/kernels/math.h"

namespace tim4rec::kernels {

TIM4REC_KERNEL_FUNCTION bool IsEligible(const TopKQuery& query, int32_t item) {
  return query.eligible == nullptr || (query.eligible[item / 64] >> (item % 64) & 1) != 0;
}

// Not eligible or excluded. Cost: a binary search.
TIM4REC_KERNEL_FUNCTION bool IsLeftOut(const TopKQuery& query, int32_t item) {
  if (!IsEligible(query, item)) return true;
  int64_t low = 0, high = query.excluded_count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (query.excluded[middle] < item) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < query.excluded_count && query.excluded[low] == item;
}

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_LEFT_OUT_H_
