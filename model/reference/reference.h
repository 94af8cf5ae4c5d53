// The float64 reference without torch in sight: what every backend is compared with.
#ifndef TIM4REC_MODEL_REFERENCE_REFERENCE_H_
#define TIM4REC_MODEL_REFERENCE_REFERENCE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config/config.h"

namespace tim4rec {

// Tensors by name: shape and row-major float32 data, as in PackageContents.
using NamedTensors = std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>>;

// A model of either variant with given weights, computed in float64. Thread-safe: it does not
// change.
class Reference {
 public:
  // INVALID_ARGUMENT naming every tensor that is missing, unknown or misshapen.
  static absl::StatusOr<std::unique_ptr<Reference>> Create(const ModelConfig& config,
                                                           const NamedTensors& tensors);
  virtual ~Reference() = default;

  // Outputs [L,D] after each event of one history, in the masked-matrix form. Items 1 … V-1,
  // timestamps in ms, both of length L >= 1 (else INVALID_ARGUMENT). A published model with is_time
  // sees a window of the last max_item_list_length events, each output with its own.
  virtual absl::StatusOr<std::vector<double>> Outputs(
      std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const = 0;

  // The query vector [D] read out at `as_of_ms` after the whole history. A published model does not
  // look at `as_of_ms`.
  virtual absl::StatusOr<std::vector<double>> Query(std::span<const int32_t> items,
                                                    std::span<const int64_t> timestamps_ms,
                                                    int64_t as_of_ms) const = 0;

  // Indices of the `k` items with the highest scores, best first, ties by index, 0 never. `boost`
  // [V] is added to the scores; empty: nothing is.
  virtual std::vector<int32_t> TopItems(std::span<const double> query, int k,
                                        std::span<const float> boost = {}) const = 0;
};

// Weights of a freshly initialised model, for tests and benchmarks. `seed` decides them;
// every parameter is perturbed, so that none sits at a neutral start (such as the gate's zeros).
absl::StatusOr<NamedTensors> RandomWeights(const ModelConfig& config, uint64_t seed);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_REFERENCE_H_
