// Serving on an NVIDIA GPU: states in its memory, folded, read and ranked there, with the bits of
// the cpu backend. What does not fit, and everything once the device is lost, is served by a cpu
// backend within.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "model/backends/cuda/device.h"
#include "model/engine/backend.h"

namespace tim4rec {

struct CudaOptions {
  // Device memory that states leave free: room for the next model, whose weights, item table and
  // scratch are allocated while this one serves. 0: an eighth of the device's memory.
  int64_t reserve_bytes = 0;
  // Memory for states is taken in pieces of this size as users come.
  int64_t state_chunk_bytes = int64_t{256} << 20;
  // Fewer scores than this are computed by the CPU in less time than a device takes to answer.
  int64_t least_device_scores = int64_t{1} << 16;
  // How the windows of states on the device are encoded.
  WindowEncoding windows = WindowEncoding::kExact;
};

// Fails with RESOURCE_EXHAUSTED, the bytes needed and the bytes free if the model does not fit;
// FAILED_PRECONDITION if states, queries or rankings of the package's probe differ in a bit from
// the cpu backend's (queries of the bulk mode: by more than its bound); UNAVAILABLE with the
// device's own text if it fails; else as CreateCpuBackend.
//
// At run time a device that fails is lost, for good: calls on slots that it held answer ABORTED
// (Backend::Lost), rankings are done by the CPU, new slots are in main memory.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackendOn(
    std::unique_ptr<cuda::Device> device, std::shared_ptr<const ModelPackage> package,
    const CudaOptions& options = {});

// On the first device of this machine. UNAVAILABLE with the driver's own reason if there is none
// that can be used. Only in programs built with nvcc.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    std::shared_ptr<const ModelPackage> package, const CudaOptions& options = {});

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_CUDA_BACKEND_H_
