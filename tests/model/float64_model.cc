#include "tests/model/float64_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tim4rec {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Silu(double x) { return x * Sigmoid(x); }
double Hardswish(double x) { return x * std::clamp(x + 3, 0.0, 6.0) / 6; }
double Softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double GapMs(int64_t from_ms, int64_t to_ms, int64_t max_gap_ms) {
  return static_cast<double>(std::clamp<int64_t>(to_ms - from_ms, 0, max_gap_ms));
}

}  // namespace

std::vector<double> Float64Model::Weight(const std::string& name) const {
  const std::vector<float>& values = contents_.tensors.at(name).second;
  return {values.begin(), values.end()};
}

double Float64Model::Feature(double gap_ms) const {
  const TimeConstants& t = contents_.config.time;
  return (std::log1p(gap_ms / t.tau0_ms) - t.mean) / t.stddev;
}

double Float64Model::Activate(double x) const {
  return contents_.config.conv_activation == Activation::kSilu ? Silu(x) : Hardswish(x);
}

Float64Model::Row Float64Model::Linear(const std::string& prefix, const Row& x) const {
  const Row w = Weight(prefix + ".weight");
  Row y = Weight(prefix + ".bias");
  for (size_t o = 0; o < y.size(); ++o) {
    for (size_t k = 0; k < x.size(); ++k) y[o] += w[o * x.size() + k] * x[k];
  }
  return y;
}

Float64Model::Rows Float64Model::Convolve(const std::string& prefix, const Rows& x) const {
  const Row w = Weight(prefix + ".weight");
  const Row bias = Weight(prefix + ".bias");
  const auto width = static_cast<int64_t>(w.size() / bias.size());
  Rows y(x.size(), bias);
  for (int64_t t = 0; t < static_cast<int64_t>(x.size()); ++t) {
    for (size_t c = 0; c < bias.size(); ++c) {
      for (int64_t lag = 0; lag < width && lag <= t; ++lag) {
        y[t][c] += w[static_cast<int64_t>(c) * width + width - 1 - lag] * x[t - lag][c];
      }
      y[t][c] = Activate(y[t][c]);
    }
  }
  return y;
}

Float64Model::Row Float64Model::LayerNorm(const std::string& prefix, const Row& x,
                                          double eps) const {
  const Row w = Weight(prefix + ".weight");
  const Row bias = Weight(prefix + ".bias");
  const auto n = static_cast<double>(x.size());
  const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double variance = 0;
  for (const double v : x) variance += (v - mean) * (v - mean) / n;
  Row y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = (x[i] - mean) / std::sqrt(variance + eps) * w[i] + bias[i];
  }
  return y;
}

Float64Model::Rows Float64Model::StreamingGate(const std::string& prefix,
                                               const Row& gaps_ms) const {
  Rows scaled;
  for (const double gap : gaps_ms) {
    const double u = Feature(gap);
    Row hidden = Linear(prefix + ".mlp4time_scale.1", {u});
    for (double& v : hidden) v = Silu(v);
    scaled.push_back(Linear(prefix + ".mlp4time_scale.3", hidden));
    for (double& v : scaled.back()) v *= u;
  }
  Rows gate = Convolve(prefix + ".conv1d4time_2", Convolve(prefix + ".conv1d4time_1", scaled));
  for (Row& row : gate) {
    for (double& v : row) v += 1;
  }
  return gate;
}

Float64Model::Rows Float64Model::InitialTime(const std::vector<int64_t>& timestamps_ms) const {
  const ModelConfig& c = contents_.config;
  std::vector<float> seconds(c.max_item_list_length, 0.0f);
  for (size_t i = 0; i < timestamps_ms.size(); ++i) {
    seconds[i] = static_cast<float>(static_cast<double>(timestamps_ms[i]) / 1000);
  }
  Row gaps(seconds.size(), 0.0);
  for (size_t i = 1; i < gaps.size(); ++i) gaps[i] = seconds[i] - seconds[i - 1];
  return Rows(c.num_heads(), LayerNorm("layer_norm_time", gaps, c.norm_eps));
}

