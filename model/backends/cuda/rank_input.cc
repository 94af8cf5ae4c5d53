#include "model/backends/cuda/rank_input.h"

#include <algorithm>
#include <cstring>

namespace tim4rec::cuda {
namespace {

constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t EligibleBytes(int32_t items) { return (int64_t{items} + 63) / 64 * 8; }
int64_t BoostBytes(int32_t items) { return (int64_t{items} + 15) / 16 * 64; }

}  // namespace

RankInput::RankInput(int32_t items, int32_t d, int64_t boost_floats, std::byte* host,
                     std::byte* device, int64_t capacity)
    : items_(items),
      d_(d),
      boost_floats_(boost_floats),
      host_(host),
      device_(device),
      capacity_(capacity) {}

int64_t RankInput::MostBytesOfOne(int32_t items, int32_t d, int64_t boost_floats) {
  return Aligned(4 * int64_t{d}) + Aligned(4 * int64_t{items}) + Aligned(EligibleBytes(items)) +
         Aligned(4 * boost_floats);
}

const void* RankInput::Place(const void* from, int64_t bytes, int64_t room) {
  const int64_t at = used_;
  used_ += Aligned(room);
  if (used_ > capacity_) return nullptr;
  std::memcpy(host_ + at, from, static_cast<size_t>(bytes));
  std::memset(host_ + at + bytes, 0, static_cast<size_t>(room - bytes));
  return device_ + at;
}

bool RankInput::Add(const kernels::TopKQuery& query) {
  const int64_t used = used_;
  const size_t shared = shared_.size();
  const auto place_shared = [&](const void* from, int64_t bytes, int64_t room) -> const void* {
    if (from == nullptr) return nullptr;
    for (const auto& [known, placed] : shared_) {
      if (known == from) return placed;
    }
    shared_.emplace_back(from, Place(from, bytes, room));
    return shared_.back().second;
  };
  kernels::TopKQuery packed = query;
  packed.query = static_cast<const float*>(Place(query.query, 4 * d_, 4 * d_));
  packed.excluded = nullptr;
  // Those of the catalogue: an exclusion may name any item.
  const int32_t* all = query.excluded + query.excluded_count;
  const int32_t* first = std::lower_bound(query.excluded, all, 0);
  packed.excluded_count = std::lower_bound(first, all, items_) - first;
  if (packed.excluded_count > 0) {
    const int64_t bytes = 4 * packed.excluded_count;
    packed.excluded = static_cast<const int32_t*>(Place(first, bytes, bytes));
  }
  const int64_t eligible = EligibleBytes(items_);
  packed.eligible = static_cast<const uint64_t*>(place_shared(query.eligible, eligible, eligible));
  packed.boost =
      static_cast<const float*>(place_shared(query.boost, BoostBytes(items_), 4 * boost_floats_));
  if (used_ > capacity_) {
    used_ = used;
    shared_.resize(shared);
    return false;
  }
  queries_.push_back(packed);
  most_k_ = std::max(most_k_, query.k);
  return true;
}

void RankInput::Clear() {
  used_ = 0;
  most_k_ = 0;
  shared_.clear();
  queries_.clear();
}

}  // namespace tim4rec::cuda
