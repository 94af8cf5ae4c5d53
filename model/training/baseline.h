// Accuracy of the baseline that no engine serves, by the protocol and the metrics of all others.
#ifndef TIM4REC_MODEL_TRAINING_BASELINE_H_
#define TIM4REC_MODEL_TRAINING_BASELINE_H_

#include <span>

#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/training/trainer.h"

namespace tim4rec {

// Ranks the whole catalogue, items already seen included, with the SASRec that Train made of
// `config` and `options`, computed by libtorch in float32: lists of 20 from the last `max_length`
// events of each history; `as_of_ms` is not read. INVALID_ARGUMENT naming tensors that do not fit;
// INTERNAL if libtorch fails.
absl::StatusOr<RankingResult> EvaluateSasrec(const ModelConfig& config, const TrainOptions& options,
                                             const TrainedTensors& tensors,
                                             std::span<const RankingCase> cases);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_BASELINE_H_
