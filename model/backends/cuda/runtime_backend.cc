#include "absl/strings/str_cat.h"
#include "model/backends/cuda/cuda_backend.h"
#include "model/backends/cuda/runtime_device.h"

namespace tim4rec {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(
    std::shared_ptr<const ModelPackage> package, const CudaOptions& options) {
  std::unique_ptr<cuda::Device> device;
  if (const cuda::Fault fault = cuda::OpenRuntimeDevice(&device); fault != nullptr) {
    return absl::UnavailableError(absl::StrCat("no CUDA device can be used: ", fault));
  }
  return CreateCudaBackendOn(std::move(device), std::move(package), options);
}

}  // namespace tim4rec
