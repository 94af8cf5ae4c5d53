#include "model/reference/ssd_block.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

namespace tim4rec {
namespace {

namespace F = torch::nn::functional;
using torch::indexing::None;
using torch::indexing::Slice;

constexpr double kFfnNormEps = 1e-12;  // always, as in the released code

// A module that only holds the weight of a root-mean-square norm, for its parameter's name.
class NormWeight : public torch::nn::Module {
 public:
  explicit NormWeight(int64_t size) { weight = register_parameter("weight", torch::ones({size})); }
  torch::Tensor weight;
};

// exp(sums_i - sums_j) for i >= j, else 0: [...,Q] in float64 -> [...,Q,Q] in `dtype`. Differences
// are taken in float64, so that that of two large sums keeps the digits of a small one. Of all that
// a backward pass could need, only the result is kept.
class DecayMask : public torch::autograd::Function<DecayMask> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& sums,
                               torch::ScalarType dtype) {
    auto mask = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(dtype).exp_().tril_();
    context->save_for_backward({mask});
    return mask;
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto through = gradients[0] * context->get_saved_variables()[0];
    return {(through.sum(-1) - through.sum(-2)).to(torch::kFloat64), torch::Tensor()};
  }
};

}  // namespace

torch::nn::LayerNorm MakeLayerNorm(int64_t size, double eps) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({size}).eps(eps));
}

torch::nn::Conv1d MakeDepthwiseConv(int64_t channels, int64_t kernel) {
  return torch::nn::Conv1d(torch::nn::Conv1dOptions(channels, channels, kernel).groups(channels));
}

torch::Tensor MaskedSsd(const torch::Tensor& x, const torch::Tensor& delta,
                        const torch::Tensor& log_decay, const torch::Tensor& b,
                        const torch::Tensor& c, int64_t chunk, torch::Tensor* state) {
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), width = x.size(3);
  const int64_t states = b.size(2);
  chunk = std::min(chunk, length);
  const int64_t chunks = (length + chunk - 1) / chunk;
  const int64_t padding = chunks * chunk - length;
  // [B,L,...] -> [B, chunks, chunk, ...]; the padding is zeros on the right and changes nothing.
  const auto cut = [&](const torch::Tensor& t, std::vector<int64_t> rest) {
    std::vector<int64_t> pad(2 * (t.dim() - 2), 0);
    pad.insert(pad.end(), {0, padding});
    rest.insert(rest.begin(), {batch, chunks, chunk});
    return (padding ? torch::constant_pad_nd(t, pad) : t).reshape(rest);
  };
  const auto written = cut(x * delta.unsqueeze(-1), {heads, width}).transpose(2, 3);  // [.,H,Q,P]
  const auto bs = cut(b, {states}).unsqueeze(2);                                      // [.,1,Q,N]
  const auto cs = cut(c, {states}).unsqueeze(2);
  const auto sums =
      cut(log_decay, {heads}).transpose(2, 3).to(torch::kFloat64).cumsum(-1);  // [.,H,Q]
  const auto dtype = x.scalar_type();

  const auto mask = DecayMask::apply(sums, dtype);
  auto y = (mask * cs.matmul(bs.transpose(-1, -2))).matmul(written);  // [B,chunks,H,Q,P]
  if (chunks > 1 || state != nullptr) {
    const auto last = sums.index({"...", Slice(-1, None)});
    const auto to_end = (last - sums).to(dtype).exp().unsqueeze(-1);      // [.,H,Q,1]
    const auto gained = (written * to_end).transpose(-1, -2).matmul(bs);  // [.,H,P,N]
    const auto kept = last.to(dtype).exp().unsqueeze(-1);                 // [.,H,1,1]
    const auto from_start = sums.to(dtype).exp().unsqueeze(-1);           // [.,H,Q,1]
    auto before = state != nullptr ? *state                               // S before the chunk
                                   : torch::zeros({batch, heads, width, states}, x.options());
    std::vector<torch::Tensor> carried;
    for (int64_t i = 0; i < chunks; ++i) {
      carried.push_back(cs.select(1, i).matmul(before.transpose(-1, -2)) * from_start.select(1, i));
      before = before * kept.select(1, i) + gained.select(1, i);
    }
    if (state != nullptr) *state = before;
    y = y + torch::stack(carried, 1);
  }
  return y.transpose(2, 3).reshape({batch, chunks * chunk, heads, width}).slice(1, 0, length);
}

torch::Tensor AtLast(const torch::Tensor& x, const torch::Tensor& last) {
  const auto rows = torch::arange(x.size(0), last.options()) * x.size(1) + last;
  return x.flatten(0, 1).index_select(0, rows).unsqueeze(1);
}

torch::Tensor LastSsd(const torch::Tensor& x, const torch::Tensor& delta,
                      const torch::Tensor& log_decay, const torch::Tensor& b,
                      const torch::Tensor& c, const torch::Tensor& last) {
  const auto sums = log_decay.to(torch::kFloat64).cumsum(1);  // [B,L,H]
  const auto later = torch::arange(x.size(1), last.options()) > last.unsqueeze(1);
  const auto decay = (AtLast(sums, last) - sums)
                         .masked_fill(later.unsqueeze(-1), -std::numeric_limits<double>::infinity())
                         .to(x.scalar_type())
                         .exp();
  const auto read = (b * c.unsqueeze(1)).sum(-1, /*keepdim=*/true);  // [B,L,1]
  return (x * (decay * read * delta).unsqueeze(-1)).sum(1);
}

