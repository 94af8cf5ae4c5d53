// What the events of training say about the items on a day: how much each was used lately, how old
// it is.
#ifndef TIM4REC_MODEL_WEIGHTS_ITEM_TIMELINE_H_
#define TIM4REC_MODEL_WEIGHTS_ITEM_TIMELINE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace tim4rec {

// Days since 1970-01-01 UTC, rounded down.
int64_t DayOf(int64_t timestamp_ms);

// Immutable, thread-safe; memory grows with the number of different (item, day) pairs.
class ItemTimeline {
 public:
  static constexpr double kHalfLifeDays = 15;

  // An item's events up to and with a day that has any.
  struct Mark {
    int64_t day;
    double count;  // each event halved for every kHalfLifeDays before `day`
  };

  ItemTimeline() : begin_{0} {}
  // `days[v]`: the days of item v's events, in any order.
  explicit ItemTimeline(std::vector<std::vector<int64_t>> days);
  // From what a file says: item v's marks are those from begin[v] on. INVALID_ARGUMENT unless
  // `begin` ascends from 0 to the number of marks, days ascend for each item and counts are finite
  // and above 0.
  static absl::StatusOr<ItemTimeline> Create(std::vector<int64_t> begin, std::vector<Mark> marks);

  int64_t n_items() const { return static_cast<int64_t>(begin_.size()) - 1; }  // V
  std::span<const int64_t> begin() const { return begin_; }                    // [V+1]
  std::span<const Mark> marks() const { return marks_; }                       // by item, by day

  // For every item log(1 + n), n its events on days strictly before `day`, each halved for every
  // kHalfLifeDays that lie between. `out` [V].
  void Trend(int64_t day, std::span<float> out) const;

  // For every item log1p of the days since its first event, 0 on the day itself; -1 for items whose
  // first event comes after `day`, and for those without any. `out` [V].
  void Age(int64_t day, std::span<float> out) const;

 private:
  std::vector<Mark> marks_;
  std::vector<int64_t> begin_;
};

// A term of the scores: weight times ItemTimeline::Trend of the day of the query.
struct ItemTrend {
  float weight = 0;
  ItemTimeline timeline;

  // `out` [V].
  void Boost(int64_t as_of_ms, std::span<float> out) const;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_ITEM_TIMELINE_H_
