// How far the bulk mode's query vectors may be from the exact ones.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_BULK_BOUND_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_BULK_BOUND_H_

#include <span>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/weights/package.h"

namespace tim4rec::cuda {

// A model whose Linears' weights are rounded to tf32, as the bulk mode rounds them.
class RoundedModel {
 public:
  // What `weights` points to outlives it.
  RoundedModel(const kernels::Dims& dims, const kernels::Weights& weights);
  RoundedModel(const RoundedModel&) = delete;
  RoundedModel& operator=(const RoundedModel&) = delete;

  const kernels::Weights& weights() const { return weights_; }

 private:
  kernels::Weights weights_;
  std::vector<kernels::LayerWeights> layers_;
  std::vector<std::vector<float>> rounded_;
};

// bulk.h's bound for a model with a window: 4 times the largest relative error, in the Euclidean
// norm, that scalar code with rounded weights makes of the probe's windows. A few ms per case.
double BulkQueryBound(const kernels::Dims& dims, const kernels::Weights& weights,
                      std::span<const ProbeCase> probe);

// ||a - b|| / ||b||; 0 of two that are 0.
double RelativeError(std::span<const float> a, std::span<const float> b);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_BULK_BOUND_H_
