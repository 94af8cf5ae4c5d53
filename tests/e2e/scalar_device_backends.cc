// Stands in for model/backends/builtin.cc in device_loss_server: the cuda backend on a device that
// computes with the scalar truth, and that dies when the process gets SIGUSR2, at the next call of
// the kind that TEST_DEVICE_DIES_AT names.
#include <pthread.h>
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>
#include <utility>

#include "model/backends/builtin.h"
#include "model/backends/cuda/cuda_backend.h"
#include "tests/model/cuda/scalar_device.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;

DeviceScript& Script() {
  static auto* const script = new DeviceScript;
  return *script;
}

DeviceScript::Call CallThatDies() {
  const char* const name = std::getenv("TEST_DEVICE_DIES_AT");
  for (int call = 0; name != nullptr && call < DeviceScript::kCalls; ++call) {
    if (std::string_view(name) == DeviceScript::NameOf(call)) {
      return static_cast<DeviceScript::Call>(call);
    }
  }
  std::fprintf(stderr, "TEST_DEVICE_DIES_AT names no call of a device\n");
  std::exit(2);
}

// Before main, so that every thread has the signal blocked.
const bool waits_for_the_signal = [] {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals, call = CallThatDies()] {
    int number = 0;
    if (sigwait(&signals, &number) == 0) Script().FailFrom(call, 0);
  }).detach();
  return true;
}();

}  // namespace

// A server always asks for the same.
const BackendRegistry& BuiltinBackends(WindowEncoding windows) {
  static const auto* const registry = [windows] {
    auto* backends = new BackendRegistry;
    backends->factories["cuda"] = [windows](std::shared_ptr<const ModelPackage> package) {
      CudaOptions options = cuda::SmallOptions();
      options.state_chunk_bytes = 64 << 10;
      options.windows = windows;
      return CreateCudaBackendOn(std::make_unique<cuda::ScalarDevice>(&Script()),
                                 std::move(package), options);
    };
    backends->preference = {"cuda"};
    return backends;
  }();
  return *registry;
}

}  // namespace tim4rec