Float64Model::Rows Float64Model::PublishedGate(const std::string& prefix, Rows* tau) const {
  const size_t heads = tau->size(), window = (*tau)[0].size();
  Rows scaled(window, Row(heads));
  for (size_t h = 0; h < heads; ++h) {
    Row hidden = Linear(prefix + ".mlp4time_scale.1", (*tau)[h]);
    for (double& v : hidden) v = Silu(v);
    const Row scale = Linear(prefix + ".mlp4time_scale.3", hidden);
    for (size_t i = 0; i < window; ++i) scaled[i][h] = (*tau)[h][i] * scale[i];
  }
  Rows gate = Convolve(prefix + ".conv1d4time_2", Convolve(prefix + ".conv1d4time_1", scaled));
  for (size_t h = 0; h < heads; ++h) {
    Row keep = Linear(prefix + ".time_gate_residual.1", (*tau)[h]);
    keep.resize(window, keep[0]);  // one for all positions, without p2p_residual
    Row next(window);
    for (size_t i = 0; i < window; ++i) {
      const double k = Sigmoid(keep[i]);
      next[i] = k * (*tau)[h][i] + (1 - k) * gate[i][h];
    }
    (*tau)[h] = LayerNorm(prefix + ".time_layer_norm", next, contents_.config.norm_eps);
  }
  return gate;
}

Float64Model::Rows Float64Model::Ssd(const std::string& prefix, const Rows& x, const Row& gaps_ms,
                                     const Rows& gate) const {
  const ModelConfig& c = contents_.config;
  const auto E = c.inner_size(), N = c.d_state, H = c.num_heads(), P = c.head_dim;
  Rows z, xbc, dt;
  for (const Row& row : x) {
    const Row projected = Linear(prefix + ".in_proj", row);
    z.emplace_back(projected.begin(), projected.begin() + E);
    xbc.emplace_back(projected.begin() + E, projected.begin() + 2 * E + 2 * N);
    dt.emplace_back(projected.begin() + 2 * E + 2 * N, projected.end());
  }
  xbc = Convolve(prefix + ".conv1d", xbc);
  for (size_t t = 0; t < dt.size() && !gate.empty(); ++t) {
    for (int64_t h = 0; h < H; ++h) dt[t][h] *= gate[t][h];
  }
  const bool decays = c.variant == Variant::kStreaming && c.time_decay;
  const Row a_log = Weight(prefix + ".A_log"), dt_bias = Weight(prefix + ".dt_bias"),
            skip = Weight(prefix + ".D"), norm = Weight(prefix + ".norm.weight");
  const Row log_memory = decays ? Weight(prefix + ".log_memory_ms") : Row(H, 0.0);

  Rows out;
  std::vector<double> state(H * P * N, 0.0);
  for (size_t t = 0; t < x.size(); ++t) {
    Row y(E);
    for (int64_t h = 0; h < H; ++h) {
      const double delta = Softplus(dt[t][h] + dt_bias[h]);
      const double lambda = decays ? gaps_ms[t] / std::exp(log_memory[h]) : 0;
      const double carry = std::exp(-std::exp(a_log[h]) * delta - lambda);
      for (int64_t p = 0; p < P; ++p) {
        const double value = xbc[t][h * P + p];
        y[h * P + p] = skip[h] * value;
        for (int64_t n = 0; n < N; ++n) {
          double& s = state[(h * P + p) * N + n];
          s = carry * s + delta * value * xbc[t][E + n];
          y[h * P + p] += s * xbc[t][E + N + n];
        }
      }
    }
    double mean_square = 0;
    for (int64_t e = 0; e < E; ++e) {
      y[e] *= Silu(z[t][e]);
      mean_square += y[e] * y[e] / static_cast<double>(E);
    }
    for (int64_t e = 0; e < E; ++e) y[e] *= norm[e] / std::sqrt(mean_square + c.norm_eps);
    out.push_back(Linear(prefix + ".out_proj", y));
  }
  return out;
}

