#include "model/backends/builtin.h"

#include <utility>

#include "model/backends/cpu/cpu_backend.h"
#include "model/backends/torch_loader.h"
#ifdef TIM4REC_HAVE_CUDA
#include "model/backends/cuda/cuda_backend.h"
#endif

namespace tim4rec {

namespace {

BackendRegistry* MakeRegistry([[maybe_unused]] WindowEncoding windows) {
  auto* backends = new BackendRegistry;
  backends->factories["cpu"] = CreateCpuBackend;
  backends->factories["torch"] = LoadTorchBackend;
  backends->preference = {"cpu"};
#ifdef TIM4REC_HAVE_CUDA
  backends->factories["cuda"] = [windows](std::shared_ptr<const ModelPackage> package) {
    CudaOptions options;
    options.windows = windows;
    return CreateCudaBackend(std::move(package), options);
  };
  backends->preference = {"cuda", "cpu"};
#endif
  return backends;
}

}  // namespace

const BackendRegistry& BuiltinBackends(WindowEncoding windows) {
  static const BackendRegistry* const exact = MakeRegistry(WindowEncoding::kExact);
  static const BackendRegistry* const bulk = MakeRegistry(WindowEncoding::kBulk);
  return windows == WindowEncoding::kBulk ? *bulk : *exact;
}

}  // namespace tim4rec
