// Random models, events and records in the kernels' own terms, for programs that run where there is
// nothing but CUDA and a C++ compiler.
#ifndef TIM4REC_TESTS_GPU_RANDOM_MODEL_H_
#define TIM4REC_TESTS_GPU_RANDOM_MODEL_H_

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "model/kernels/kernels.h"

namespace tim4rec::gpu_test {

using Random = std::mt19937_64;

// Sizes and uses of time, before the places of a record are known.
struct Sizes {
  int32_t d = 64, expand = 2, p = 32, n = 32, k = 4, m = 16, layers = 2, items = 100;
  bool ffn = true, time_write = true, time_decay = true, time_query = true, conv_silu = true;
  int32_t window = 0;  // with one, no other use of time
  bool window_gate_per_event = false;
};

// The sizes that are served, at a width.
Sizes ServedSizes(int32_t d);
// Awkward ones, small enough for tests.
Sizes RandomSizes(Random* random);
Sizes RandomWindowSizes(Random* random);

// With the places of StateLayout.
kernels::Dims DimsOf(const Sizes& sizes);
// Bytes of a user's record.
int64_t RecordBytes(const kernels::Dims& dims);

struct Model {
  kernels::Dims dims;
  kernels::Weights weights;
  std::vector<kernels::LayerWeights> layers;
  std::vector<std::unique_ptr<float[]>> storage;
};

// Weights in the range of a trained model's.
std::unique_ptr<const Model> MakeModel(const Sizes& sizes, Random* random);

// Items of the model; timestamps ascend from `*clock_ms`, with gaps from none to years, and a few
// that go back. Moves the clock.
std::vector<kernels::Event> RandomEvents(const kernels::Dims& dims, int64_t count,
                                         int64_t* clock_ms, Random* random);

}  // namespace tim4rec::gpu_test

#endif  // TIM4REC_TESTS_GPU_RANDOM_MODEL_H_
