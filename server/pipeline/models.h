// The models that a server has loaded, and which of them serves.
#ifndef TIM4REC_SERVER_PIPELINE_MODELS_H_
#define TIM4REC_SERVER_PIPELINE_MODELS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "model/engine/engine.h"
#include "store/item_use.h"

namespace tim4rec {

// One model. Whoever holds a handle may use it, also after it was unloaded. Immutable but for the
// two atomics; thread-safe.
struct LoadedModel {
  std::string version;  // "name@fingerprint"
  std::string directory;
  absl::Time loaded_at;
  std::shared_ptr<const ModelPackage> package;
  std::shared_ptr<const Engine> engine;  // null while it loads
  std::shared_ptr<UseObserver> use;      // what its trend follows the store by (FollowUse), or null

  // Set by ModelSwap, read by workers. From then on (unix milliseconds) the states in memory of a
  // model that served before are freed, once.
  static constexpr int64_t kForEver = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> kept_until_ms = kForEver;
  // No state of it is kept beyond a batch, and none is written.
  std::atomic<bool> unloaded = false;

  const std::string& fingerprint() const { return package->fingerprint(); }
  std::string name() const { return version.substr(0, version.rfind('@')); }
  const char* variant() const {
    return package->config().variant == Variant::kStreaming ? "streaming" : "published";
  }
};
using ModelHandle = std::shared_ptr<LoadedModel>;

// Opens a package and starts it on a backend ("auto", "cpu", …). Its probe is the warm-up: it
// folds, queries and ranks, and so touches what serving touches. `name` empty: the directory's last
// part. `opened` is called, if given, with the model before its engine starts. Errors: the
// package's and the engine's, and INVALID_ARGUMENT for a name.
absl::StatusOr<ModelHandle> OpenModel(const std::string& directory, const std::string& name,
                                      const BackendRegistry& backends, const std::string& backend,
                                      const std::function<absl::Status(ModelHandle)>& opened = {});

// Thread-safe.
class Models {
 public:
  explicit Models(ModelHandle serving) : serving_(serving), loaded_({std::move(serving)}) {}

  // The model for requests that name none.
  ModelHandle serving() const;

  // By version or fingerprint; "": the one that serves. NOT_FOUND naming those that are loaded,
  // UNAVAILABLE for one that is still loading.
  absl::StatusOr<ModelHandle> Find(std::string_view model) const;

  // Oldest first; those that are still loading have no engine.
  std::vector<ModelHandle> List() const;

  // ALREADY_EXISTS if its fingerprint is there.
  absl::Status Add(ModelHandle model);
  // The same place in the list for the model whose engine has started.
  void Replace(const LoadedModel* loading, ModelHandle model);
  void Remove(const LoadedModel* model);
  void SetServing(ModelHandle model);

 private:
  mutable std::mutex mutex_;
  ModelHandle serving_;
  std::vector<ModelHandle> loaded_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_MODELS_H_
