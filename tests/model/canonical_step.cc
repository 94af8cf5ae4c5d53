#include "tests/model/canonical_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "model/kernels/math.h"

namespace tim4rec {
namespace {

using Row = std::vector<float>;

class Step {
 public:
  explicit Step(const PackageContents& contents) : contents_(contents), c_(contents.config) {}

  void SetGap(int64_t folded, int64_t last_ms, int64_t now_ms) {
    const int64_t gap =
        folded == 0 ? 0 : std::clamp<int64_t>(now_ms - last_ms, 0, c_.time.max_gap_ms);
    gap_ = static_cast<float>(gap);
    const float scaled = gap_ * static_cast<float>(1.0 / c_.time.tau0_ms);
    const float centred = kernels::Log1p(scaled) - static_cast<float>(c_.time.mean);
    u_ = centred * static_cast<float>(1.0 / c_.time.stddev);
  }

  const Row& Weight(const std::string& name) const { return contents_.tensors.at(name).second; }

  Row Linear(const std::string& name, const Row& x) const {
    const Row& w = Weight(name + ".weight");
    Row y = Weight(name + ".bias");
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t k = 0; k < x.size(); ++k) y[o] = std::fma(w[o * x.size() + k], x[k], y[o]);
    }
    return y;
  }

  static float Tree(Row partial) {
    for (int s = 8; s > 0; s /= 2) {
      for (int j = 0; j < s; ++j) partial[j] = partial[j] + partial[j + s];
    }
    return partial[0];
  }
  static float Sum16(const Row& v) {
    Row partial(16, 0.0f);
    for (size_t i = 0; i < v.size(); ++i) partial[i % 16] = partial[i % 16] + v[i];
    return Tree(partial);
  }
  static float SumSquares16(const Row& v) {
    Row partial(16, 0.0f);
    for (size_t i = 0; i < v.size(); ++i) partial[i % 16] = std::fma(v[i], v[i], partial[i % 16]);
    return Tree(partial);
  }

  Row LayerNorm(const std::string& name, Row v, float eps) const {
    const Row &w = Weight(name + ".weight"), &b = Weight(name + ".bias");
    const float mean = Sum16(v) / static_cast<float>(v.size());
    for (float& value : v) value = value - mean;
    const float variance = SumSquares16(v) / static_cast<float>(v.size());
    const float r = 1.0f / std::sqrt(variance + eps);
    for (size_t i = 0; i < v.size(); ++i) v[i] = std::fma(v[i] * r, w[i], b[i]);
    return v;
  }

  float Act(float x) const {
    return c_.conv_activation == Activation::kSilu ? kernels::Silu(x) : kernels::Hardswish(x);
  }

  Row Convolve(const std::string& name, const Row& x, float* tail) const {
    const Row& w = Weight(name + ".weight");
    Row y = Weight(name + ".bias");
    const size_t channels = x.size(), width = static_cast<size_t>(c_.d_conv);
    for (size_t ch = 0; ch < channels; ++ch) {
      for (size_t k = 0; k < width; ++k) {
        const float value = k + 1 < width ? tail[k * channels + ch] : x[ch];
        y[ch] = std::fma(w[ch * width + k], value, y[ch]);
      }
      y[ch] = Act(y[ch]);
      for (size_t k = 0; k + 2 < width; ++k) {
        tail[k * channels + ch] = tail[(k + 1) * channels + ch];
      }
      tail[(width - 2) * channels + ch] = x[ch];
    }
    return y;
  }

  Row Pointwise(const std::string& first, const std::string& second) const {
    const Row &w = Weight(first + ".weight"), &b = Weight(first + ".bias");
    Row hidden(w.size());
    for (size_t m = 0; m < w.size(); ++m) hidden[m] = kernels::Silu(std::fma(w[m], u_, b[m]));
    return Linear(second, hidden);
  }

