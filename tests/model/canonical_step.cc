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

  Row Layer(const std::string& name, const Row& x, float* state) const {
    const StateLayout layout = StateLayout::Of(c_);
    const std::string ssd = name + ".ssd";
    const int64_t E = c_.inner_size(), N = c_.d_state, H = c_.num_heads(), P = c_.head_dim;
    const Row projected = Linear(ssd + ".in_proj", x);
    const Row raw(projected.begin() + E, projected.begin() + E + c_.conv_size());
    Row dt(projected.begin() + E + c_.conv_size(), projected.end());
    const Row xbc = Convolve(ssd + ".conv1d", raw, state + layout.conv_offset);
    if (c_.time_write) {
      Row q = Pointwise(ssd + ".mlp4time_scale.1", ssd + ".mlp4time_scale.3");
      for (float& value : q) value = u_ * value;
      q = Convolve(ssd + ".conv1d4time_1", q, state + layout.time_conv1_offset);
      q = Convolve(ssd + ".conv1d4time_2", q, state + layout.time_conv2_offset);
      for (int64_t h = 0; h < H; ++h) dt[h] = std::fma(dt[h], q[h], dt[h]);
    }
    Row y(static_cast<size_t>(E));
    for (int64_t h = 0; h < H; ++h) {
      const float delta = kernels::Softplus(dt[h] + Weight(ssd + ".dt_bias")[h]);
      const float rate = c_.time_decay ? kernels::Exp(-Weight(ssd + ".log_memory_ms")[h]) : 0.0f;
      const float lambda = c_.time_decay ? gap_ * rate : 0.0f;
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

}  // namespace

void CanonicalStep(const PackageContents& contents, int32_t item, int64_t timestamp_ms,
                   std::vector<std::byte>* record) {
  const StateLayout layout = StateLayout::Of(contents.config);
  int64_t header[2];
  std::memcpy(header, record->data(), sizeof(header));
  Row tensors(static_cast<size_t>(layout.floats));
  std::memcpy(tensors.data(), record->data() + StateLayout::kHeaderBytes, 4 * tensors.size());

  Step step(contents);
  step.SetGap(header[1], header[0], timestamp_ms);
  const Row& table = step.Weight("item_embedding.weight");
  const int64_t d = contents.config.hidden_size;
  Row x(table.begin() + item * d, table.begin() + (item + 1) * d);
  x = step.LayerNorm("in_layer_norm", x, static_cast<float>(contents.config.norm_eps));
  for (int64_t i = 0; i < contents.config.num_layers; ++i) {
    x = step.Layer("ssd_layers." + std::to_string(i), x, tensors.data() + i * layout.layer_floats);
  }
  std::copy(x.begin(), x.end(), tensors.begin() + layout.output_offset);
  header[0] = timestamp_ms;
  header[1] += 1;
  std::memcpy(record->data(), header, sizeof(header));
  std::memcpy(record->data() + StateLayout::kHeaderBytes, tensors.data(), 4 * tensors.size());
}

std::vector<float> CanonicalQuery(const PackageContents& contents,
                                  const std::vector<std::byte>& record, int64_t as_of_ms) {
  int64_t header[2];
  std::memcpy(header, record.data(), sizeof(header));
  Row output(static_cast<size_t>(contents.config.hidden_size));
  std::memcpy(output.data(),
              record.data() + StateLayout::kHeaderBytes +
                  4 * StateLayout::Of(contents.config).output_offset,
              4 * output.size());
  if (!contents.config.time_query) return output;
  Step step(contents);
  step.SetGap(header[1], header[0], as_of_ms);
  const Row gate = step.Pointwise("query_gate.1", "query_gate.3");
  for (size_t d = 0; d < output.size(); ++d) {
    output[d] = std::fma(output[d], 1.0f + gate[d], gate[output.size() + d]);
  }
  return output;
}

}  // namespace tim4rec
