#include "server/loadgen/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace tim4rec {
namespace {

constexpr int kBits = 7;
constexpr uint64_t kExact = uint64_t{2} << kBits;  // values below have a bucket of their own
constexpr uint64_t kPerOctave = uint64_t{1} << kBits;

size_t BucketOf(uint64_t value) {
  if (value < kExact) return value;
  const int shift = std::bit_width(value) - kBits - 1;
  return kExact + static_cast<uint64_t>(shift - 1) * kPerOctave + (value >> shift) - kPerOctave;
}

// The largest value of a bucket.
uint64_t EndOf(size_t bucket) {
  if (bucket < kExact) return bucket;
  const uint64_t shift = (bucket - kExact) / kPerOctave + 1;
  const uint64_t mantissa = (bucket - kExact) % kPerOctave + kPerOctave;
  return ((mantissa + 1) << shift) - 1;
}

}  // namespace

void Histogram::Add(uint64_t value) {
  const size_t bucket = BucketOf(value);
  if (bucket >= counts_.size()) counts_.resize(bucket + 1);
  ++counts_[bucket];
  min_ = count_ == 0 ? value : std::min(min_, value);
  max_ = std::max(max_, value);
  ++count_;
  sum_ += static_cast<double>(value);
}

void Histogram::Merge(const Histogram& other) {
  if (other.count_ == 0) return;
  if (counts_.size() < other.counts_.size()) counts_.resize(other.counts_.size());
  for (size_t i = 0; i < other.counts_.size(); ++i) counts_[i] += other.counts_[i];
  min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  count_ += other.count_;
  sum_ += other.sum_;
}

uint64_t Histogram::Quantile(double q) const {
  const auto rank =
      std::max<uint64_t>(1, static_cast<uint64_t>(std::ceil(q * static_cast<double>(count_))));
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::min(EndOf(i), max_);
  }
  return max_;
}

}  // namespace tim4rec
