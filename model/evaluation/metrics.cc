#include "model/evaluation/metrics.h"

#include <algorithm>
#include <cmath>

namespace tim4rec {

void RankingMeter::Add(int64_t rank) {
  ++sum_.users;
  if (rank < 1 || rank > 20) return;
  const double gain = 1 / std::log2(static_cast<double>(rank) + 1);
  const double reciprocal = 1 / static_cast<double>(rank);
  sum_.hr20 += 1;
  sum_.ndcg20 += gain;
  sum_.mrr20 += reciprocal;
  if (rank > 10) return;
  sum_.hr10 += 1;
  sum_.ndcg10 += gain;
  sum_.mrr10 += reciprocal;
}

RankingMetrics RankingMeter::Mean() const {
  RankingMetrics mean = sum_;
  const double n = static_cast<double>(std::max<int64_t>(1, sum_.users));
  for (double* value :
       {&mean.hr10, &mean.ndcg10, &mean.mrr10, &mean.hr20, &mean.ndcg20, &mean.mrr20}) {
    *value /= n;
  }
  return mean;
}

}  // namespace tim4rec
