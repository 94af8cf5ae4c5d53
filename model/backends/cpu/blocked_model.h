// A model's weights as kernels::KernelSet reads them.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_
#define TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "model/kernels/kernel_set.h"

namespace tim4rec {

// Immutable, thread-safe. Copies what it needs of `weights` but for the item embeddings, which are
// read where they are: the size of the model without them, and D + 4 bytes per item.
class BlockedModel {
 public:
  BlockedModel(const kernels::Dims& dims, const kernels::Weights& weights);

  const kernels::BlockedLayer* layers() const { return layers_.data(); }
  const kernels::RankTable& items() const { return items_; }

 private:
  struct AlignedDelete {
    void operator()(float* floats) const;
  };
  using Storage = std::unique_ptr<float, AlignedDelete>;

  float* Store(int64_t floats);
  kernels::BlockedLinear Block(const float* weights, const float* bias, int64_t inputs,
                               int64_t outputs);
  const float* Repeat(const float* per_head, const kernels::Dims& dims);

  std::vector<kernels::BlockedLayer> layers_;
  kernels::RankTable items_;
  std::vector<Storage> storage_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_
