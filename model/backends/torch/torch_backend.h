// The portable backend: plain libtorch operators on whatever device libtorch has, no kernel of
// ours.
#ifndef TIM4REC_MODEL_BACKENDS_TORCH_TORCH_BACKEND_H_
#define TIM4REC_MODEL_BACKENDS_TORCH_TORCH_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"

namespace tim4rec {

// Runs the modules of model/reference in float32, on a CUDA device where libtorch has one, else on
// the CPU. Each slot's state is cached on the device: one event steps it, a run goes through the
// chunked masked-matrix form begun with it (the O(1) caching of arXiv 2603.09555). Not exact():
// equal to the cpu backend within float32 rounding, and batches may differ from single events by
// as much. Of a published model with time, the first Query after a change encodes the window.
//
// Computes on the caller's thread; sets libtorch's and OpenBLAS' threads of this process to one.
absl::StatusOr<std::unique_ptr<Backend>> CreateTorchBackend(
    std::shared_ptr<const ModelPackage> package);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_TORCH_TORCH_BACKEND_H_
