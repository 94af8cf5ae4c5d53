// Loading, promoting and unloading of models while others serve.
#ifndef TIM4REC_SERVER_PIPELINE_MODEL_SWAP_H_
#define TIM4REC_SERVER_PIPELINE_MODEL_SWAP_H_

#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/models.h"
#include "server/pipeline/pipeline.h"
#include "server/telemetry/metrics.h"
#include "store/state_store.h"

namespace tim4rec {

// Thread-safe. One operation at a time: another meanwhile is ABORTED. They block, for as long as
// opening a package or folding states takes; a failed one has changed nothing.
class ModelSwap {
 public:
  struct Options {
    std::string backend = "auto";  // for models that name none
    // How long the states of a model that served before stay in memory, for an instant way back.
    absl::Duration keep_states_for = absl::Hours(1);
    // Load refuses a model on a backend whose folds may not be stored, since retention must.
    bool exact_only = false;
  };
  // All outlive it.
  struct Deps {
    Models* models;
    Pipeline* pipeline;
    StateStore* states;
    Metrics* metrics;
    const BackendRegistry* backends;
    std::function<absl::Status(LoadedModel*)> follow_use;  // of a model that is to be listed
  };
  ModelSwap(Options options, const Deps& deps) : options_(std::move(options)), deps_(deps) {}

  // Opens the package, checks its probe and lists the model; it serves requests that name it.
  // ALREADY_EXISTS if a model of the same fingerprint is loaded, FAILED_PRECONDITION for a backend
  // that is not exact where it must be; else as OpenModel.
  absl::StatusOr<ModelHandle> Load(const std::string& directory, const std::string& name,
                                   const std::string& backend);

  struct Promotion {
    ModelHandle model;
    ModelHandle previous;
  };
  // Makes a loaded model the one that serves. The resident users are folded for it first, unless it
  // served before and its states are still kept: then at once. CANCELLED once `stop()`, which is
  // asked every few ms; NOT_FOUND; UNAVAILABLE when draining.
  absl::StatusOr<Promotion> Promote(std::string_view model, const std::function<bool()>& stop);

  // Requests that hold it end with it; its resident states are freed and its checkpoints removed.
  // FAILED_PRECONDITION for the one that serves, NOT_FOUND. An error of the store leaves
  // checkpoints behind that only cost room.
  absl::Status Unload(std::string_view model);

 private:
  absl::StatusOr<std::unique_lock<std::mutex>> Begin();

  const Options options_;
  const Deps deps_;
  std::mutex busy_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_MODEL_SWAP_H_
