// Rule 5's gap: integers until it is known.
#ifndef TIM4REC_MODEL_KERNELS_GAP_H_
#define TIM4REC_MODEL_KERNELS_GAP_H_

#include "model/kernels/kernels.h"
#include "model/kernels/math.h"

namespace tim4rec::kernels {

TIM4REC_KERNEL_FUNCTION float GapMs(const Dims& dims, const StateHeader& state,
                                    int64_t timestamp_ms) {
  if (state.folded_events <= 0 || timestamp_ms <= state.last_timestamp_ms) return 0.0f;
  const uint64_t difference =
      static_cast<uint64_t>(timestamp_ms) - static_cast<uint64_t>(state.last_timestamp_ms);
  const uint64_t limit = static_cast<uint64_t>(dims.max_gap_ms);
  return static_cast<float>(static_cast<int64_t>(difference < limit ? difference : limit));
}

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_GAP_H_
