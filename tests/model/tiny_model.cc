#include "tests/model/tiny_model.h"

#include <cmath>
#include <random>
#include <string>

#include "tests/model/float64_model.h"

namespace tim4rec {
namespace {

using Random = std::mt19937_64;

// The library's distributions differ between implementations; these do not.
double Uniform(Random& random, double low, double high) {
  return low + (high - low) * static_cast<double>(random() >> 11) * 0x1p-53;
}

double Normal(Random& random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += Uniform(random, 0, 1);
  return sum;
}

template <typename T>
T Pick(Random& random, std::initializer_list<T> values) {
  return *(values.begin() + random() % values.size());
}

bool EndsWith(const std::string& text, const std::string& end) { return text.ends_with(end); }

float RandomWeight(const std::string& name, const std::vector<int64_t>& shape, Random& random) {
  if (EndsWith(name, "A_log")) return static_cast<float>(std::log(Uniform(random, 1, 16)));
  if (EndsWith(name, "dt_bias")) return static_cast<float>(Uniform(random, -6, -1));
  if (EndsWith(name, ".ssd.D")) return static_cast<float>(Uniform(random, 0.5, 1.5));
  if (EndsWith(name, "log_memory_ms")) {
    return static_cast<float>(Uniform(random, std::log(6e4), std::log(3e10)));
  }
  if (EndsWith(name, "norm.weight")) return static_cast<float>(1 + 0.2 * Normal(random));
  if (EndsWith(name, ".bias")) return static_cast<float>(0.2 * Normal(random));
  const double inputs = static_cast<double>(shape.back());
  const double scale = name == "item_embedding.weight" ? 1.0 : 1 / std::sqrt(inputs);
  return static_cast<float>(scale * Normal(random));
}

}  // namespace

ModelConfig RandomStreamingConfig(uint64_t seed) {
  Random random(seed);
  ModelConfig c;
  c.n_items = 20 + static_cast<int64_t>(random() % 150);
  c.hidden_size = Pick<int64_t>(random, {8, 12, 16, 20, 32, 35});
  c.expand = Pick<int64_t>(random, {1, 2, 4});
  const int64_t divisor = c.hidden_size % 5 == 0 ? 5 : 4;
  c.head_dim = Pick<int64_t>(random, {c.inner_size(), c.inner_size() / divisor, divisor, 1});
  c.num_layers = Pick<int64_t>(random, {1, 2, 2, 3});
  c.d_state = Pick<int64_t>(random, {1, 5, 8, 16, 32});
  c.d_conv = Pick<int64_t>(random, {2, 3, 4, 4, 5});
  c.is_ffn = random() % 3 != 0;
  c.conv_activation = Pick(random, {Activation::kSilu, Activation::kHardswish});
  c.norm_eps = Pick(random, {1e-5, 1e-12, 1e-3});
  c.time_write = random() % 3 != 0;
  c.time_decay = random() % 3 != 0;
  c.time_query = random() % 3 != 0;
  c.time_hidden = Pick<int64_t>(random, {1, 4, 16});
  c.time = {.tau0_ms = Uniform(random, 1e3, 1e6),
            .mean = Uniform(random, 0, 6),
            .stddev = Uniform(random, 1, 4),
            .max_gap_ms = Pick<int64_t>(random, {86'400'000, 31'536'000'000})};
  return c;
}

ModelConfig RandomPublishedConfig(uint64_t seed) {
  Random random(seed + 1'000'000);
  ModelConfig c = RandomStreamingConfig(seed);
  c.variant = Variant::kPublished;
  c.time_write = c.time_decay = c.time_query = false;
  c.time = TimeConstants();
  c.is_time = random() % 4 != 0;
  c.p2p_residual = random() % 2 == 0;
  c.max_item_list_length = 5 + static_cast<int64_t>(random() % 16);
  return c;
}

History RandomHistory(const ModelConfig& config, int64_t length, uint64_t seed) {
  Random random(seed);
  History history;
  int64_t now_ms = 1'700'000'000'000;
  for (int64_t i = 0; i < length; ++i) {
    history.items.push_back(1 + static_cast<int32_t>(random() % (config.n_items - 1)));
    history.timestamps_ms.push_back(now_ms);
    // Some events share a timestamp.
    if (random() % 8 != 0) now_ms += static_cast<int64_t>(std::exp(Uniform(random, 5, 23)));
  }
  return history;
}

PackageContents MakeTinyModel(const ModelConfig& config, uint64_t seed) {
  Random random(seed);
  PackageContents contents;
  contents.config = config;
  for (const auto& [name, shape] : TensorShapes(config)) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = RandomWeight(name, shape, random);
    contents.tensors[name] = {shape, std::move(values)};
  }
  contents.items.resize(static_cast<size_t>(config.n_items));
  for (size_t i = 1; i < contents.items.size(); ++i) {
    contents.items[i] = {.id = "item" + std::to_string(i),
                         .title = "Title " + std::to_string(i),
                         .categories = {i % 2 == 0 ? "even" : "odd", "all"},
                         .train_events = static_cast<int64_t>(random() % 1000)};
  }
  const Float64Model reference(contents);
  for (uint64_t i = 0; i < 3; ++i) {
    const History history = RandomHistory(config, 1 + static_cast<int64_t>(i) * 12, seed + i);
    ProbeCase& probe = contents.probe.emplace_back();
    probe.items = history.items;
    probe.timestamps_ms = history.timestamps_ms;
    probe.as_of_ms = history.timestamps_ms.back() + static_cast<int64_t>(i) * 86'400'000;
    probe.query = reference.Query(probe.items, probe.timestamps_ms, probe.as_of_ms);
    probe.top_items = reference.TopItems(probe.query, 10);
  }
  return contents;
}

PackageContents MakeTinyModel(uint64_t seed) {
  ModelConfig config;
  config.n_items = 61;
  config.hidden_size = 16;
  config.d_state = 8;
  config.head_dim = 8;
  config.time_hidden = 4;
  config.time.mean = 5;
  config.time.stddev = 3;
  return MakeTinyModel(config, seed);
}

ItemTrend RandomTrend(int64_t n_items, int64_t first_day, int64_t last_day, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::vector<int64_t>> days(n_items);
  for (int64_t item = 1; item < n_items; ++item) {
    for (uint64_t events = random() % 40; events > 0; --events) {
      const auto range = static_cast<uint64_t>(last_day - first_day + 1);
      days[item].push_back(first_day + static_cast<int64_t>(random() % range));
    }
  }
  return {1.5F, ItemTimeline(std::move(days))};
}

}  // namespace tim4rec
