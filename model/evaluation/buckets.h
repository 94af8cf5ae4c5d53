// Accuracy by kinds of users: how much is known of them, and how long ago they were last seen.
#ifndef TIM4REC_MODEL_EVALUATION_BUCKETS_H_
#define TIM4REC_MODEL_EVALUATION_BUCKETS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "model/evaluation/metrics.h"

namespace tim4rec {

// Values in [from, below).
struct Bucket {
  std::string label;
  int64_t from = 0;
  int64_t below = 0;
};

// By the number of events before the target: 1-4, 5-9, 10-19, 20-49, 50-99, 100-199, 200 or more.
const std::vector<Bucket>& HistoryBuckets();

// By the time from the last event to the target, in ms: the same instant (a tie, or an order that
// timestamps do not tell), under a minute, an hour, a day, a week, 30 days, a year, and more.
const std::vector<Bucket>& GapBuckets();

struct BucketMetrics {
  std::string label;
  RankingMetrics metrics;  // of the users in it
};

// Sums up users into buckets. Not thread-safe.
class BucketMeter {
 public:
  // Buckets in ascending order, one beginning where the one before it ends.
  explicit BucketMeter(const std::vector<Bucket>& buckets);
  // `rank` as for RankingMeter; a `value` below the first bucket counts in the first.
  void Add(int64_t value, int64_t rank);
  // Of all buckets, also those without users.
  std::vector<BucketMetrics> Means() const;

 private:
  const std::vector<Bucket>& buckets_;
  std::vector<RankingMeter> meters_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_EVALUATION_BUCKETS_H_
