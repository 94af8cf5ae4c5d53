#include "server/pipeline/models.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace tim4rec {
namespace {

constexpr size_t kMostNameBytes = 64;

std::string LastPart(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

std::string Versions(const std::vector<ModelHandle>& models) {
  std::string text;
  for (const ModelHandle& model : models) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", model->version);
  }
  return text;
}

}  // namespace

absl::StatusOr<ModelHandle> OpenModel(const std::string& directory, const std::string& name,
                                      const BackendRegistry& backends, const std::string& backend,
                                      const std::function<absl::Status(ModelHandle)>& opened) {
  if (name.size() > kMostNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("name: has ", name.size(), " bytes (at most ", kMostNameBytes, ")"));
  }
  auto package = ModelPackage::Open(directory);
  if (!package.ok()) return package.status();
  const auto make = [&](std::shared_ptr<const Engine> engine) {
    auto model = std::make_shared<LoadedModel>();
    model->version =
        absl::StrCat(name.empty() ? LastPart(directory) : name, "@", (*package)->fingerprint());
    model->directory = directory;
    model->loaded_at = absl::Now();
    model->package = *package;
    model->engine = std::move(engine);
    return model;
  };
  if (opened) {
    if (absl::Status status = opened(make(nullptr)); !status.ok()) return status;
  }
  auto engine = Engine::Create(*package, backends, backend);
  if (!engine.ok()) return engine.status();
  return make(*std::move(engine));
}

ModelHandle Models::serving() const {
  std::lock_guard lock(mutex_);
  return serving_;
}

absl::StatusOr<ModelHandle> Models::Find(std::string_view model) const {
  std::lock_guard lock(mutex_);
  if (model.empty()) return serving_;
  for (const ModelHandle& loaded : loaded_) {
    if (model != loaded->fingerprint() && model != loaded->version) continue;
    if (loaded->engine != nullptr) return loaded;
    return absl::UnavailableError(absl::StrCat(loaded->version, " is still loading"));
  }
  return absl::NotFoundError(absl::StrCat("\"", absl::string_view(model.data(), model.size()),
                                          "\" is not loaded; this server has ", Versions(loaded_)));
}

std::vector<ModelHandle> Models::List() const {
  std::lock_guard lock(mutex_);
  return loaded_;
}

absl::Status Models::Add(ModelHandle model) {
  std::lock_guard lock(mutex_);
  for (const ModelHandle& loaded : loaded_) {
    if (loaded->fingerprint() == model->fingerprint()) {
      return absl::AlreadyExistsError(absl::StrCat("the same model is loaded as ", loaded->version,
                                                   " from ", loaded->directory));
    }
  }
  loaded_.push_back(std::move(model));
  return absl::OkStatus();
}

void Models::Replace(const LoadedModel* loading, ModelHandle model) {
  std::lock_guard lock(mutex_);
  for (ModelHandle& loaded : loaded_) {
    if (loaded.get() == loading) loaded = model;
  }
}

void Models::Remove(const LoadedModel* model) {
  std::lock_guard lock(mutex_);
  loaded_.erase(std::remove_if(loaded_.begin(), loaded_.end(),
                               [&](const ModelHandle& loaded) { return loaded.get() == model; }),
                loaded_.end());
}

void Models::SetServing(ModelHandle model) {
  std::lock_guard lock(mutex_);
  serving_ = std::move(model);
}

}  // namespace tim4rec
