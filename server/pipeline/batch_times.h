// How long a worker's batches take, as measured.
#ifndef TIM4REC_SERVER_PIPELINE_BATCH_TIMES_H_
#define TIM4REC_SERVER_PIPELINE_BATCH_TIMES_H_

#include <cstdint>

#include "absl/time/time.h"

namespace tim4rec {

// A line through the batches of about the last quarter of a second of work: a part that every batch
// costs (a sync of the log, a pass over the catalogue) and a part per row (see JobSize). Not
// thread-safe.
class BatchTimes {
 public:
  void Add(int64_t rows, absl::Duration took);

  bool measured() const { return weight_ > 0; }
  // Of so many rows in batches of `most` rows; zero before there was a batch.
  absl::Duration Estimate(int64_t rows, int64_t most) const;

  // The rows that are done, in batches of `most` at most, within `time`, or within twice what every
  // batch costs if that is longer, since smaller batches would do little but that. At least 1;
  // kUnknown before there was a batch.
  int64_t RowsWithin(absl::Duration time, int64_t most) const;
  static constexpr int64_t kUnknown = INT64_MAX;

 private:
  struct Line {
    double fixed, per_row;  // seconds
  };
  Line Fit() const;

  // Decayed sums over batches.
  double weight_ = 0, rows_ = 0, seconds_ = 0, rows_rows_ = 0, rows_seconds_ = 0;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_BATCH_TIMES_H_
