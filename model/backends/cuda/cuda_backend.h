// Serving on an NVIDIA GPU.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"

namespace tim4rec {

// UNAVAILABLE with the driver's own reason where no device can be used; UNIMPLEMENTED where one
// can: this version moves states on a device and does not fold events there.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    const std::shared_ptr<const ModelPackage>& package);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_
