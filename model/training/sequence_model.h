// What the trainer needs of a model, whichever it is.
#ifndef TIM4REC_MODEL_TRAINING_SEQUENCE_MODEL_H_
#define TIM4REC_MODEL_TRAINING_SEQUENCE_MODEL_H_

#include <torch/torch.h>

#include <memory>
#include <span>

#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/reference/sasrec_model.h"
#include "model/training/dataset.h"
#include "model/training/softmax_loss.h"
#include "model/training/trainer.h"
#include "model/training/windows.h"

namespace tim4rec {

// A batch of B windows padded on the right to L events. T is the number of predictions.
struct BatchTensors {
  torch::Tensor items;       // int64 [B,L]
  torch::Tensor gaps_ms;     // [B,L], before each event, clamped
  torch::Tensor seconds;     // float64 [B,L], since 1970; of last_only [B,window]
  torch::Tensor last;        // int64 [B], where it is predicted in each window; of last_only alone
  torch::Tensor positions;   // int64 [T], where it is predicted, into the flattened [B*L]
  torch::Tensor targets;     // int64 [T]
  torch::Tensor query_gaps;  // [T], from the position to its target, clamped
  torch::Tensor query_ms;    // int64 [T], when it is predicted: the target's timestamp

  // A copy on a device, but for query_ms, which only the CPU reads.
  BatchTensors To(torch::Device device) const;
};

// How windows become predictions.
struct BatchShape {
  // Each window predicts once, after its last event; otherwise after each of its events.
  bool last_only = false;
  int64_t window = 0;  // least length of `seconds`
};

BatchTensors MakeBatchTensors(const Dataset& data, const Batch& batch, const BatchShape& shape,
                              int64_t max_gap_ms);

// The same of histories, their last `max_events` events, with one prediction after the last at
// `as_of_ms`. Histories without events are one of padding.
BatchTensors MakeRankingTensors(std::span<const RankingCase* const> cases, int64_t max_events,
                                int64_t max_gap_ms);

class SequenceModel {
 public:
  virtual ~SequenceModel() = default;
  virtual torch::nn::Module& module() = 0;
  // Query vectors [T,D] at the batch's positions; the score of item v is query . item_vectors[v],
  // plus the Terms.
  virtual torch::Tensor Queries(const BatchTensors& batch) = 0;
  virtual torch::Tensor item_vectors() = 0;  // [V,D]
  virtual ScoreTerms Terms(const BatchTensors&) { return {}; }
  // The weights of the Terms [K], one of the module's parameters; undefined without terms.
  virtual torch::Tensor term_weights() { return {}; }
  virtual BatchShape batch_shape() const { return {}; }
};

SasrecConfig SasrecConfigOf(const ModelConfig& config, const TrainOptions& options);

// A fresh model of what `options` and `config` ask for: SASRec, or `config`'s variant. Initial
// values are drawn from torch's default generator.
std::unique_ptr<SequenceModel> MakeSequenceModel(const Dataset& data, const ModelConfig& config,
                                                 const TrainOptions& options);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_SEQUENCE_MODEL_H_
