#include "model/reference/streaming_model.h"

#include <cmath>

namespace tim4rec {

TimeFunctionImpl::TimeFunctionImpl(int64_t hidden, int64_t out)
    : first_(register_module("1", torch::nn::Linear(1, hidden))),
      second_(register_module("3", torch::nn::Linear(hidden, out))) {}

torch::Tensor TimeFunctionImpl::forward(const torch::Tensor& u, const torch::Tensor& shift) {
  const auto hidden = first_(u.unsqueeze(-1));
  return second_(torch::silu(shift.defined() ? hidden + shift : hidden));
}

TimeAwareSsdImpl::TimeAwareSsdImpl(const ModelConfig& config, const StreamingInit& init)
    : SsdBlock(config, init.hippo_length) {
  const int64_t heads = config.num_heads();
  if (config.time_write) {
    conv1d4time_1_ = register_module("conv1d4time_1", MakeDepthwiseConv(heads, config.d_conv));
    conv1d4time_2_ = register_module("conv1d4time_2", MakeDepthwiseConv(heads, config.d_conv));
    mlp4time_scale_ = register_module("mlp4time_scale", TimeFunction(config.time_hidden, heads));
  }
  if (config.time_decay) {
    log_memory_ms_ = register_parameter("log_memory_ms",
                                        torch::linspace(std::log(init.shortest_memory_ms),
                                                        std::log(init.longest_memory_ms), heads));
  }
}

torch::Tensor TimeAwareSsdImpl::forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                                        const torch::Tensor& u, LayerCache* cache) {
  torch::Tensor write, decay;
  if (config_.time_write) {
    const auto q = u.unsqueeze(-1) * mlp4time_scale_(u);
    torch::Tensor* tail1 = cache != nullptr ? &cache->time_conv1 : nullptr;
    torch::Tensor* tail2 = cache != nullptr ? &cache->time_conv2 : nullptr;
    const auto once = Activate(CausalConv(conv1d4time_1_, q, tail1));
    write = 1 + Activate(CausalConv(conv1d4time_2_, once, tail2));
  }
  if (config_.time_decay) decay = gaps_ms.unsqueeze(-1) * torch::exp(-log_memory_ms_);
  return Mix(x, write, decay, {}, cache);
}

SsdLayerImpl::SsdLayerImpl(const ModelConfig& config, const StreamingInit& init)
    : ResidualLayer(config), ssd_(register_module("ssd", TimeAwareSsd(config, init))) {
  RegisterTail(config);
}

torch::Tensor SsdLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                                    const torch::Tensor& u, LayerCache* cache) {
  return Finish(ssd_(x, gaps_ms, u, cache), x);
}

StreamingModelImpl::StreamingModelImpl(const ModelConfig& config, const StreamingInit& init)
    : config_(config) {
  item_embedding_ = register_module(
      "item_embedding",
      torch::nn::Embedding(
          torch::nn::EmbeddingOptions(config.n_items, config.hidden_size).padding_idx(0)));
  in_layer_norm_ =
      register_module("in_layer_norm", MakeLayerNorm(config.hidden_size, config.norm_eps));
  dropout_ = register_module("dropout", Dropout(config.dropout_prob));
  auto list = register_module("ssd_layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    layers_.push_back(SsdLayer(config, init));
    list->push_back(layers_.back());
  }
  torch::NoGradGuard no_grad;
  item_embedding_->weight.normal_(0, init.embedding_stddev);
  item_embedding_->weight[0].zero_();
  if (config.time_query) {
    query_gate_ =
        register_module("query_gate", TimeFunction(config.time_hidden, 2 * config.hidden_size));
    // The gate begins as the identity.
    auto parameters = query_gate_->named_parameters();
    parameters["3.weight"].zero_();
    parameters["3.bias"].zero_();
  }
}

torch::Tensor StreamingModelImpl::TimeFeature(const torch::Tensor& gaps_ms) const {
  const TimeConstants& time = config_.time;
  return (torch::log1p(gaps_ms / time.tau0_ms) - time.mean) / time.stddev;
}

torch::Tensor StreamingModelImpl::forward(const torch::Tensor& items, const torch::Tensor& gaps_ms,
                                          std::vector<LayerCache>* caches) {
  const auto u = TimeFeature(gaps_ms);
  auto x = in_layer_norm_(dropout_(item_embedding_(items)));
  for (size_t i = 0; i < layers_.size(); ++i) {
    x = layers_[i](x, gaps_ms, u, caches != nullptr ? &caches->at(i) : nullptr);
  }
  return x;
}

torch::Tensor StreamingModelImpl::Query(const torch::Tensor& outputs, const torch::Tensor& gaps_ms,
                                        const torch::Tensor& shift) {
  if (!config_.time_query) return outputs;
  const auto gate = query_gate_(TimeFeature(gaps_ms), shift).chunk(2, -1);
  return outputs * (1 + gate[0]) + gate[1];
}

}  // namespace tim4rec