  // Rules 14 to 16: the factors of dt [layers][L][H] for a window.
  std::vector<std::vector<Row>> WindowWrites(const std::vector<int64_t>& timestamps_ms) const {
    const auto window = static_cast<size_t>(c_.max_item_list_length);
    const auto heads = static_cast<size_t>(c_.num_heads());
    const auto eps = static_cast<float>(c_.norm_eps);
    Row seconds(window, 0.0f), gaps(window, 0.0f);
    for (size_t i = 0; i < timestamps_ms.size(); ++i) {
      seconds[i] = static_cast<float>(static_cast<double>(timestamps_ms[i]) / 1000.0);
    }
    for (size_t i = 1; i < window; ++i) gaps[i] = seconds[i] - seconds[i - 1];
    std::vector<Row> tau(heads, LayerNorm("layer_norm_time", gaps, eps));
    std::vector<std::vector<Row>> writes;
    for (int64_t layer = 0; layer < c_.num_layers; ++layer) {
      const std::string ssd = "ssd_layers." + std::to_string(layer) + ".ssd";
      std::vector<Row> scaled(window, Row(heads));
      for (size_t h = 0; h < heads; ++h) {
        Row hidden = Linear(ssd + ".mlp4time_scale.1", tau[h]);
        for (float& value : hidden) value = kernels::Silu(value);
        const Row scale = Linear(ssd + ".mlp4time_scale.3", hidden);
        for (size_t i = 0; i < window; ++i) scaled[i][h] = tau[h][i] * scale[i];
      }
      Row tail1((c_.d_conv - 1) * heads, 0.0f), tail2 = tail1;
      for (Row& row : scaled) {
        row = Convolve(ssd + ".conv1d4time_1", row, tail1.data());
        row = Convolve(ssd + ".conv1d4time_2", row, tail2.data());
      }
      for (size_t h = 0; h < heads; ++h) {
        Row gate = Linear(ssd + ".time_gate_residual.1", tau[h]);
        for (float& value : gate) value = kernels::Sigmoid(value);
        for (size_t i = 0; i < window; ++i) {
          const float gamma = c_.p2p_residual ? gate[i] : gate[0];
          const float rest = (1.0f - gamma) * scaled[i][h];
          tau[h][i] = std::fma(gamma, tau[h][i], rest);
        }
        tau[h] = LayerNorm(ssd + ".time_layer_norm", tau[h], eps);
      }
      writes.push_back(std::move(scaled));
    }
    return writes;
  }

  // `write` [H], if not empty, multiplies dt.
  Row Layer(const std::string& name, const Row& x, const Row& write, float* state) const {
    const StateLayout layout = StateLayout::Recurrent(c_);
    const bool streaming = c_.variant == Variant::kStreaming;
    const std::string ssd = name + ".ssd";
    const int64_t E = c_.inner_size(), N = c_.d_state, H = c_.num_heads(), P = c_.head_dim;
    const Row projected = Linear(ssd + ".in_proj", x);
    const Row raw(projected.begin() + E, projected.begin() + E + c_.conv_size());
    Row dt(projected.begin() + E + c_.conv_size(), projected.end());
    const Row xbc = Convolve(ssd + ".conv1d", raw, state + layout.conv_offset);
    for (size_t h = 0; h < write.size(); ++h) dt[h] = dt[h] * write[h];
    if (streaming && c_.time_write) {
      Row q = Pointwise(ssd + ".mlp4time_scale.1", ssd + ".mlp4time_scale.3");
      for (float& value : q) value = u_ * value;
      q = Convolve(ssd + ".conv1d4time_1", q, state + layout.time_conv1_offset);
      q = Convolve(ssd + ".conv1d4time_2", q, state + layout.time_conv2_offset);
      for (int64_t h = 0; h < H; ++h) dt[h] = std::fma(dt[h], q[h], dt[h]);
    }
    Row y(static_cast<size_t>(E));
    for (int64_t h = 0; h < H; ++h) {
      const float delta = kernels::Softplus(dt[h] + Weight(ssd + ".dt_bias")[h]);
      const bool decays = streaming && c_.time_decay;
      const float rate = decays ? kernels::Exp(-Weight(ssd + ".log_memory_ms")[h]) : 0.0f;
      const float lambda = decays ? gap_ * rate : 0.0f;
      const float a = -kernels::Exp(Weight(ssd + ".A_log")[h]);
      const float carry = kernels::Exp(std::fma(a, delta, -lambda));
      for (int64_t p = 0; p < P; ++p) {
        const float value = xbc[h * P + p];
        const float dx = delta * value;
        float sum = 0;
        for (int64_t n = 0; n < N; ++n) {
          float& s = state[layout.ssm_offset + (h * N + n) * P + p];
          const float carried = carry * s;
          s = std::fma(dx, xbc[E + n], carried);
          sum = std::fma(s, xbc[E + N + n], sum);
        }
        y[h * P + p] = std::fma(Weight(ssd + ".D")[h], value, sum);
      }
    }
    return Finish(name, x, projected, std::move(y));
  }

