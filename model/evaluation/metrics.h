// Ranking metrics of the protocol: one target per user, the whole catalogue ranked.
#ifndef TIM4REC_MODEL_EVALUATION_METRICS_H_
#define TIM4REC_MODEL_EVALUATION_METRICS_H_

#include <cstdint>

namespace tim4rec {

// Means over users. HR@k: share of users whose target is among the first k. NDCG@k:
// 1 / log2(rank + 1) of a target among the first k, rank from 1. MRR@k: 1 / rank.
struct RankingMetrics {
  int64_t users = 0;
  double hr10 = 0, ndcg10 = 0, mrr10 = 0;
  double hr20 = 0, ndcg20 = 0, mrr20 = 0;
};

// Sums up one user after the other. Not thread-safe.
class RankingMeter {
 public:
  // Rank of the target from 1; 0 if it is not among the ranked items.
  void Add(int64_t rank);
  // All 0 without users.
  RankingMetrics Mean() const;

 private:
  RankingMetrics sum_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_EVALUATION_METRICS_H_
