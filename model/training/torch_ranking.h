// Accuracy of what no engine serves, by the protocol and the metrics of all others.
#ifndef TIM4REC_MODEL_TRAINING_TORCH_RANKING_H_
#define TIM4REC_MODEL_TRAINING_TORCH_RANKING_H_

#include <span>

#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/training/dataset.h"
#include "model/training/trainer.h"

namespace tim4rec {

// Ranks the whole catalogue, items already seen included, with the SASRec or the streaming model
// that Train made of `data`, `config` and `options`, computed by libtorch in float32: lists of 20.
// SASRec sees the last `max_length` events of each history and does not read `as_of_ms`. Lists are
// shorter where the query feature `age` leaves fewer items. Of `data` only training events are
// read. INVALID_ARGUMENT naming tensors that do not fit, and for a published model; INTERNAL if
// libtorch fails.
absl::StatusOr<RankingResult> EvaluateWithTorch(const Dataset& data, const ModelConfig& config,
                                                const TrainOptions& options,
                                                const TrainedTensors& tensors,
                                                std::span<const RankingCase> cases);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_TORCH_RANKING_H_
