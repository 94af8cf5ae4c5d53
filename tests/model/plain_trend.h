// What a model adds to its items' scores, computed as its definition reads.
#ifndef TIM4REC_TESTS_MODEL_PLAIN_TREND_H_
#define TIM4REC_TESTS_MODEL_PLAIN_TREND_H_

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/engine/recorded_use.h"
#include "model/weights/package.h"

namespace tim4rec {

// By day and item id.
using RecordedEvents = std::map<std::pair<int64_t, std::string>, int64_t>;

// As TopKRequest::boost. Of the recorded events those count that lie on the 150 days before that of
// the query, not before `first_day`, and behind the package's own.
inline std::vector<float> PlainBoost(const ModelPackage& package, const RecordedEvents& recorded,
                                     int64_t first_day, double user_share, int64_t as_of_ms) {
  const ItemTimeline& timeline = package.trend()->timeline;
  const int64_t day = DayOf(as_of_ms), last_day = LastDay(timeline);
  std::vector<double> use(package.config().n_items, 0);
  for (const auto& [key, events] : recorded) {
    const auto& [then, item_id] = key;
    const auto item = package.catalog().Find(item_id);
    if (!item || then >= day || then < day - 150 || then < first_day) continue;
    if (then <= last_day) continue;
    use[*item] += static_cast<double>(events) * std::exp2(-static_cast<double>(day - then) / 15);
  }
  std::vector<float> boost((use.size() + 15) / 16 * 16, 0);
  for (size_t item = 0; item < use.size(); ++item) {
    const double n = TrainedUse(timeline, static_cast<int32_t>(item), day) + use[item] / user_share;
    boost[item] = static_cast<float>(std::log1p(n)) * package.trend()->weight;
  }
  return boost;
}

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_PLAIN_TREND_H_
