#include "server/pipeline/batch_times.h"

#include <algorithm>
#include <cmath>

namespace tim4rec {
namespace {

constexpr double kMemorySeconds = 0.25;
// Batches of like sizes do not tell the two parts apart: a spread below this part of their mean
// counts less and less,
constexpr double kLeastSpread = 0.1;
// and rows are never free, so that an estimate grows by no more than this factor at once.
constexpr double kMostGrowth = 4;

}  // namespace

void BatchTimes::Add(int64_t rows, absl::Duration took) {
  const double r = static_cast<double>(rows);
  const double t = std::max(1e-9, absl::ToDoubleSeconds(took));
  const double keep = std::exp(-t / kMemorySeconds);
  for (double* sum : {&weight_, &rows_, &seconds_, &rows_rows_, &rows_seconds_}) *sum *= keep;
  weight_ += 1;
  rows_ += r;
  seconds_ += t;
  rows_rows_ += r * r;
  rows_seconds_ += r * t;
}

BatchTimes::Line BatchTimes::Fit() const {
  const double rows = rows_ / weight_;
  const double seconds = seconds_ / weight_;
  const double variance = std::max(0.0, rows_rows_ / weight_ - rows * rows);
  const double covariance = rows_seconds_ / weight_ - rows * seconds;
  const double least = kLeastSpread * rows;
  const double per_row = std::clamp(covariance / (variance + least * least),
                                    seconds / rows / kMostGrowth, seconds / rows);
  return {seconds - per_row * rows, per_row};
}

absl::Duration BatchTimes::Estimate(int64_t rows, int64_t most) const {
  if (!measured()) return absl::ZeroDuration();
  const Line line = Fit();
  const auto batches = static_cast<double>((rows + most - 1) / most);
  return absl::Seconds(line.fixed * batches + line.per_row * static_cast<double>(rows));
}

int64_t BatchTimes::RowsWithin(absl::Duration time, int64_t most) const {
  if (!measured()) return kUnknown;
  const Line line = Fit();
  const double seconds = std::max(absl::ToDoubleSeconds(time), 2 * line.fixed);
  const auto full = static_cast<double>(most);
  double rows = (seconds - line.fixed) / line.per_row;
  if (rows > full) rows = seconds * full / (line.fixed + line.per_row * full);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(rows, 1e15)));
}

}  // namespace tim4rec