  Row Finish(const std::string& name, const Row& x, const Row& z, Row y) const {
    const auto eps = static_cast<float>(c_.norm_eps);
    for (size_t e = 0; e < y.size(); ++e) y[e] = y[e] * kernels::Silu(z[e]);
    const float mean_square = SumSquares16(y) / static_cast<float>(y.size());
    const float r = 1.0f / std::sqrt(mean_square + eps);
    const Row& norm = Weight(name + ".ssd.norm.weight");
    for (size_t e = 0; e < y.size(); ++e) y[e] = (y[e] * r) * norm[e];
    Row u = Linear(name + ".ssd.out_proj", y);
    if (c_.num_layers > 1) {
      for (size_t d = 0; d < u.size(); ++d) u[d] = u[d] + x[d];
    }
    u = LayerNorm(name + ".layer_norm", u, eps);
    if (!c_.is_ffn) return u;
    Row f = Linear(name + ".ffn.fc1", u);
    for (float& value : f) value = kernels::Hardswish(value);
    f = Linear(name + ".ffn.fc2", f);
    for (size_t d = 0; d < u.size(); ++d) f[d] = f[d] + u[d];
    return LayerNorm(name + ".ffn.layer_norm", f, 1e-12f);
  }

 private:
  const PackageContents& contents_;
  const ModelConfig& c_;
  float gap_ = 0;
  float u_ = 0;
};

// Folds one event into recurrent tensors and gives the output; `writes` as Layer's, one per layer.
Row FoldOne(const PackageContents& contents, const Step& step, int32_t item,
            const std::vector<Row>& writes, Row* tensors) {
  const ModelConfig& config = contents.config;
  const Row& table = step.Weight("item_embedding.weight");
  const int64_t d = config.hidden_size;
  Row x(table.begin() + item * d, table.begin() + (item + 1) * d);
  x = step.LayerNorm("in_layer_norm", x, static_cast<float>(config.norm_eps));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    x = step.Layer("ssd_layers." + std::to_string(i), x, writes[i],
                   tensors->data() + i * StateLayout::Recurrent(config).layer_floats);
  }
  return x;
}

// A window's record.
struct Window {
  int64_t last_timestamp_ms = 0, folded_events = 0;
  std::vector<int64_t> timestamps_ms;
  std::vector<int32_t> items;

  Window(const ModelConfig& config, const std::vector<std::byte>& record) {
    const auto length = static_cast<size_t>(config.max_item_list_length);
    std::memcpy(&last_timestamp_ms, record.data(), 8);
    std::memcpy(&folded_events, record.data() + 8, 8);
    timestamps_ms.resize(length);
    items.resize(length);
    std::memcpy(timestamps_ms.data(), record.data() + 16, 8 * length);
    std::memcpy(items.data(), record.data() + 16 + 8 * length, 4 * length);
    if (folded_events < static_cast<int64_t>(length)) {
      timestamps_ms.resize(static_cast<size_t>(folded_events));
      items.resize(timestamps_ms.size());
    }
  }