Float64Model::Rows Float64Model::Layer(const std::string& prefix, const Rows& x, const Row& gaps_ms,
                                       const Rows& gate) const {
  const ModelConfig& c = contents_.config;
  Rows y = Ssd(prefix + ".ssd", x, gaps_ms, gate);
  for (size_t t = 0; t < y.size(); ++t) {
    if (c.num_layers > 1) {
      for (size_t i = 0; i < y[t].size(); ++i) y[t][i] += x[t][i];
    }
    y[t] = LayerNorm(prefix + ".layer_norm", y[t], c.norm_eps);
    if (!c.is_ffn) continue;
    Row hidden = Linear(prefix + ".ffn.fc1", y[t]);
    for (double& v : hidden) v = Hardswish(v);
    Row sum = Linear(prefix + ".ffn.fc2", hidden);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[t][i];
    y[t] = LayerNorm(prefix + ".ffn.layer_norm", sum, 1e-12);
  }
  return y;
}

bool Float64Model::HasQueryGate() const {
  return contents_.config.variant == Variant::kStreaming && contents_.config.time_query;
}

std::vector<double> Float64Model::Query(const std::vector<int32_t>& all_items,
                                        const std::vector<int64_t>& all_timestamps_ms,
                                        int64_t as_of_ms) const {
  const ModelConfig& c = contents_.config;
  const bool windowed = c.variant == Variant::kPublished && c.is_time;
  const size_t skip = windowed && all_items.size() > static_cast<size_t>(c.max_item_list_length)
                          ? all_items.size() - static_cast<size_t>(c.max_item_list_length)
                          : 0;
  const std::vector<int32_t> items(all_items.begin() + skip, all_items.end());
  const std::vector<int64_t> timestamps_ms(all_timestamps_ms.begin() + skip,
                                           all_timestamps_ms.end());
  const std::vector<float>& embedding = contents_.tensors.at("item_embedding.weight").second;
  Rows x;
  Row gaps_ms;
  for (size_t t = 0; t < items.size(); ++t) {
    const auto begin = embedding.begin() + items[t] * c.hidden_size;
    x.push_back(LayerNorm("in_layer_norm", Row(begin, begin + c.hidden_size), c.norm_eps));
    gaps_ms.push_back(t == 0 ? 0
                             : GapMs(timestamps_ms[t - 1], timestamps_ms[t], c.time.max_gap_ms));
  }
  Rows tau = windowed ? InitialTime(timestamps_ms) : Rows();
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = "ssd_layers." + std::to_string(i);
    Rows gate;
    if (windowed) gate = PublishedGate(layer + ".ssd", &tau);
    if (c.variant == Variant::kStreaming && c.time_write) {
      gate = StreamingGate(layer + ".ssd", gaps_ms);
    }
    x = Layer(layer, x, gaps_ms, gate);
  }
  Row query = x.back();
  if (!HasQueryGate()) return query;
  const double u = Feature(GapMs(timestamps_ms.back(), as_of_ms, c.time.max_gap_ms));
  Row hidden = Linear("query_gate.1", {u});
  for (double& v : hidden) v = Silu(v);
  const Row gate = Linear("query_gate.3", hidden);
  for (size_t d = 0; d < query.size(); ++d) {
    query[d] = query[d] * (1 + gate[d]) + gate[query.size() + d];
  }
  return query;
}

std::vector<int32_t> Float64Model::TopItems(const std::vector<double>& query, int64_t k) const {
  const std::vector<float>& embedding = contents_.tensors.at("item_embedding.weight").second;
  std::vector<double> scores(contents_.config.n_items, 0.0);
  for (size_t v = 0; v < scores.size(); ++v) {
    for (size_t d = 0; d < query.size(); ++d)
      scores[v] += query[d] * embedding[v * query.size() + d];
  }
  std::vector<int32_t> items(scores.size() - 1);
  std::iota(items.begin(), items.end(), 1);
  std::stable_sort(items.begin(), items.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  items.resize(std::min<size_t>(items.size(), static_cast<size_t>(k)));
  return items;
}

}  // namespace tim4rec
