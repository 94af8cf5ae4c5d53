// What a batch of rankings reads, in one piece that is copied to a device.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_RANK_INPUT_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_RANK_INPUT_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "model/kernels/kernels.h"

namespace tim4rec::cuda {

// Query vectors, exclusions, filters and boosts; what several queries share by its address is there
// once. Not thread-safe.
class RankInput {
 public:
  // Packs into `host`, of which a copy will be at `device`; both have `capacity` bytes, enough for
  // MostBytesOfOne. `boost_floats`: of a boost on the device, not fewer than on the host.
  RankInput(int32_t items, int32_t d, int64_t boost_floats, std::byte* host, std::byte* device,
            int64_t capacity);

  // What any single query without candidates needs, if it excludes no item twice.
  static int64_t MostBytesOfOne(int32_t items, int32_t d, int64_t boost_floats);

  // Adds the query; false if it does not fit, then nothing has changed. It has no candidates.
  bool Add(const kernels::TopKQuery& query);
  void Clear();

  // Those added, reading the copy.
  const std::vector<kernels::TopKQuery>& queries() const { return queries_; }
  int64_t bytes() const { return used_; }
  int32_t most_k() const { return most_k_; }

 private:
  // The address on the device of a copy of [from, from + bytes) followed by zeros up to `room`.
  const void* Place(const void* from, int64_t bytes, int64_t room);

  const int32_t items_, d_;
  const int64_t boost_floats_;
  std::byte* const host_;
  std::byte* const device_;
  const int64_t capacity_;
  int64_t used_ = 0;
  int32_t most_k_ = 0;
  std::vector<std::pair<const void*, const void*>> shared_;  // boosts and filters: from, on device
  std::vector<kernels::TopKQuery> queries_;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_RANK_INPUT_H_
