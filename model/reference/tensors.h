// Between torch parameters and plain named tensors.
#ifndef TIM4REC_MODEL_REFERENCE_TENSORS_H_
#define TIM4REC_MODEL_REFERENCE_TENSORS_H_

#include <torch/torch.h>

#include "absl/status/status.h"
#include "model/reference/reference.h"

namespace tim4rec {

// Copies the parameters, as float32.
NamedTensors ExportParameters(const torch::nn::Module& module);

// Threads of libtorch and, where it is libtorch's BLAS, of OpenBLAS, in this process.
void UseTorchThreads(int threads);

// Overwrites the parameters. INVALID_ARGUMENT naming every tensor that is missing, unknown or
// misshapen; then nothing is changed.
absl::Status ImportParameters(const NamedTensors& tensors, torch::nn::Module* module);

// The same for a model in torch's holder, for instance StreamingModel.
template <typename Holder>
NamedTensors ExportTensors(const Holder& model) {
  return ExportParameters(*model);
}
template <typename Holder>
absl::Status ImportTensors(const NamedTensors& tensors, Holder* model) {
  return ImportParameters(tensors, model->get());
}

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_TENSORS_H_