SsdBlock::SsdBlock(const ModelConfig& config, double hippo_length) : config_(config) {
  const int64_t heads = config.num_heads();
  const int64_t inner = config.inner_size();
  in_proj_ = register_module(
      "in_proj", torch::nn::Linear(config.hidden_size, inner + config.conv_size() + heads));
  conv1d_ = register_module("conv1d", MakeDepthwiseConv(config.conv_size(), config.d_conv));
  out_proj_ = register_module("out_proj", torch::nn::Linear(inner, config.hidden_size));
  auto norm = register_module("norm", std::make_shared<NormWeight>(inner));
  norm_weight_ = norm->weight;

  // Drawn in any case, so that a seed gives the same other weights whatever the start.
  auto a = torch::empty({heads}).uniform_(1, 16);
  auto delta = torch::exp(torch::rand({heads}) * std::log(0.1 / 0.001) + std::log(0.001));
  if (hippo_length > 0) {
    a = torch::arange(1, heads + 1, torch::kFloat32);
    delta = torch::full({heads}, 1 / hippo_length);
  }
  a_log_ = register_parameter("A_log", a.log());
  dt_bias_ = register_parameter("dt_bias", delta + torch::log(-torch::expm1(-delta)));
  d_ = register_parameter("D", torch::ones({heads}));
}

torch::Tensor SsdBlock::Activate(const torch::Tensor& x) const {
  return config_.conv_activation == Activation::kSilu ? torch::silu(x) : torch::hardswish(x);
}

torch::Tensor SsdBlock::CausalConv(const torch::nn::Conv1d& conv, const torch::Tensor& x,
                                   torch::Tensor* tail) const {
  torch::Tensor padded;  // [B,C,K-1+L]
  if (tail == nullptr) {
    padded = torch::constant_pad_nd(x.transpose(1, 2), {config_.d_conv - 1, 0});
  } else {
    const auto with_tail = torch::cat({*tail, x}, 1);
    *tail = with_tail.slice(1, x.size(1));
    padded = with_tail.transpose(1, 2);
  }
  const auto options = F::Conv1dFuncOptions().bias(conv->bias).groups(x.size(2));
  return F::conv1d(padded, conv->weight, options).transpose(1, 2);
}

torch::Tensor SsdBlock::Mix(const torch::Tensor& x, const torch::Tensor& write,
                            const torch::Tensor& decay, const torch::Tensor& last,
                            LayerCache* cache) {
  const int64_t inner = config_.inner_size(), heads = config_.num_heads();
  const int64_t states = config_.d_state;
  const auto out = [&](const torch::Tensor& t) { return last.defined() ? AtLast(t, last) : t; };
  // z is needed where there is an output, the rest everywhere.
  const auto weight = in_proj_->weight.split_with_sizes({inner, config_.conv_size() + heads}, 0);
  const auto bias = in_proj_->bias.split_with_sizes({inner, config_.conv_size() + heads}, 0);
  const auto z = F::linear(out(x), weight[0], bias[0]);
  const auto parts =
      F::linear(x, weight[1], bias[1]).split_with_sizes({config_.conv_size(), heads}, -1);
  const auto xbc =
      Activate(CausalConv(conv1d_, parts[0], cache != nullptr ? &cache->conv : nullptr))
          .split_with_sizes({inner, states, states}, -1);
  const auto dt = write.defined() ? parts[1] * write : parts[1];
  const auto delta = torch::softplus(dt + dt_bias_);
  auto log_decay = -torch::exp(a_log_) * delta;
  if (decay.defined()) log_decay = log_decay - decay;
  const auto heads_x = xbc[0].reshape({x.size(0), x.size(1), heads, config_.head_dim});
  torch::Tensor read;
  if (last.defined()) {
    const auto c = AtLast(xbc[2], last).squeeze(1);
    read = LastSsd(heads_x, delta, log_decay, xbc[1], c, last).unsqueeze(1);
  } else {
    read = MaskedSsd(heads_x, delta, log_decay, xbc[1], xbc[2], /*chunk=*/64,
                     cache != nullptr ? &cache->ssm : nullptr);
  }
  auto y = (read + d_.unsqueeze(-1) * out(heads_x)).reshape({x.size(0), -1, inner});
  y = y * torch::silu(z);
  y = y * torch::rsqrt(y.pow(2).mean(-1, /*keepdim=*/true) + config_.norm_eps) * norm_weight_;
  return out_proj_(y);
}

FeedForwardImpl::FeedForwardImpl(const ModelConfig& config)
    : fc1_(register_module("fc1", torch::nn::Linear(config.hidden_size, config.ffn_size()))),
      fc2_(register_module("fc2", torch::nn::Linear(config.ffn_size(), config.hidden_size))),
      layer_norm_(register_module("layer_norm", MakeLayerNorm(config.hidden_size, kFfnNormEps))),
      dropout_(register_module("dropout", Dropout(config.dropout_prob))) {}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  return layer_norm_(dropout_(fc2_(dropout_(torch::hardswish(fc1_(x))))) + x);
}

void ResidualLayer::RegisterTail(const ModelConfig& config) {
  layer_norm_ = register_module("layer_norm", MakeLayerNorm(config.hidden_size, config.norm_eps));
  dropout_ = register_module("dropout", Dropout(config.dropout_prob));
  if (config.is_ffn) ffn_ = register_module("ffn", FeedForward(config));
}

torch::Tensor ResidualLayer::Finish(const torch::Tensor& mixed, const torch::Tensor& x) {
  auto out = dropout_(mixed);
  out = layer_norm_(residual_ ? out + x : out);
  return ffn_ ? ffn_(out) : out;
}

}  // namespace tim4rec
