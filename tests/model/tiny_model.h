// Small valid models with random weights, for tests.
#ifndef TIM4REC_TESTS_MODEL_TINY_MODEL_H_
#define TIM4REC_TESTS_MODEL_TINY_MODEL_H_

#include <cstdint>
#include <vector>

#include "model/config/config.h"
#include "model/weights/package.h"

namespace tim4rec {

// A valid streaming configuration with random small sizes, activations and uses of time.
ModelConfig RandomStreamingConfig(uint64_t seed);

// The same for the published variant: with and without time, windows of 5 to 20 events.
ModelConfig RandomPublishedConfig(uint64_t seed);

// A random history of `length` events over the model's items, timestamps ascending, gaps from
// seconds to months.
struct History {
  std::vector<int32_t> items;
  std::vector<int64_t> timestamps_ms;
};
History RandomHistory(const ModelConfig& config, int64_t length, uint64_t seed);

// Random weights of sensible scale for `config`, items "item1" … with titles, categories and
// popularities, and a probe of three cases evaluated in float64.
PackageContents MakeTinyModel(const ModelConfig& config, uint64_t seed);

// The same with a configuration of its own: D 16, two layers, 60 items, all uses of time.
PackageContents MakeTinyModel(uint64_t seed);

// A trend of weight 1.5 of random use of items 1 … V-1, on days from `first_day` to `last_day`;
// some items have none.
ItemTrend RandomTrend(int64_t n_items, int64_t first_day, int64_t last_day, uint64_t seed);

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_TINY_MODEL_H_
