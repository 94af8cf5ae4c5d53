#include "model/training/windows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace tim4rec {
namespace {

constexpr double kDayMs = 86'400'000;

// std::uniform_int_distribution and std::shuffle differ between standard libraries; the batches of
// a seed should not.
uint64_t Below(uint64_t bound, std::mt19937_64* rng) { return (*rng)() % bound; }

std::vector<Window> CutWindows(const Dataset& data, int64_t max_length, std::mt19937_64* rng) {
  std::vector<Window> windows;
  for (size_t user = 0; user < data.users.size(); ++user) {
    const int64_t inputs = data.users[user].train_size() - 1;
    if (inputs < 1) continue;
    int64_t begin = 0;
    int64_t end = inputs;
    if (inputs > max_length) end = 1 + static_cast<int64_t>(Below(max_length, rng));
    while (begin < inputs) {
      windows.push_back(
          {static_cast<int32_t>(user), static_cast<int32_t>(begin), static_cast<int32_t>(end)});
      begin = end;
      end = std::min(inputs, begin + max_length);
    }
  }
  return windows;
}

std::vector<double> TrainingGaps(const Dataset& data) {
  std::vector<double> gaps;
  for (const UserHistory& history : data.users) {
    for (int64_t i = 1; i < history.train_size(); ++i) {
      gaps.push_back(
          static_cast<double>(GapBefore(history, i, std::numeric_limits<int64_t>::max())));
    }
  }
  return gaps;
}

// `sorted` is not empty.
double Quantile(const std::vector<double>& sorted, double probability) {
  return sorted[static_cast<size_t>(probability * static_cast<double>(sorted.size() - 1))];
}

// Shortest first, with lengths blurred by up to a tenth, so that a window meets others in each
// epoch.
std::vector<Window> ByLength(const std::vector<Window>& windows, std::mt19937_64* rng) {
  std::vector<std::pair<double, size_t>> order;
  order.reserve(windows.size());
  for (size_t i = 0; i < windows.size(); ++i) {
    order.emplace_back(windows[i].size() * (1 + 1e-4 * static_cast<double>(Below(1000, rng))), i);
  }
  std::sort(order.begin(), order.end());
  std::vector<Window> sorted;
  sorted.reserve(windows.size());
  for (const auto& [length, i] : order) sorted.push_back(windows[i]);
  return sorted;
}

void Shuffle(std::vector<Batch>* batches, std::mt19937_64* rng) {
  for (size_t i = batches->size(); i > 1; --i) {
    std::swap((*batches)[i - 1], (*batches)[Below(i, rng)]);
  }
}

}  // namespace

std::vector<Batch> MakeBatches(const Dataset& data, int64_t max_length, int64_t batch_events,
                               std::mt19937_64* rng) {
  std::vector<Batch> batches;
  int64_t longest = 0;
  for (const Window& window : ByLength(CutWindows(data, max_length, rng), rng)) {
    longest = std::max<int64_t>(longest, window.size());
    if (batches.empty() ||
        longest * static_cast<int64_t>(batches.back().size() + 1) > batch_events) {
      batches.emplace_back();
      longest = window.size();
    }
    batches.back().push_back(window);
  }
  Shuffle(&batches, rng);
  return batches;
}

std::vector<Batch> MakePrefixBatches(const Dataset& data, int64_t max_length, int64_t batch_windows,
                                     std::mt19937_64* rng) {
  std::vector<Window> windows;
  for (size_t user = 0; user < data.users.size(); ++user) {
    for (int64_t end = 1; end < data.users[user].train_size(); ++end) {
      windows.push_back({static_cast<int32_t>(user),
                         static_cast<int32_t>(std::max<int64_t>(0, end - max_length)),
                         static_cast<int32_t>(end)});
    }
  }
  windows = ByLength(windows, rng);
  std::vector<Batch> batches;
  for (size_t begin = 0; begin < windows.size(); begin += batch_windows) {
    const size_t end = std::min<size_t>(windows.size(), begin + batch_windows);
    batches.emplace_back(windows.begin() + begin, windows.begin() + end);
  }
  Shuffle(&batches, rng);
  return batches;
}

int64_t GapBefore(const UserHistory& history, int64_t i, int64_t max_gap_ms) {
  if (i == 0) return 0;
  const int64_t gap = history.timestamps_ms[i] - history.timestamps_ms[i - 1];
  return std::clamp<int64_t>(gap, 0, max_gap_ms);
}

TimeConstants FitTimeConstants(const Dataset& data) {
  const std::vector<double> gaps = TrainingGaps(data);
  std::vector<double> positive;
  for (const double gap : gaps) {
    if (gap > 0) positive.push_back(gap);
  }
  TimeConstants time;
  if (positive.empty()) return time;
  std::sort(positive.begin(), positive.end());
  time.tau0_ms = std::clamp(Quantile(positive, 0.05), 1.0, kDayMs);
  time.max_gap_ms = std::llround(std::max(Quantile(positive, 0.999), kDayMs));
  double sum = 0;
  double squares = 0;
  for (const double gap : gaps) {
    const double u = std::log1p(std::min(gap, static_cast<double>(time.max_gap_ms)) / time.tau0_ms);
    sum += u;
    squares += u * u;
  }
  const double n = static_cast<double>(gaps.size());
  time.mean = sum / n;
  const double variance = squares / n - time.mean * time.mean;
  time.stddev = variance > 1e-6 ? std::sqrt(variance) : 1;
  return time;
}

std::vector<double> PositiveGapQuantiles(const Dataset& data,
                                         const std::vector<double>& probabilities) {
  std::vector<double> positive;
  for (const double gap : TrainingGaps(data)) {
    if (gap > 0) positive.push_back(gap);
  }
  std::sort(positive.begin(), positive.end());
  std::vector<double> quantiles;
  quantiles.reserve(probabilities.size());
  for (const double probability : probabilities) {
    quantiles.push_back(positive.empty() ? kDayMs : Quantile(positive, probability));
  }
  return quantiles;
}

int64_t MedianInputs(const Dataset& data, int64_t max_length) {
  std::vector<int64_t> lengths;
  for (const UserHistory& history : data.users) {
    if (history.train_size() >= 2)
      lengths.push_back(std::min(history.train_size() - 1, max_length));
  }
  if (lengths.empty()) return 1;
  const auto middle = lengths.begin() + static_cast<int64_t>(lengths.size() / 2);
  std::nth_element(lengths.begin(), middle, lengths.end());
  return *middle;
}

}  // namespace tim4rec
