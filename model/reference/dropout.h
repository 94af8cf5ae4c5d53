// torch::nn::Dropout with fewer random numbers: on a CPU it draws one per element, one by one,
// which took a seventh of a training step.
#ifndef TIM4REC_MODEL_REFERENCE_DROPOUT_H_
#define TIM4REC_MODEL_REFERENCE_DROPOUT_H_

#include <torch/torch.h>

namespace tim4rec {

// In training, zeroes each element with the probability p, rounded to a 65536th, and divides the
// others by 1 - p; else the identity. Draws from torch's default generator, 16 bits an element.
class DropoutImpl : public torch::nn::Module {
 public:
  explicit DropoutImpl(double p);
  torch::Tensor forward(const torch::Tensor& x) const;

 private:
  const int64_t dropped_;  // of 65536
};
TORCH_MODULE(Dropout);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_DROPOUT_H_
