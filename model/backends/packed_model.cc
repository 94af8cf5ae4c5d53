#include "model/backends/packed_model.h"

#include "absl/strings/str_cat.h"
#include "model/kernels/math.h"

namespace tim4rec {
namespace {

kernels::Dims DimsOf(const ModelConfig& c) {
  const StateLayout layout = StateLayout::Recurrent(c);
  const bool streaming = c.variant == Variant::kStreaming;
  kernels::Dims dims = {};
  dims.d = static_cast<int32_t>(c.hidden_size);
  dims.e = static_cast<int32_t>(c.inner_size());
  dims.h = static_cast<int32_t>(c.num_heads());
  dims.p = static_cast<int32_t>(c.head_dim);
  dims.n = static_cast<int32_t>(c.d_state);
  dims.k = static_cast<int32_t>(c.d_conv);
  dims.m = static_cast<int32_t>(c.time_hidden);
  dims.f = static_cast<int32_t>(c.ffn_size());
  dims.layers = static_cast<int32_t>(c.num_layers);
  dims.items = static_cast<int32_t>(c.n_items);
  dims.ffn = c.is_ffn;
  dims.time_write = streaming && c.time_write;
  dims.time_decay = streaming && c.time_decay;
  dims.time_query = streaming && c.time_query;
  dims.conv_silu = c.conv_activation == Activation::kSilu;
  dims.window = c.has_window() ? static_cast<int32_t>(c.max_item_list_length) : 0;
  dims.window_gate_per_event = c.p2p_residual;
  dims.norm_eps = static_cast<float>(c.norm_eps);
  dims.max_gap_ms = c.time.max_gap_ms;
  dims.inv_tau0 = static_cast<float>(1.0 / c.time.tau0_ms);
  dims.gap_mean = static_cast<float>(c.time.mean);
  dims.inv_gap_stddev = static_cast<float>(1.0 / c.time.stddev);
  dims.ssm_offset = layout.ssm_offset;
  dims.conv_offset = layout.conv_offset;
  dims.time_conv1_offset = layout.time_conv1_offset;
  dims.time_conv2_offset = layout.time_conv2_offset;
  dims.layer_floats = layout.layer_floats;
  dims.output_offset = layout.output_offset;
  return dims;
}

}  // namespace

std::unique_ptr<const PackedModel> PackedModel::Create(std::shared_ptr<const ModelPackage> package,
                                                       bool pack_items) {
  const ModelConfig& config = package->config();
  std::unique_ptr<PackedModel> model(new PackedModel);
  model->package_ = std::move(package);
  model->dims_ = DimsOf(config);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    model->layers_.push_back(model->PackLayer(absl::StrCat("ssd_layers.", i)));
  }
  kernels::Weights& w = model->weights_;
  w.layers = model->layers_.data();
  w.embedding = model->Tensor("item_embedding.weight").data();
  w.in_norm = model->Tensor("in_layer_norm.weight").data();
  w.in_norm_bias = model->Tensor("in_layer_norm.bias").data();
  if (model->dims_.window > 0) {
    w.window_norm = model->Tensor("layer_norm_time.weight").data();
    w.window_norm_bias = model->Tensor("layer_norm_time.bias").data();
  }
  if (model->dims_.time_query) {
    w.query_hidden = model->Tensor("query_gate.1.weight").data();
    w.query_hidden_bias = model->Tensor("query_gate.1.bias").data();
    w.query_gate = model->Transposed("query_gate.3.weight");
    w.query_gate_bias = model->Tensor("query_gate.3.bias").data();
  }
  const kernels::Dims& dims = model->dims_;
  if (!pack_items) return model;
  float* items = model->Store(
      std::vector<float>(static_cast<size_t>(kernels::PackedItemFloats(dims.items, dims.d))));
  kernels::PackItems(w.embedding, dims.items, dims.d, items);
  model->packed_items_ = items;
  return model;
}

