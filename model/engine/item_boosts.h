// What a model adds to its items' scores, by the day of the query.
#ifndef TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_
#define TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "model/weights/package.h"

namespace tim4rec {

using ItemBoost = std::shared_ptr<const std::vector<float>>;

// Thread-safe. A day's values are computed once, V logarithms, and kept while at most 64 MiB, or
// two days, are.
class ItemBoosts {
 public:
  explicit ItemBoosts(std::shared_ptr<const ModelPackage> package);

  // ItemTrend::Boost with zeros after the last item, as TopKRequest::boost; null if the model has
  // no trend.
  ItemBoost At(int64_t as_of_ms);

 private:
  const std::shared_ptr<const ModelPackage> package_;
  const size_t most_days_;
  std::mutex mutex_;
  std::list<std::pair<int64_t, ItemBoost>> days_;  // last used first
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_
