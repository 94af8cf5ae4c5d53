// Cuts histories into training windows, packs windows into batches, and fixes the time constants.
#ifndef TIM4REC_MODEL_TRAINING_WINDOWS_H_
#define TIM4REC_MODEL_TRAINING_WINDOWS_H_

#include <cstdint>
#include <random>
#include <vector>

#include "model/config/config.h"
#include "model/training/dataset.h"

namespace tim4rec {

// Events [begin, end) of a user are inputs; the target of each is the event after it.
struct Window {
  int32_t user;
  int32_t begin;
  int32_t end;

  int32_t size() const { return end - begin; }
};

using Batch = std::vector<Window>;

// One epoch's windows in batches, in random order. Every training event but a user's first is a
// target exactly once. Histories longer than `max_length` are cut into windows whose borders move
// from epoch to epoch. A batch holds windows of similar length, so many that its padded size is at
// most `batch_events` (but at least one). The same rng state gives the same batches.
std::vector<Batch> MakeBatches(const Dataset& data, int64_t max_length, int64_t batch_events,
                               std::mt19937_64* rng);

// The same for models that predict once per window, after its last event: a window for every such
// target, of the last `max_length` events before it, `batch_windows` of similar length to a batch,
// in random order.
std::vector<Batch> MakePrefixBatches(const Dataset& data, int64_t max_length, int64_t batch_windows,
                                     std::mt19937_64* rng);

// Gap before event i of a history as the model sees it: 0 for the first, never negative, at most
// max_gap_ms.
int64_t GapBefore(const UserHistory& history, int64_t i, int64_t max_gap_ms);

// Time constants from the gaps between consecutive training events: tau0 the 5 % quantile of the
// positive gaps (1 ms … 1 day; 1 minute if there are none), so that the finest gaps that occur are
// told apart; max_gap_ms their 99.9 % quantile, at least one day (beyond it the model would
// extrapolate); mean and standard deviation of log1p(gap / tau0) over all gaps.
TimeConstants FitTimeConstants(const Dataset& data);

// Quantiles of the positive training gaps in ms, one per entry of `probabilities`; one day each if
// there are none.
std::vector<double> PositiveGapQuantiles(const Dataset& data,
                                         const std::vector<double>& probabilities);

// Median over the users of how many events a training window of theirs has: all they have as
// inputs, at most `max_length`. 1 if nobody has any.
int64_t MedianInputs(const Dataset& data, int64_t max_length);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_WINDOWS_H_
