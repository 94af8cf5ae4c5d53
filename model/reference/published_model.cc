#include "model/reference/published_model.h"

namespace tim4rec {

using torch::indexing::None;
using torch::indexing::Slice;

WindowFunctionImpl::WindowFunctionImpl(int64_t window, int64_t out, bool two_layers, double dropout)
    : dropout_(register_module("0", Dropout(dropout))),
      first_(register_module("1", torch::nn::Linear(window, two_layers ? window : out))) {
  if (two_layers) second_ = register_module("3", torch::nn::Linear(window, out));
}

torch::Tensor WindowFunctionImpl::forward(const torch::Tensor& tau) {
  const auto first = first_(dropout_(tau));
  return second_ ? second_(torch::silu(first)) : first;
}

PublishedSsdImpl::PublishedSsdImpl(const ModelConfig& config) : SsdBlock(config) {
  if (!config.is_time) return;
  const int64_t heads = config.num_heads(), window = config.max_item_list_length;
  conv1d4time_1_ = register_module("conv1d4time_1", MakeDepthwiseConv(heads, config.d_conv));
  conv1d4time_2_ = register_module("conv1d4time_2", MakeDepthwiseConv(heads, config.d_conv));
  mlp4time_scale_ = register_module(
      "mlp4time_scale", WindowFunction(window, window, /*two_layers=*/true, config.dropout_prob));
  time_gate_residual_ = register_module("time_gate_residual",
                                        WindowFunction(window, config.p2p_residual ? window : 1,
                                                       /*two_layers=*/false, config.dropout_prob));
  time_layer_norm_ = register_module("time_layer_norm", MakeLayerNorm(window, config.norm_eps));
}

TimedOutput PublishedSsdImpl::forward(const torch::Tensor& x, const torch::Tensor& tau,
                                      const torch::Tensor& last) {
  if (!config_.is_time) return {Mix(x, {}, {}, last), {}};
  const auto scaled = (tau * mlp4time_scale_(tau)).transpose(1, 2);  // [B,L,H]
  const auto r = Activate(CausalConv(conv1d4time_2_, Activate(CausalConv(conv1d4time_1_, scaled))));
  const auto gate = torch::sigmoid(time_gate_residual_(tau));  // [B,H,1] or [B,H,L]
  return {Mix(x, r.slice(1, 0, x.size(1)), {}, last),
          time_layer_norm_(gate * tau + (1 - gate) * r.transpose(1, 2))};
}

PublishedLayerImpl::PublishedLayerImpl(const ModelConfig& config)
    : ResidualLayer(config), ssd_(register_module("ssd", PublishedSsd(config))) {
  RegisterTail(config);
}

TimedOutput PublishedLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& tau,
                                        const torch::Tensor& last) {
  const TimedOutput mixed = ssd_(x, tau, last);
  return {Finish(mixed.hidden, last.defined() ? AtLast(x, last) : x), mixed.time};
}

PublishedModelImpl::PublishedModelImpl(const ModelConfig& config) : config_(config) {
  item_embedding_ = register_module(
      "item_embedding",
      torch::nn::Embedding(
          torch::nn::EmbeddingOptions(config.n_items, config.hidden_size).padding_idx(0)));
  in_layer_norm_ =
      register_module("in_layer_norm", MakeLayerNorm(config.hidden_size, config.norm_eps));
  if (config.is_time) {
    layer_norm_time_ = register_module("layer_norm_time",
                                       MakeLayerNorm(config.max_item_list_length, config.norm_eps));
  }
  dropout_ = register_module("dropout", Dropout(config.dropout_prob));
  auto list = register_module("ssd_layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    layers_.push_back(PublishedLayer(config));
    list->push_back(layers_.back());
  }
  torch::NoGradGuard no_grad;
  item_embedding_->weight.normal_(0, 0.02);
  item_embedding_->weight[0].zero_();
}

torch::Tensor PublishedModelImpl::InitialTime(const torch::Tensor& seconds) {
  const auto rounded = seconds.to(torch::kFloat32);
  auto gaps = torch::zeros_like(rounded);
  // The padding's zeros take part: the last real timestamp is followed by a jump down to 0.
  gaps.index_put_({Slice(), Slice(1, None)}, rounded.diff(1, 1));
  const auto tau = layer_norm_time_(gaps.to(item_embedding_->weight.scalar_type()));
  return tau.unsqueeze(1).expand({-1, config_.num_heads(), -1});
}

torch::Tensor PublishedModelImpl::Run(const torch::Tensor& items, const torch::Tensor& seconds,
                                      const torch::Tensor& last, std::vector<TimedOutput>* layers) {
  TimedOutput out = {in_layer_norm_(dropout_(item_embedding_(items))), {}};
  if (config_.is_time) out.time = InitialTime(seconds);
  for (size_t i = 0; i < layers_.size(); ++i) {
    // Only the last layer's outputs are read out.
    out = layers_[i](out.hidden, out.time, i + 1 == layers_.size() ? last : torch::Tensor());
    if (layers != nullptr) layers->push_back(out);
  }
  return out.hidden;
}

}  // namespace tim4rec
