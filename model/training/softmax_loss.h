// Cross-entropy over the whole catalogue, with bounded memory.
#ifndef TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_
#define TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_

#include <torch/torch.h>

#include <functional>

namespace tim4rec {

// Terms of the scores of n predictions.
struct TermBlock {
  torch::Tensor values;    // [K,n,V]
  torch::Tensor excluded;  // bool [n,V], items that have probability 0; undefined: none
};

// What is added to query . item vector: sum_k weights[k] * values[k,t,v].
struct ScoreTerms {
  torch::Tensor weights;                                       // [K]; undefined: there are no terms
  std::function<TermBlock(int64_t begin, int64_t end)> block;  // of the predictions [begin, end)
};

struct SoftmaxLoss {
  double loss = 0;                // mean of -log softmax(scores)[target]
  torch::Tensor query_gradient;   // [T,D]
  torch::Tensor table_gradient;   // [V,D]
  torch::Tensor weight_gradient;  // [K]; undefined without terms
};

// Scores [end-begin,V] of the predictions [begin, end) of queries [T,D] over table [V,D]; item 0
// and those excluded have -infinity. `terms` receives what entered, and stays empty without terms.
inline torch::Tensor BlockScores(const torch::Tensor& queries, const torch::Tensor& table,
                                 const ScoreTerms& source, int64_t begin, int64_t end,
                                 TermBlock* terms) {
  auto scores = queries.slice(0, begin, end).mm(table.t());
  if (source.weights.defined()) {
    *terms = source.block(begin, end);
    terms->values = terms->values.to(scores.device());
    for (int64_t k = 0; k < source.weights.size(0); ++k) {
      scores.add_(terms->values[k], source.weights[k].item<double>());
    }
    if (terms->excluded.defined()) {
      scores.masked_fill_(terms->excluded.to(scores.device()),
                          -std::numeric_limits<float>::infinity());
    }
  }
  scores.select(1, 0).fill_(-std::numeric_limits<float>::infinity());
  return scores;
}

// queries [T,D], table [V,D], targets int64 [T] of 1 … V-1; item 0 has probability 0. The [T,V]
// scores are made in blocks of rows of at most `block_floats` elements (at least one row), so that
// memory does not grow with T·V. Gradients are written out instead of recorded, which keeps one
// block alive at a time.
inline SoftmaxLoss FullSoftmaxLoss(const torch::Tensor& queries, const torch::Tensor& table,
                                   const torch::Tensor& targets, int64_t block_floats,
                                   const ScoreTerms& source = {}) {
  torch::NoGradGuard no_grad;
  const int64_t rows = queries.size(0);
  const int64_t step = std::max<int64_t>(1, block_floats / table.size(0));
  SoftmaxLoss result;
  result.query_gradient = torch::empty_like(queries);
  result.table_gradient = torch::zeros_like(table);
  if (source.weights.defined()) result.weight_gradient = torch::zeros_like(source.weights);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    const auto target = targets.slice(0, begin, end).unsqueeze(1);
    TermBlock terms;
    const auto log_probability =
        torch::log_softmax(BlockScores(queries, table, source, begin, end, &terms), 1);
    result.loss -= log_probability.gather(1, target).sum().item<double>();
    auto gradient = log_probability.exp_();
    gradient.scatter_add_(1, target, torch::full_like(target, -1, queries.options()));
    result.query_gradient.slice(0, begin, end).copy_(gradient.mm(table));
    result.table_gradient.addmm_(gradient.t(), queries.slice(0, begin, end));
    if (terms.values.defined()) {
      result.weight_gradient.add_(terms.values.flatten(1).mv(gradient.flatten()));
    }
  }
  // The mean's factor, here because these are smaller than the scores.
  result.loss /= static_cast<double>(rows);
  result.query_gradient.div_(static_cast<double>(rows));
  result.table_gradient.div_(static_cast<double>(rows));
  if (result.weight_gradient.defined()) result.weight_gradient.div_(static_cast<double>(rows));
  return result;
}

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_
