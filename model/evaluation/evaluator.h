// Full ranking through an engine: what is measured is what is served.
#ifndef TIM4REC_MODEL_EVALUATION_EVALUATOR_H_
#define TIM4REC_MODEL_EVALUATION_EVALUATOR_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine/engine.h"
#include "model/evaluation/buckets.h"
#include "model/evaluation/metrics.h"

namespace tim4rec {

// One user: what is folded, and what came next.
struct RankingCase {
  std::vector<FoldEvent> history;  // in fold order; may be empty: then popularity ranks
  int32_t target = 0;              // 0: not in the catalogue, counts as a miss
  int64_t as_of_ms = 0;            // when the recommendation is asked for
  int64_t gap_ms = 0;  // from the event before the target to the target; only sorts into buckets
};

struct RankingOptions {
  int threads = 0;  // 0: one per core
  int k = 20;       // length of the lists, 20 … 1000
  // Called with the number of cases done, from one thread at a time; may be empty.
  std::function<void(size_t done)> progress;
};

struct RankingResult {
  RankingMetrics metrics;
  std::vector<BucketMetrics> by_history;     // HistoryBuckets, by the size of `history`
  std::vector<BucketMetrics> by_gap;         // GapBuckets, by `gap_ms`
  std::vector<std::vector<ScoredItem>> top;  // per case, best first, nothing excluded
};

// The metrics of lists that something ranked: `top[i]` answers `cases[i]`, best first.
RankingResult MeterRanking(std::span<const RankingCase> cases,
                           std::vector<std::vector<ScoredItem>> top);

// Ranks the whole catalogue, items already seen included, for every case. Slots of the backend are
// allocated and released; the result does not depend on the number of threads. Fails as the
// backend's calls do.
absl::StatusOr<RankingResult> EvaluateRanking(const Engine& engine,
                                              std::span<const RankingCase> cases,
                                              const RankingOptions& options);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_EVALUATION_EVALUATOR_H_
