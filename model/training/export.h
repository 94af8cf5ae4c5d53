// From a trained model to what is measured and what is served.
#ifndef TIM4REC_MODEL_TRAINING_EXPORT_H_
#define TIM4REC_MODEL_TRAINING_EXPORT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/training/dataset.h"
#include "model/training/trainer.h"
#include "model/weights/package.h"

namespace tim4rec {

// The contents of a package without a probe: what Train made of `data`, and, if it learned a weight
// for the trend, the items' trend of the training events.
PackageContents ToContents(const Dataset& data, const ModelConfig& config, TrainedTensors tensors);

// The same with a probe of eight histories answered by the float64 reference: of
// one, two and three events, from the shortest user to the longest (at most 512 events), queried at
// the next event, a month later and before the last one; each the most stable of a few like it.
absl::StatusOr<PackageContents> MakePackage(const Dataset& data, const ModelConfig& config,
                                            const TrainedTensors& tensors,
                                            const std::string& metrics_json);

// The cases of a split, one per evaluated user in the order of `data.users`. Histories hold all
// events before the target; `query_time` asks at the target's own timestamp, otherwise at that of
// the last event before it. Items are those of `catalog` by id; events with others are left out.
std::vector<RankingCase> MakeRankingCases(const Dataset& data, const ItemCatalog& catalog,
                                          Split split, bool query_time);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_EXPORT_H_
