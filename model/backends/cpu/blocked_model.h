// A model's weights as kernels::KernelSet reads them.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_
#define TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/backends/cpu/huge_pages.h"
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
  struct Free {
    void operator()(std::byte* memory) const { FreeHugePages(memory); }
  };

  // 64-byte aligned. All weights are in one huge page: a step reads them all.
  float* Store(int64_t floats);
  kernels::BlockedLinear Block(const float* weights, const float* bias, int64_t inputs,
                               int64_t outputs);
  const float* Repeat(const float* per_head, const kernels::Dims& dims);

  std::vector<kernels::BlockedLayer> layers_;
  kernels::RankTable items_;
  std::vector<std::unique_ptr<std::byte, Free>> storage_;
  std::byte* next_ = nullptr;  // in the last of them
  size_t left_ = 0;            // bytes there
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_BLOCKED_MODEL_H_
