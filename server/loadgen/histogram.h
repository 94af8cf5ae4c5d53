// Latencies as counts in buckets whose width is at most 1/128 of the value.
#ifndef TIM4REC_SERVER_LOADGEN_HISTOGRAM_H_
#define TIM4REC_SERVER_LOADGEN_HISTOGRAM_H_

#include <cstdint>
#include <vector>

namespace tim4rec {

// Any unsigned value; loadgen counts nanoseconds. Not thread-safe.
class Histogram {
 public:
  void Add(uint64_t value);
  void Merge(const Histogram& other);

  uint64_t count() const { return count_; }
  // The three below are 0 without values.
  uint64_t min() const { return count_ == 0 ? 0 : min_; }
  uint64_t max() const { return max_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

  // The smallest value such that a share `q` (0 to 1) of all values is not above it, rounded up to
  // the end of its bucket, at most max(). 0 without values.
  uint64_t Quantile(double q) const;

 private:
  std::vector<uint64_t> counts_;
  uint64_t count_ = 0;
  uint64_t min_ = 0;
  uint64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_HISTOGRAM_H_
