// The torch backend, loaded when it is asked for.
#ifndef TIM4REC_MODEL_BACKENDS_TORCH_LOADER_H_
#define TIM4REC_MODEL_BACKENDS_TORCH_LOADER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"

namespace tim4rec {

// CreateTorchBackend (model/backends/torch/torch_backend.h) of libtim4rec_torch.so, which lies
// beside the program: linking libtorch costs every start half a second and 145 MB, whichever
// backend serves. UNAVAILABLE with the system's reason if it cannot be loaded.
absl::StatusOr<std::unique_ptr<Backend>> LoadTorchBackend(
    std::shared_ptr<const ModelPackage> package);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_TORCH_LOADER_H_
