#include "model/engine/recorded_use.h"

#include <algorithm>
#include <cmath>

#include "model/weights/item_timeline.h"

namespace tim4rec {
namespace {

constexpr int64_t kLastDay = std::numeric_limits<int32_t>::max();

auto Before(int64_t day) {
  return [day](const auto& use) { return use.day < day; };
}

double Kept(int64_t days) {
  return std::exp2(-static_cast<double>(days) / ItemTimeline::kHalfLifeDays);
}

}  // namespace

int64_t LastDay(const ItemTimeline& timeline) {
  int64_t last = std::numeric_limits<int64_t>::min();
  for (const ItemTimeline::Mark& mark : timeline.marks()) last = std::max(last, mark.day);
  return last;
}

double TrainedUse(const ItemTimeline& timeline, int32_t item, int64_t day) {
  const auto marks = timeline.marks().subspan(timeline.begin()[item],
                                              timeline.begin()[item + 1] - timeline.begin()[item]);
  const auto after = std::partition_point(marks.begin(), marks.end(), Before(day));
  return after == marks.begin() ? 0 : after[-1].count * Kept(day - after[-1].day);
}

RecordedUse::RecordedUse(int64_t n_items, int64_t known_until)
    : first_day_(std::max<int64_t>(known_until, std::numeric_limits<int32_t>::min()) + 1),
      items_(n_items) {
  for (int64_t days = 0; days <= kWindowDays; ++days) {
    kept_[days] = Kept(days);
  }
}

bool RecordedUse::Add(int32_t item, int64_t day, int64_t change) {
  if (day < first_day_ || day > kLastDay) return false;
  std::vector<Use>& uses = items_[item];
  const bool newest = uses.empty() || uses.back().day < day;
  auto at = newest ? uses.end() : std::partition_point(uses.begin(), uses.end(), Before(day));
  if (newest || at->day != day) at = uses.insert(at, {static_cast<int32_t>(day), 0});
  at->events = static_cast<int32_t>(std::clamp<int64_t>(at->events + change,
                                                        std::numeric_limits<int32_t>::min(),
                                                        std::numeric_limits<int32_t>::max()));
  if (at->events == 0) uses.erase(at);
  return true;
}

void RecordedUse::ForgetBefore(int64_t first_day) {
  if (first_day <= first_day_) return;
  first_day_ = first_day;
  for (std::vector<Use>& uses : items_) {
    uses.erase(uses.begin(), std::partition_point(uses.begin(), uses.end(), Before(first_day)));
  }
}

double RecordedUse::Recent(int32_t item, int64_t day) const {
  const std::vector<Use>& uses = items_[item];
  double recent = 0;
  for (auto at = std::partition_point(uses.begin(), uses.end(), Before(day - kWindowDays));
       at != uses.end() && at->day < day; ++at) {
    recent += at->events * kept_[day - at->day];
  }
  return recent;
}

}  // namespace tim4rec
