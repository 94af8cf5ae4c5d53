// What the training events say about the items on a day: how much each is used lately, how old it
// is.
#ifndef TIM4REC_MODEL_TRAINING_ITEM_TIMELINE_H_
#define TIM4REC_MODEL_TRAINING_ITEM_TIMELINE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "model/training/dataset.h"

namespace tim4rec {

// Days since 1970-01-01 UTC, rounded down.
int64_t DayOf(int64_t timestamp_ms);

// Made of the training events alone: no held-out event can change it. Immutable, thread-safe;
// memory grows with the number of different (item, day) pairs.
class ItemTimeline {
 public:
  static constexpr double kHalfLifeDays = 15;

  explicit ItemTimeline(const Dataset& data);

  int64_t n_items() const { return static_cast<int64_t>(begin_.size()) - 1; }  // V

  // For every item log(1 + n), n its events on days strictly before `day`, each halved for every
  // kHalfLifeDays that lie between. `out` [V].
  void Trend(int64_t day, std::span<float> out) const;

  // For every item log1p of the days since its first event, 0 on the day itself; -1 for items whose
  // first event comes after `day`, and for those without any. `out` [V].
  void Age(int64_t day, std::span<float> out) const;

 private:
  struct Mark {
    int64_t day;
    double count;  // decayed to `day`, whose own events are in it
  };
  std::vector<Mark> marks_;     // by item, then by day
  std::vector<int64_t> begin_;  // [V+1], where an item's marks begin
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_ITEM_TIMELINE_H_
