#include "model/engine/item_boosts.h"

#include <algorithm>
#include <cmath>

namespace tim4rec {
namespace {

constexpr int64_t kMostBytes = 64 << 20;
constexpr int64_t kNever = std::numeric_limits<int64_t>::min();

int64_t PaddedItems(const ModelPackage& package) {
  return (package.config().n_items + 15) / 16 * 16;
}

}  // namespace

ItemBoosts::ItemBoosts(std::shared_ptr<const ModelPackage> package)
    : package_(std::move(package)),
      most_days_(std::max<int64_t>(2, kMostBytes / (4 * PaddedItems(*package_)))),
      use_(NoUse()),
      first_day_(kNever) {}

RecordedUse ItemBoosts::NoUse() const {
  const ItemTrend* trend = package_->trend();
  return trend == nullptr ? RecordedUse(0, kNever)
                          : RecordedUse(package_->config().n_items, LastDay(trend->timeline));
}

ItemBoost ItemBoosts::At(int64_t as_of_ms) {
  if (package_->trend() == nullptr) return nullptr;
  const int64_t day = DayOf(as_of_ms);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = std::find_if(days_.begin(), days_.end(),
                            [day](const Day& entry) { return entry.day == day; });
  if (found != days_.end()) {
    days_.splice(days_.begin(), days_, found);
    Follow(&days_.front());
    return days_.front().boost;
  }
  std::vector<float> boost(PaddedItems(*package_), 0);
  for (int32_t item = 0; item < package_->config().n_items; ++item) boost[item] = Boost(item, day);
  if (days_.size() >= most_days_) days_.pop_back();
  days_.push_front(
      {day, changes_.size(), std::make_shared<const std::vector<float>>(std::move(boost))});
  last_kept_ = std::max(last_kept_, day);
  return days_.front().boost;
}

float ItemBoosts::Boost(int32_t item, int64_t day) const {
  const ItemTrend& trend = *package_->trend();
  // No score is ever NaN, whatever the changes say.
  const double recent = std::max(0.0, use_.Recent(item, day));
  const double use = TrainedUse(trend.timeline, item, day) + recent / share_;
  return static_cast<float>(std::log1p(use)) * trend.weight;
}

// Those who hold the boost keep what they hold.
void ItemBoosts::Follow(Day* day) const {
  std::optional<std::vector<float>> boost;
  for (; day->changes < changes_.size(); ++day->changes) {
    const auto& [item, changed] = changes_[day->changes];
    if (changed >= day->day) continue;
    if (!boost) boost = *day->boost;
    (*boost)[item] = Boost(item, day->day);
  }
  if (boost) day->boost = std::make_shared<const std::vector<float>>(*std::move(boost));
}

void ItemBoosts::Drop() {
  days_.clear();
  changes_.clear();
  last_kept_ = kNever;
}

void ItemBoosts::SetUserShare(double share) {
  const std::lock_guard<std::mutex> lock(mutex_);
  share_ = share;
  Drop();
}

void ItemBoosts::Begin() {
  const std::lock_guard<std::mutex> lock(mutex_);
  fresh_ = NoUse();
}

void ItemBoosts::Swap() {
  const std::lock_guard<std::mutex> lock(mutex_);
  use_ = *std::exchange(fresh_, std::nullopt);
  use_.ForgetBefore(first_day_);
  Drop();
}

void ItemBoosts::Add(std::span<const ItemUseChange> changes, int64_t first_day) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (first_day > first_day_) {
    first_day_ = first_day;
    use_.ForgetBefore(first_day);
    Drop();
  }
  RecordedUse& use = fresh_ ? *fresh_ : use_;
  for (const ItemUseChange& change : changes) {
    if (!use.Add(change.item, change.day, change.change)) continue;
    if (change.day < last_kept_ && !fresh_) changes_.emplace_back(change.item, change.day);
  }
  // More than it would cost to begin anew.
  if (static_cast<int64_t>(changes_.size()) > package_->config().n_items) Drop();
}

}  // namespace tim4rec
