#include "model/backends/torch_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

using Create = void (*)(const std::shared_ptr<const ModelPackage>& package,
                        absl::StatusOr<std::unique_ptr<Backend>>* backend);

// The library stays loaded: the backends' code is in it.
absl::StatusOr<Create> Load() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::UnavailableError(absl::StrCat("/proc/self/exe: ", error.message()));
  const std::string path = program.parent_path() / "libtim4rec_torch.so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("the torch backend is a library of its own beside the program: ", dlerror()));
  }
  void* create = dlsym(library, "Tim4recCreateTorchBackend");
  if (create == nullptr) return absl::UnavailableError(absl::StrCat(path, ": ", dlerror()));
  return reinterpret_cast<Create>(create);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> LoadTorchBackend(
    std::shared_ptr<const ModelPackage> package) {
  const absl::StatusOr<Create> create = Load();
  if (!create.ok()) return create.status();
  absl::StatusOr<std::unique_ptr<Backend>> backend = absl::UnknownError("not created");
  (*create)(package, &backend);
  return backend;
}

}  // namespace tim4rec
