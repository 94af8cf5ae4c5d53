#include "model/engine/item_boosts.h"

#include <algorithm>
#include <span>

namespace tim4rec {
namespace {

constexpr int64_t kMostBytes = 64 << 20;

int64_t PaddedItems(const ModelPackage& package) {
  return (package.config().n_items + 15) / 16 * 16;
}

}  // namespace

ItemBoosts::ItemBoosts(std::shared_ptr<const ModelPackage> package)
    : package_(std::move(package)),
      most_days_(std::max<int64_t>(2, kMostBytes / (4 * PaddedItems(*package_)))) {}

ItemBoost ItemBoosts::At(int64_t as_of_ms) {
  const ItemTrend* trend = package_->trend();
  if (trend == nullptr) return nullptr;
  const int64_t day = DayOf(as_of_ms);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = std::find_if(days_.begin(), days_.end(),
                            [day](const auto& entry) { return entry.first == day; });
  if (found != days_.end()) {
    days_.splice(days_.begin(), days_, found);
    return days_.front().second;
  }
  std::vector<float> boost(PaddedItems(*package_), 0);
  trend->Boost(as_of_ms, std::span(boost).first(package_->config().n_items));
  if (days_.size() >= most_days_) days_.pop_back();
  days_.emplace_front(day, std::make_shared<const std::vector<float>>(std::move(boost)));
  return days_.front().second;
}

}  // namespace tim4rec
