// How often a server's users used a model's items on the days after its training, for its trend.
#ifndef TIM4REC_MODEL_ENGINE_RECORDED_USE_H_
#define TIM4REC_MODEL_ENGINE_RECORDED_USE_H_

#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "model/weights/item_timeline.h"

namespace tim4rec {

// The last day with any event of training; the least number there is if no item has one.
int64_t LastDay(const ItemTimeline& timeline);

// The item's events of training on days strictly before `day`, halved for every
// ItemTimeline::kHalfLifeDays that lie between.
double TrainedUse(const ItemTimeline& timeline, int32_t item, int64_t day);

// Not thread-safe. 8 bytes per item and day with any use, 24 per item.
class RecordedUse {
 public:
  // Use further back than ten half-lives, which would count for a thousandth, does not count.
  static constexpr int64_t kWindowDays = 150;

  // Days up to `known_until` are left out: the package's own counts have them.
  RecordedUse(int64_t n_items, int64_t known_until);

  // By how much the use of an item on a day has changed. False if that day is left out.
  bool Add(int32_t item, int64_t day, int64_t change);
  // Days before this are forgotten.
  void ForgetBefore(int64_t first_day);

  // The item's use on the kWindowDays before `day`, halved for every ItemTimeline::kHalfLifeDays
  // that lie between: a sum in order of days, so that equal counts give equal bits.
  double Recent(int32_t item, int64_t day) const;

 private:
  struct Use {
    int32_t day;
    int32_t events;
  };

  int64_t first_day_;
  std::vector<std::vector<Use>> items_;       // days ascend
  std::array<double, kWindowDays + 1> kept_;  // of a use, by the days since
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_RECORDED_USE_H_
