#include "model/evaluation/buckets.h"

#include <limits>

namespace tim4rec {
namespace {

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
constexpr int64_t kMinuteMs = 60'000;
constexpr int64_t kHourMs = 60 * kMinuteMs;
constexpr int64_t kDayMs = 24 * kHourMs;

}  // namespace

const std::vector<Bucket>& HistoryBuckets() {
  static const auto* buckets = new std::vector<Bucket>{
      {"1-4 events", 1, 5},       {"5-9 events", 5, 10},     {"10-19 events", 10, 20},
      {"20-49 events", 20, 50},   {"50-99 events", 50, 100}, {"100-199 events", 100, 200},
      {"200+ events", 200, kAll},
  };
  return *buckets;
}

const std::vector<Bucket>& GapBuckets() {
  static const auto* buckets = new std::vector<Bucket>{
      {"same instant", 0, 1},
      {"under 1 minute", 1, kMinuteMs},
      {"1-60 minutes", kMinuteMs, kHourMs},
      {"1-24 hours", kHourMs, kDayMs},
      {"1-7 days", kDayMs, 7 * kDayMs},
      {"7-30 days", 7 * kDayMs, 30 * kDayMs},
      {"30-365 days", 30 * kDayMs, 365 * kDayMs},
      {"365+ days", 365 * kDayMs, kAll},
  };
  return *buckets;
}

BucketMeter::BucketMeter(const std::vector<Bucket>& buckets)
    : buckets_(buckets), meters_(buckets.size()) {}

void BucketMeter::Add(int64_t value, int64_t rank) {
  size_t i = buckets_.size() - 1;
  while (i > 0 && value < buckets_[i].from) --i;
  meters_[i].Add(rank);
}

std::vector<BucketMetrics> BucketMeter::Means() const {
  std::vector<BucketMetrics> means;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    means.push_back({buckets_[i].label, meters_[i].Mean()});
  }
  return means;
}

}  // namespace tim4rec
