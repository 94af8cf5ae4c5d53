#include "model/reference/sasrec_model.h"

#include <cmath>
#include <limits>

namespace tim4rec {
namespace {

torch::nn::LayerNorm MakeNorm(int64_t size) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({size}).eps(1e-12));
}

}  // namespace

SasrecLayerImpl::SasrecLayerImpl(const SasrecConfig& config) : heads_(config.num_heads) {
  const int64_t width = config.hidden_size;
  in_proj_ = register_module("in_proj", torch::nn::Linear(width, 3 * width));
  out_proj_ = register_module("out_proj", torch::nn::Linear(width, width));
  attention_norm_ = register_module("attention_norm", MakeNorm(width));
  fc1_ = register_module("fc1", torch::nn::Linear(width, 4 * width));
  fc2_ = register_module("fc2", torch::nn::Linear(4 * width, width));
  ffn_norm_ = register_module("ffn_norm", MakeNorm(width));
  dropout_ = register_module("dropout", Dropout(config.dropout_prob));
}

torch::Tensor SasrecLayerImpl::forward(const torch::Tensor& x, const torch::Tensor& future) {
  const int64_t batch = x.size(0), length = x.size(1), width = x.size(2);
  const auto parts = in_proj_(x).chunk(3, -1);
  const auto by_head = [&](const torch::Tensor& part) {
    return part.reshape({batch, length, heads_, width / heads_}).transpose(1, 2);  // [B,H,L,D/H]
  };
  const auto scores = by_head(parts[0]).matmul(by_head(parts[1]).transpose(-1, -2)) /
                      std::sqrt(static_cast<double>(width / heads_));
  const auto weights =
      dropout_(scores.masked_fill(future, -std::numeric_limits<double>::infinity()).softmax(-1));
  const auto mixed =
      weights.matmul(by_head(parts[2])).transpose(1, 2).reshape({batch, length, width});
  const auto attended = attention_norm_(dropout_(out_proj_(mixed)) + x);
  return ffn_norm_(dropout_(fc2_(torch::gelu(fc1_(attended)))) + attended);
}

SasrecModelImpl::SasrecModelImpl(const SasrecConfig& config) : config_(config) {
  item_embedding_ = register_module(
      "item_embedding",
      torch::nn::Embedding(
          torch::nn::EmbeddingOptions(config.n_items, config.hidden_size).padding_idx(0)));
  position_embedding_ = register_module(
      "position_embedding", torch::nn::Embedding(config.max_length, config.hidden_size));
  layer_norm_ = register_module("layer_norm", MakeNorm(config.hidden_size));
  dropout_ = register_module("dropout", Dropout(config.dropout_prob));
  auto list = register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.num_layers; ++i) {
    layers_.push_back(SasrecLayer(config));
    list->push_back(layers_.back());
  }
  torch::NoGradGuard no_grad;
  for (auto& parameter : named_parameters()) {
    if (parameter.value().dim() == 2) parameter.value().normal_(0, 0.02);
    if (parameter.value().dim() == 1 && parameter.key().find("norm") == std::string::npos) {
      parameter.value().zero_();
    }
  }
  item_embedding_->weight[0].zero_();
}

torch::Tensor SasrecModelImpl::forward(const torch::Tensor& items) {
  const int64_t length = items.size(1);
  const auto positions = torch::arange(length, items.options());
  const auto future = torch::ones({length, length}, items.options().dtype(torch::kBool)).triu(1);
  auto x = dropout_(layer_norm_(item_embedding_(items) + position_embedding_(positions)));
  for (auto& layer : layers_) x = layer(x, future);
  return x;
}

}  // namespace tim4rec