  void Write(const ModelConfig& config, std::vector<std::byte>* record) const {
    const auto length = static_cast<size_t>(config.max_item_list_length);
    std::fill(record->begin(), record->end(), std::byte(0));
    std::memcpy(record->data(), &last_timestamp_ms, 8);
    std::memcpy(record->data() + 8, &folded_events, 8);
    std::memcpy(record->data() + 16, timestamps_ms.data(), 8 * timestamps_ms.size());
    std::memcpy(record->data() + 16 + 8 * length, items.data(), 4 * items.size());
  }
};

void PushEvent(const ModelConfig& config, int32_t item, int64_t timestamp_ms,
               std::vector<std::byte>* record) {
  Window window(config, *record);
  window.items.push_back(item);
  window.timestamps_ms.push_back(timestamp_ms);
  if (static_cast<int64_t>(window.items.size()) > config.max_item_list_length) {
    window.items.erase(window.items.begin());
    window.timestamps_ms.erase(window.timestamps_ms.begin());
  }
  window.last_timestamp_ms = timestamp_ms;
  window.folded_events += 1;
  window.Write(config, record);
}

Row WindowQuery(const PackageContents& contents, const std::vector<std::byte>& record) {
  const Window window(contents.config, record);
  const Step step(contents);
  const auto writes = step.WindowWrites(window.timestamps_ms);
  Row tensors(static_cast<size_t>(StateLayout::Recurrent(contents.config).floats), 0.0f), output;
  for (size_t i = 0; i < window.items.size(); ++i) {
    std::vector<Row> of_event;
    for (const auto& layer : writes) of_event.push_back(layer[i]);
    output = FoldOne(contents, step, window.items[i], of_event, &tensors);
  }
  return output;
}

}  // namespace

void CanonicalStep(const PackageContents& contents, int32_t item, int64_t timestamp_ms,
                   std::vector<std::byte>* record) {
  if (contents.config.has_window()) return PushEvent(contents.config, item, timestamp_ms, record);
  const StateLayout layout = StateLayout::Of(contents.config);
  int64_t header[2];
  std::memcpy(header, record->data(), sizeof(header));
  Row tensors(static_cast<size_t>(layout.floats));
  std::memcpy(tensors.data(), record->data() + StateLayout::kHeaderBytes, 4 * tensors.size());

  Step step(contents);
  step.SetGap(header[1], header[0], timestamp_ms);
  const std::vector<Row> no_writes(static_cast<size_t>(contents.config.num_layers));
  const Row x = FoldOne(contents, step, item, no_writes, &tensors);
  std::copy(x.begin(), x.end(), tensors.begin() + layout.output_offset);
  header[0] = timestamp_ms;
  header[1] += 1;
  std::memcpy(record->data(), header, sizeof(header));
  std::memcpy(record->data() + StateLayout::kHeaderBytes, tensors.data(), 4 * tensors.size());
}

std::vector<float> CanonicalQuery(const PackageContents& contents,
                                  const std::vector<std::byte>& record, int64_t as_of_ms) {
  if (contents.config.has_window()) return WindowQuery(contents, record);
  int64_t header[2];
  std::memcpy(header, record.data(), sizeof(header));
  Row output(static_cast<size_t>(contents.config.hidden_size));
  std::memcpy(output.data(),
              record.data() + StateLayout::kHeaderBytes +
                  4 * StateLayout::Of(contents.config).output_offset,
              4 * output.size());
  if (contents.config.variant != Variant::kStreaming || !contents.config.time_query) return output;
  Step step(contents);
  step.SetGap(header[1], header[0], as_of_ms);
  const Row gate = step.Pointwise("query_gate.1", "query_gate.3");
  for (size_t d = 0; d < output.size(); ++d) {
    output[d] = std::fma(output[d], 1.0f + gate[d], gate[output.size() + d]);
  }
  return output;
}

}  // namespace tim4rec
