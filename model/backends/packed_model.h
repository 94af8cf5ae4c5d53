// A package's weights in the shape that the kernels read.
#ifndef TIM4REC_MODEL_BACKENDS_PACKED_MODEL_H_
#define TIM4REC_MODEL_BACKENDS_PACKED_MODEL_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/kernels/kernels.h"
#include "model/weights/package.h"

namespace tim4rec {

// Immutable, thread-safe. Keeps the package: item embeddings are read where it holds them.
class PackedModel {
 public:
  // Without `pack_items` there is no table for kernels::TopK.
  static std::unique_ptr<const PackedModel> Create(std::shared_ptr<const ModelPackage> package,
                                                   bool pack_items);

  const kernels::Dims& dims() const { return dims_; }
  const kernels::Weights& weights() const { return weights_; }
  // For kernels::TopK; null if not packed.
  const float* packed_items() const { return packed_items_; }

 private:
  PackedModel() = default;
  kernels::LayerWeights PackLayer(const std::string& prefix);

  std::span<const float> Tensor(const std::string& name) const;
  const float* Transposed(const std::string& name);
  float* Store(std::vector<float> values);

  std::shared_ptr<const ModelPackage> package_;
  kernels::Dims dims_ = {};
  kernels::Weights weights_ = {};
  std::vector<kernels::LayerWeights> layers_;
  const float* packed_items_ = nullptr;
  std::vector<std::vector<float>> storage_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_PACKED_MODEL_H_
