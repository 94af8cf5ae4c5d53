// The operations of kernels.h written out once more, one output at a time, on unpacked weights: no
// loop here can be turned into vectors across outputs. What the kernels must match bit for bit.
#ifndef TIM4REC_TESTS_MODEL_CANONICAL_STEP_H_
#define TIM4REC_TESTS_MODEL_CANONICAL_STEP_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/weights/package.h"

namespace tim4rec {

// Folds an event into a state record of StateLayout::Of(contents.config).
void CanonicalStep(const PackageContents& contents, int32_t item, int64_t timestamp_ms,
                   std::vector<std::byte>* record);

// The query vector at `as_of_ms`.
std::vector<float> CanonicalQuery(const PackageContents& contents,
                                  const std::vector<std::byte>& record, int64_t as_of_ms);

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_CANONICAL_STEP_H_
