#include "model/training/item_timeline.h"

#include <algorithm>
#include <cmath>

namespace tim4rec {
namespace {

constexpr int64_t kDayMs = 86'400'000;

double Kept(int64_t days) {
  return std::exp2(-static_cast<double>(days) / ItemTimeline::kHalfLifeDays);
}

}  // namespace

int64_t DayOf(int64_t timestamp_ms) {
  const int64_t day = timestamp_ms / kDayMs;
  return timestamp_ms % kDayMs < 0 ? day - 1 : day;
}

ItemTimeline::ItemTimeline(const Dataset& data) : begin_(data.items.size() + 1, 0) {
  std::vector<std::vector<int64_t>> days(data.items.size());
  for (const UserHistory& history : data.users) {
    for (int64_t i = 0; i < history.train_size(); ++i) {
      days[history.items[i]].push_back(DayOf(history.timestamps_ms[i]));
    }
  }
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

void ItemTimeline::Age(int64_t day, std::span<float> out) const {
  for (int64_t item = 0; item < n_items(); ++item) {
    const bool known = begin_[item] < begin_[item + 1] && marks_[begin_[item]].day <= day;
    out[item] = known ? static_cast<float>(std::log1p(day - marks_[begin_[item]].day)) : -1.0F;
  }
}

}  // namespace tim4rec
