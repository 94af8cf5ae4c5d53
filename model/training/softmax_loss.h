// Cross-entropy over the whole catalogue, with bounded memory.
#ifndef TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_
#define TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_

#include <torch/torch.h>

namespace tim4rec {

struct SoftmaxLoss {
  double loss = 0;               // mean of -log softmax(query . table^T)[target]
  torch::Tensor query_gradient;  // [T,D]
  torch::Tensor table_gradient;  // [V,D]
};

// queries [T,D], table [V,D], targets int64 [T] of 1 … V-1; item 0 has probability 0. The [T,V]
// scores are made in blocks of rows of at most `block_floats` elements (at least one row), so that
// memory does not grow with T·V. Gradients are written out instead of recorded, which keeps one
// block alive at a time.
inline SoftmaxLoss FullSoftmaxLoss(const torch::Tensor& queries, const torch::Tensor& table,
                                   const torch::Tensor& targets, int64_t block_floats) {
  torch::NoGradGuard no_grad;
  const int64_t rows = queries.size(0);
  const int64_t step = std::max<int64_t>(1, block_floats / table.size(0));
  SoftmaxLoss result;
  result.query_gradient = torch::empty_like(queries);
  result.table_gradient = torch::zeros_like(table);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    const auto block = queries.slice(0, begin, end);
    const auto target = targets.slice(0, begin, end).unsqueeze(1);
    auto scores = block.mm(table.t());
    scores.select(1, 0).fill_(-std::numeric_limits<float>::infinity());
    const auto log_probability = torch::log_softmax(scores, 1);
    result.loss -= log_probability.gather(1, target).sum().item<double>();
    auto gradient = log_probability.exp_();
    gradient.scatter_add_(1, target, torch::full_like(target, -1, queries.options()));
    gradient.div_(static_cast<double>(rows));
    result.query_gradient.slice(0, begin, end).copy_(gradient.mm(table));
    result.table_gradient.addmm_(gradient.t(), block);
  }
  result.loss /= static_cast<double>(rows);
  return result;
}

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_SOFTMAX_LOSS_H_
