// Are two states the same bytes, and if not, where do they part?
#ifndef TIM4REC_MODEL_ENGINE_STATE_CHECK_H_
#define TIM4REC_MODEL_ENGINE_STATE_CHECK_H_

#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/engine/engine.h"

namespace tim4rec {

// The state record that folding these events into `base`, a state record or (empty) the empty
// state, gives. Errors: Allocate's, Import's and Advance's.
absl::StatusOr<std::string> FoldFrom(const Engine& engine, std::string_view base,
                                     std::span<const FoldEvent> events);
absl::StatusOr<std::string> FoldFromZero(const Engine& engine, std::span<const FoldEvent> events);

// Where `actual` first differs from `expected`, which is a state record of that model: the field or
// tensor, its layer and index, and both values ("layer 1 S[0,3,7]: 0.25 instead of 0.5"). Empty if
// all bytes are equal.
std::string FirstDifference(const ModelConfig& config, std::string_view expected,
                            std::string_view actual);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_STATE_CHECK_H_
