#include "tests/gpu/random_model.h"

#include <cmath>

#include "model/kernels/math.h"

namespace tim4rec::gpu_test {
namespace {

int64_t RoundUp4(int64_t n) { return (n + 3) / 4 * 4; }

int32_t Pick(Random* random, int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(*random);
}

bool Toss(Random* random) { return Pick(random, 0, 1) == 1; }

class Maker {
 public:
  Maker(Model* model, Random* random) : model_(*model), random_(*random) {}

  const float* Values(int64_t count, float low, float high) {
    auto& values =
        model_.storage.emplace_back(std::make_unique<float[]>(static_cast<size_t>(count)));
    std::uniform_real_distribution<float> range(low, high);
    for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = range(random_);
    return values.get();
  }
  const float* Around(int64_t count, float centre, float reach) {
    return Values(count, centre - reach, centre + reach);
  }
  // A Linear or convolution of `inputs` terms per output.
  const float* Weights(int64_t inputs, int64_t outputs) {
    return Around(inputs * outputs, 0, 1.7f / std::sqrt(static_cast<float>(inputs)));
  }
  const float* Bias(int64_t outputs) { return Around(outputs, 0, 0.1f); }

  kernels::LayerWeights Layer() {
    const kernels::Dims& s = model_.dims;
    kernels::LayerWeights w = {};
    w.in_proj = Weights(s.d, s.projections());
    w.in_proj_bias = Bias(s.projections());
    w.conv = Weights(s.k, s.conv_channels());
    w.conv_bias = Bias(s.conv_channels());
    if (s.time_write || s.window > 0) {
      w.time_conv1 = Weights(s.k, s.h);
      w.time_conv1_bias = Bias(s.h);
      w.time_conv2 = Weights(s.k, s.h);
      w.time_conv2_bias = Bias(s.h);
    }
    if (s.time_write) {
      w.time_hidden = Around(s.m, 0, 1);
      w.time_hidden_bias = Around(s.m, 0, 1);
      w.time_scale = Weights(s.m, s.h);
      w.time_scale_bias = Bias(s.h);
    }
    w.a = Values(s.h, -16, -0.1f);
    if (s.time_decay) w.rate = Values(s.h, 1e-10f, 1e-7f);
    w.dt_bias = Values(s.h, -6, -2);
    w.skip = Around(s.h, 1, 0.3f);
    w.norm = Around(s.e, 1, 0.3f);
    w.out_proj = Weights(s.e, s.d);
    w.out_proj_bias = Bias(s.d);
    w.layer_norm = Around(s.d, 1, 0.3f);
    w.layer_norm_bias = Bias(s.d);
    if (s.ffn) {
      w.fc1 = Weights(s.d, s.f);
      w.fc1_bias = Bias(s.f);
      w.fc2 = Weights(s.f, s.d);
      w.fc2_bias = Bias(s.d);
      w.ffn_norm = Around(s.d, 1, 0.3f);
      w.ffn_norm_bias = Bias(s.d);
    }
    if (s.window > 0) {
      const int32_t gates = s.window_gate_per_event ? s.window : 1;
      w.window_scale1 = Weights(s.window, s.window);
      w.window_scale1_bias = Bias(s.window);
      w.window_scale2 = Weights(s.window, s.window);
      w.window_scale2_bias = Bias(s.window);
      w.window_gate = Weights(s.window, gates);
      w.window_gate_bias = Bias(gates);
      w.window_norm = Around(s.window, 1, 0.3f);
      w.window_norm_bias = Bias(s.window);
    }
    return w;
  }

