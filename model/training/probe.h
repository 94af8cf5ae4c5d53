// The float64 reference's answers to the histories of a package's probe.
#ifndef TIM4REC_MODEL_TRAINING_PROBE_H_
#define TIM4REC_MODEL_TRAINING_PROBE_H_

#include <memory>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/reference/reference.h"
#include "model/weights/package.h"

namespace tim4rec {

class ProbeMaker {
 public:
  // `trend`: what is added to the scores. INVALID_ARGUMENT naming every tensor that does not fit.
  static absl::StatusOr<ProbeMaker> Create(const ModelConfig& config, const NamedTensors& tensors,
                                           std::optional<ItemTrend> trend);

  // Of some histories (at least one; query and top_items not yet filled in), the one whose query
  // vector reacts least to a disturbance of every weight by up to one part in 10^5, answered. About
  // one history in a hundred, most of them of one event, nearly cancels before a norm, so that no
  // float32 program can give its query within the probe's bound: such a one proves nothing.
  absl::StatusOr<ProbeCase> MostStable(std::span<const ProbeCase> candidates) const;

 private:
  ProbeMaker() = default;

  std::unique_ptr<Reference> reference_;
  std::unique_ptr<Reference> disturbed_;
  std::optional<ItemTrend> trend_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_PROBE_H_
