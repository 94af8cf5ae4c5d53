#include "model/weights/item_timeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

constexpr int64_t kDayMs = 86'400'000;
// Of any timestamp in int64 ms, so that differences of days cannot overflow.
constexpr int64_t kMostDays = INT64_MAX / kDayMs + 1;

double Kept(int64_t days) {
  return std::exp2(-static_cast<double>(days) / ItemTimeline::kHalfLifeDays);
}

}  // namespace

int64_t DayOf(int64_t timestamp_ms) {
  const int64_t day = timestamp_ms / kDayMs;
  return timestamp_ms % kDayMs < 0 ? day - 1 : day;
}

ItemTimeline::ItemTimeline(std::vector<std::vector<int64_t>> days) : begin_(days.size() + 1, 0) {
  for (size_t item = 0; item < days.size(); ++item) {
    std::sort(days[item].begin(), days[item].end());
    const auto first = static_cast<int64_t>(marks_.size());
    for (const int64_t day : days[item]) {
      const bool known = static_cast<int64_t>(marks_.size()) > first;
      if (known && marks_.back().day == day) {
        marks_.back().count += 1;
      } else {
        marks_.push_back(
            {day, 1 + (known ? marks_.back().count * Kept(day - marks_.back().day) : 0)});
      }
    }
    begin_[item + 1] = static_cast<int64_t>(marks_.size());
  }
}

absl::StatusOr<ItemTimeline> ItemTimeline::Create(std::vector<int64_t> begin,
                                                  std::vector<Mark> marks) {
  if (begin.empty() || begin.front() != 0 || !std::is_sorted(begin.begin(), begin.end()) ||
      begin.back() != static_cast<int64_t>(marks.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("begin must ascend from 0 to the ", marks.size(), " marks"));
  }
  for (size_t item = 0; item + 1 < begin.size(); ++item) {
    for (int64_t i = begin[item]; i < begin[item + 1]; ++i) {
      const Mark& mark = marks[i];
      if (!std::isfinite(mark.count) || mark.count <= 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("count of mark ", i, " is ", mark.count, ", must be finite and above 0"));
      }
      if (mark.day < -kMostDays || mark.day > kMostDays ||
          (i > begin[item] && mark.day <= marks[i - 1].day)) {
        return absl::InvalidArgumentError(
            absl::StrCat("day of mark ", i, " is ", mark.day,
                         ", must be above that of the item's mark before it, and within ",
                         kMostDays, " of 1970"));
      }
    }
  }
  ItemTimeline timeline;
  timeline.begin_ = std::move(begin);
  timeline.marks_ = std::move(marks);
  return timeline;
}

void ItemTimeline::Trend(int64_t day, std::span<float> out) const {
  for (int64_t item = 0; item < n_items(); ++item) {
    const auto first = marks_.begin() + begin_[item], last = marks_.begin() + begin_[item + 1];
    const auto after =
        std::partition_point(first, last, [day](const Mark& mark) { return mark.day < day; });
    out[item] = after == first
                    ? 0.0F
                    : static_cast<float>(std::log1p(after[-1].count * Kept(day - after[-1].day)));
  }
}

void ItemTrend::Boost(int64_t as_of_ms, std::span<float> out) const {
  timeline.Trend(DayOf(as_of_ms), out);
  for (float& value : out) value *= weight;
}

void ItemTimeline::Age(int64_t day, std::span<float> out) const {
  for (int64_t item = 0; item < n_items(); ++item) {
    const bool known = begin_[item] < begin_[item + 1] && marks_[begin_[item]].day <= day;
    out[item] = known ? static_cast<float>(std::log1p(day - marks_[begin_[item]].day)) : -1.0F;
  }
}

}  // namespace tim4rec