 private:
  Model& model_;
  Random& random_;
};

}  // namespace

Sizes ServedSizes(int32_t d) {
  Sizes sizes;
  sizes.d = d;
  return sizes;
}

Sizes RandomSizes(Random* random) {
  Sizes s;
  s.d = Pick(random, 1, 50);
  s.expand = Pick(random, 1, 3);
  const int32_t inner = s.d * s.expand;
  do {
    s.p = Pick(random, 1, inner);
  } while (inner % s.p != 0);
  s.n = Pick(random, 1, 40);
  s.k = Toss(random) ? 4 : Pick(random, 2, 16);
  s.m = Pick(random, 1, 20);
  s.layers = Pick(random, 1, 3);
  s.items = Pick(random, 2, 60);
  s.ffn = Toss(random);
  s.time_write = Toss(random);
  s.time_decay = Toss(random);
  s.time_query = Toss(random);
  s.conv_silu = Toss(random);
  return s;
}

Sizes RandomWindowSizes(Random* random) {
  Sizes s = RandomSizes(random);
  s.time_write = s.time_decay = s.time_query = false;
  s.window = Pick(random, 1, 40);
  s.window_gate_per_event = Toss(random);
  return s;
}

kernels::Dims DimsOf(const Sizes& s) {
  kernels::Dims dims = {};
  dims.d = s.d;
  dims.e = s.expand * s.d;
  dims.p = s.p;
  dims.h = dims.e / s.p;
  dims.n = s.n;
  dims.k = s.k;
  dims.m = s.m;
  dims.f = 4 * s.d;
  dims.layers = s.layers;
  dims.items = s.items;
  dims.ffn = s.ffn;
  dims.time_write = s.time_write;
  dims.time_decay = s.time_decay;
  dims.time_query = s.time_query;
  dims.conv_silu = s.conv_silu;
  dims.window = s.window;
  dims.window_gate_per_event = s.window_gate_per_event;
  dims.norm_eps = 1e-5f;
  dims.max_gap_ms = 365LL * 86'400'000;
  dims.inv_tau0 = static_cast<float>(1.0 / 60'000);
  dims.gap_mean = 5;
  dims.inv_gap_stddev = static_cast<float>(1.0 / 3);
  const int64_t tail = dims.k - 1, times = dims.time_write ? tail * dims.h : 0;
  dims.conv_offset = static_cast<int64_t>(dims.e) * dims.n;
  dims.time_conv1_offset = dims.conv_offset + tail * dims.conv_channels();
  dims.time_conv2_offset = dims.time_conv1_offset + times;
  dims.layer_floats = RoundUp4(dims.time_conv2_offset + times);
  dims.output_offset = dims.layers * dims.layer_floats;
  return dims;
}

int64_t RecordBytes(const kernels::Dims& dims) {
  const int64_t floats =
      dims.window > 0 ? RoundUp4(int64_t{3} * dims.window) : RoundUp4(dims.output_offset + dims.d);
  return static_cast<int64_t>(sizeof(kernels::StateHeader)) + 4 * floats;
}

std::unique_ptr<const Model> MakeModel(const Sizes& sizes, Random* random) {
  auto model = std::make_unique<Model>();
  model->dims = DimsOf(sizes);
  const kernels::Dims& dims = model->dims;
  Maker maker(model.get(), random);
  for (int32_t l = 0; l < dims.layers; ++l) model->layers.push_back(maker.Layer());
  kernels::Weights& w = model->weights;
  w = {};
  w.layers = model->layers.data();
  w.embedding = maker.Around(static_cast<int64_t>(dims.items) * dims.d, 0, 1);
  w.in_norm = maker.Around(dims.d, 1, 0.3f);
  w.in_norm_bias = maker.Bias(dims.d);
  if (dims.time_query) {
    w.query_hidden = maker.Around(dims.m, 0, 1);
    w.query_hidden_bias = maker.Around(dims.m, 0, 1);
    w.query_gate = maker.Weights(dims.m, int64_t{2} * dims.d);
    w.query_gate_bias = maker.Bias(int64_t{2} * dims.d);
  }
  if (dims.window > 0) {
    w.window_norm = maker.Around(dims.window, 1, 0.3f);
    w.window_norm_bias = maker.Bias(dims.window);
  }
  return model;
}

std::vector<kernels::Event> RandomEvents(const kernels::Dims& dims, int64_t count,
                                         int64_t* clock_ms, Random* random) {
  std::vector<kernels::Event> events;
  for (int64_t i = 0; i < count; ++i) {
    const double magnitude = std::uniform_real_distribution<double>(0, 11)(*random);
    const auto step = static_cast<int64_t>(std::pow(10.0, magnitude)) - 1;
    *clock_ms += Pick(random, 0, 19) == 0 ? -step / 1000 : step;
    events.push_back({Pick(random, 1, dims.items - 1), *clock_ms});
  }
  return events;
}

}  // namespace tim4rec::gpu_test
