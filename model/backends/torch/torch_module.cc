// The entry of libtim4rec_torch.so, which model/backends/torch_loader.cc looks for.
#include "model/backends/torch/torch_backend.h"

extern "C" void Tim4recCreateTorchBackend(
    const std::shared_ptr<const tim4rec::ModelPackage>& package,
    absl::StatusOr<std::unique_ptr<tim4rec::Backend>>* backend) {
  *backend = tim4rec::CreateTorchBackend(package);
}
