// A model that serves: an opened package on a backend, admitted only after its probe passed.
#ifndef TIM4REC_MODEL_ENGINE_ENGINE_H_
#define TIM4REC_MODEL_ENGINE_ENGINE_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine/backend.h"
#include "model/engine/item_boosts.h"
#include "model/weights/package.h"

namespace tim4rec {

// Immutable but for the backend's slots and the use in boosts(); thread-safe as Backend is.
class Engine {
 public:
  // `backend`: a name in the registry, or "auto" for the first of its preference that starts.
  // Folds every history of the probe and compares query vectors (within Backend::query_bound) and
  // top items (equal, but for neighbours whose float64 scores tie within the
  // bound); FAILED_PRECONDITION names the first case that differs.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::shared_ptr<const ModelPackage> package,
                                                        const BackendRegistry& registry,
                                                        const std::string& backend = "auto");

  const ModelPackage& package() const { return *package_; }
  const ModelConfig& config() const { return package_->config(); }
  const ItemCatalog& catalog() const { return package_->catalog(); }
  const std::string& fingerprint() const { return package_->fingerprint(); }
  Backend& backend() const { return *backend_; }
  // Of "auto": the preferred backends that do not serve, each with the reason; "" if there are
  // none.
  const std::string& passed_over() const { return passed_over_; }
  // What TopK adds to the scores; a server tells it what it records.
  ItemBoosts& boosts() const { return boosts_; }

  // Backend::TopK with what the model adds to the scores at the time of the query that each request
  // stands for, `queries` being as many; requests come without a boost.
  absl::Status TopK(std::span<const TopKRequest> requests, std::span<const QueryRequest> queries,
                    std::vector<std::vector<ScoredItem>>* results) const;

 private:
  Engine(std::shared_ptr<const ModelPackage> package, std::unique_ptr<Backend> backend,
         std::string passed_over)
      : package_(std::move(package)),
        backend_(std::move(backend)),
        passed_over_(std::move(passed_over)),
        boosts_(package_) {}

  std::shared_ptr<const ModelPackage> package_;
  std::unique_ptr<Backend> backend_;
  const std::string passed_over_;
  mutable ItemBoosts boosts_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_ENGINE_H_
