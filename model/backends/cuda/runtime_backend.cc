#include "absl/strings/str_cat.h"
#include "model/backends/cuda/cuda_backend.h"
#include "model/backends/cuda/state_copy.h"

namespace tim4rec {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(std::shared_ptr<const ModelPackage>) {
  if (const cuda::Fault fault = cuda::StartDevice(); fault != nullptr) {
    return absl::UnavailableError(absl::StrCat("no CUDA device can be used: ", fault));
  }
  return absl::UnimplementedError(
      "a CUDA device is present, but this version does not serve on it: use the cpu backend");
}

}  // namespace tim4rec
