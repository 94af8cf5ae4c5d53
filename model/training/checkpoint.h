// All that a training run needs to go on where it was.
#ifndef TIM4REC_MODEL_TRAINING_CHECKPOINT_H_
#define TIM4REC_MODEL_TRAINING_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "absl/status/status.h"
#include "model/evaluation/metrics.h"
#include "model/training/dataset.h"
#include "model/training/trainer.h"

namespace tim4rec {

// What a run has reached after a whole epoch, apart from the model and the optimiser.
struct TrainProgress {
  int64_t epochs_done = 0;
  int64_t steps_done = 0;
  double loss = 0;
  int64_t best_epoch = 0;
  RankingMetrics best_valid;
  TrainedTensors best;
  std::vector<EpochFigures> curve;
};

// What must be equal for a checkpoint to fit: configuration, data and the options that shape a
// step.
std::map<std::string, std::string> RunIdentity(const Dataset& data, const ModelConfig& config,
                                               const TrainOptions& options);

// Writes model, optimiser, progress, `rng` and torch's generator to `path`, atomically.
absl::Status SaveCheckpoint(const std::string& path,
                            const std::map<std::string, std::string>& identity,
                            const torch::nn::Module& model,
                            const torch::optim::Optimizer& optimizer, const std::mt19937_64& rng,
                            const TrainProgress& progress);

// The inverse. NOT_FOUND without the file; INVALID_ARGUMENT if it is no checkpoint, or one of
// another identity (naming what differs); then nothing is changed.
absl::Status LoadCheckpoint(const std::string& path,
                            const std::map<std::string, std::string>& identity,
                            torch::nn::Module* model, torch::optim::Optimizer* optimizer,
                            std::mt19937_64* rng, TrainProgress* progress);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_CHECKPOINT_H_