kernels::LayerWeights PackedModel::PackLayer(const std::string& prefix) {
  const std::string ssd = prefix + ".ssd";
  kernels::LayerWeights w = {};
  w.in_proj = Transposed(ssd + ".in_proj.weight");
  w.in_proj_bias = Tensor(ssd + ".in_proj.bias").data();
  w.conv = Transposed(ssd + ".conv1d.weight");
  w.conv_bias = Tensor(ssd + ".conv1d.bias").data();
  if (dims_.time_write || dims_.window > 0) {
    w.time_conv1 = Transposed(ssd + ".conv1d4time_1.weight");
    w.time_conv1_bias = Tensor(ssd + ".conv1d4time_1.bias").data();
    w.time_conv2 = Transposed(ssd + ".conv1d4time_2.weight");
    w.time_conv2_bias = Tensor(ssd + ".conv1d4time_2.bias").data();
  }
  if (dims_.time_write) {
    w.time_hidden = Tensor(ssd + ".mlp4time_scale.1.weight").data();
    w.time_hidden_bias = Tensor(ssd + ".mlp4time_scale.1.bias").data();
    w.time_scale = Transposed(ssd + ".mlp4time_scale.3.weight");
    w.time_scale_bias = Tensor(ssd + ".mlp4time_scale.3.bias").data();
  }
  if (dims_.window > 0) {
    w.window_scale1 = Transposed(ssd + ".mlp4time_scale.1.weight");
    w.window_scale1_bias = Tensor(ssd + ".mlp4time_scale.1.bias").data();
    w.window_scale2 = Transposed(ssd + ".mlp4time_scale.3.weight");
    w.window_scale2_bias = Tensor(ssd + ".mlp4time_scale.3.bias").data();
    w.window_gate = Transposed(ssd + ".time_gate_residual.1.weight");
    w.window_gate_bias = Tensor(ssd + ".time_gate_residual.1.bias").data();
    w.window_norm = Tensor(ssd + ".time_layer_norm.weight").data();
    w.window_norm_bias = Tensor(ssd + ".time_layer_norm.bias").data();
  }
  std::vector<float> a;
  for (const float log : Tensor(ssd + ".A_log")) a.push_back(-kernels::Exp(log));
  w.a = Store(std::move(a));
  if (dims_.time_decay) {
    std::vector<float> rate;
    for (const float log : Tensor(ssd + ".log_memory_ms")) rate.push_back(kernels::Exp(-log));
    w.rate = Store(std::move(rate));
  }
  w.dt_bias = Tensor(ssd + ".dt_bias").data();
  w.skip = Tensor(ssd + ".D").data();
  w.norm = Tensor(ssd + ".norm.weight").data();
  w.out_proj = Transposed(ssd + ".out_proj.weight");
  w.out_proj_bias = Tensor(ssd + ".out_proj.bias").data();
  w.layer_norm = Tensor(prefix + ".layer_norm.weight").data();
  w.layer_norm_bias = Tensor(prefix + ".layer_norm.bias").data();
  if (dims_.ffn) {
    w.fc1 = Transposed(prefix + ".ffn.fc1.weight");
    w.fc1_bias = Tensor(prefix + ".ffn.fc1.bias").data();
    w.fc2 = Transposed(prefix + ".ffn.fc2.weight");
    w.fc2_bias = Tensor(prefix + ".ffn.fc2.bias").data();
    w.ffn_norm = Tensor(prefix + ".ffn.layer_norm.weight").data();
    w.ffn_norm_bias = Tensor(prefix + ".ffn.layer_norm.bias").data();
  }
  return w;
}

std::span<const float> PackedModel::Tensor(const std::string& name) const {
  return package_->tensor(name).data;
}

// [outputs, inputs] or [channels, 1, K], to the last index first.
const float* PackedModel::Transposed(const std::string& name) {
  const TensorView& tensor = package_->tensor(name);
  float* packed = Store(std::vector<float>(tensor.data.size()));
  kernels::PackTransposed(tensor.data.data(), tensor.shape.front(), tensor.shape.back(), packed);
  return packed;
}

float* PackedModel::Store(std::vector<float> values) {
  storage_.push_back(std::move(values));
  return storage_.back().data();
}

}  // namespace tim4rec
