#include "model/backends/builtin.h"

#include "model/backends/cpu/cpu_backend.h"
#include "model/backends/torch_loader.h"
#ifdef TIM4REC_HAVE_CUDA
#include "model/backends/cuda/cuda_backend.h"
#endif

namespace tim4rec {

const BackendRegistry& BuiltinBackends() {
  static const auto* registry = [] {
    auto* backends = new BackendRegistry;
    backends->factories["cpu"] = CreateCpuBackend;
#ifdef TIM4REC_HAVE_CUDA
    backends->factories["cuda"] = CreateCudaBackend;
#endif
    backends->factories["torch"] = LoadTorchBackend;
    backends->preference = {"cpu"};
#ifdef TIM4REC_HAVE_CUDA
    backends->preference.insert(backends->preference.begin(), "cuda");
#endif
    return backends;
  }();
  return *registry;
}

}  // namespace tim4rec
