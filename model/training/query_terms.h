// What is known of the items when a recommendation is asked for, as terms of their scores.
#ifndef TIM4REC_MODEL_TRAINING_QUERY_TERMS_H_
#define TIM4REC_MODEL_TRAINING_QUERY_TERMS_H_

#include <torch/torch.h>

#include <unordered_map>
#include <vector>

#include "model/training/dataset.h"
#include "model/training/softmax_loss.h"
#include "model/training/trainer.h"
#include "model/weights/item_timeline.h"

namespace tim4rec {

// The parameter that QueryTerms registers.
inline constexpr char kTermWeights[] = "query_term_weights";

// The terms `trend` and `age` of QueryFeatures, each with one learned weight. Not thread-safe.
class QueryTerms {
 public:
  // Registers the weights, [K] of the features asked for in this order, with `module`, which then
  // trains, saves and exports them. `cache_floats` bounds what is kept of the days' values.
  QueryTerms(const Dataset& data, const QueryFeatures& features, torch::nn::Module* module,
             int64_t cache_floats = 1 << 26);

  // The terms of predictions asked for at `query_ms` int64 [T]. Valid as long as this object.
  ScoreTerms At(const torch::Tensor& query_ms);
  const torch::Tensor& weights() const { return weights_; }

 private:
  TermBlock Block(const std::vector<int64_t>& days, int64_t begin, int64_t end);
  const std::vector<float>& Day(int64_t day);  // [K,V]; valid until the next call

  const QueryFeatures features_;
  const ItemTimeline timeline_;
  const int64_t terms_;  // K
  const size_t most_days_;
  torch::Tensor weights_;
  std::unordered_map<int64_t, std::vector<float>> days_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_QUERY_TERMS_H_
