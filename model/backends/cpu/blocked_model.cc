#include "model/backends/cpu/blocked_model.h"

#include <algorithm>
#include <new>
#include <utility>

#include "model/backends/cpu/huge_pages.h"

namespace tim4rec {

BlockedModel::BlockedModel(const kernels::Dims& dims, const kernels::Weights& weights) {
  for (int32_t i = 0; i < dims.layers; ++i) {
    const kernels::LayerWeights& w = weights.layers[i];
    kernels::BlockedLayer layer = {};
    layer.in_proj = Block(w.in_proj, w.in_proj_bias, dims.d, dims.projections());
    layer.out_proj = Block(w.out_proj, w.out_proj_bias, dims.e, dims.d);
    if (dims.ffn) {
      layer.fc1 = Block(w.fc1, w.fc1_bias, dims.d, dims.f);
      layer.fc2 = Block(w.fc2, w.fc2_bias, dims.f, dims.d);
    }
    if (dims.time_write) {
      layer.time_scale = Block(w.time_scale, w.time_scale_bias, dims.m, dims.h);
    }
    layer.dt_bias = Repeat(w.dt_bias, dims);
    layer.a = Repeat(w.a, dims);
    if (dims.time_decay) layer.rate = Repeat(w.rate, dims);
    layers_.push_back(layer);
  }
  const int64_t code_floats = (kernels::RankCodes(dims.items, dims.d) + 3) / 4;
  auto* codes = reinterpret_cast<uint8_t*>(Store(code_floats));
  items_ = kernels::QuantizeItems(weights.embedding, dims.items, dims.d, codes,
                                  Store(kernels::RankScales(dims.items)));
}

float* BlockedModel::Store(int64_t floats) {
  const size_t bytes = (sizeof(float) * static_cast<size_t>(floats) + 63) / 64 * 64;
  if (bytes > left_) {
    left_ = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    next_ = static_cast<std::byte*>(AllocateHugePages(left_));
    if (next_ == nullptr) throw std::bad_alloc();
    storage_.emplace_back(next_);
  }
  left_ -= bytes;
  return reinterpret_cast<float*>(std::exchange(next_, next_ + bytes));
}

kernels::BlockedLinear BlockedModel::Block(const float* weights, const float* bias, int64_t inputs,
                                           int64_t outputs) {
  float* blocked = Store(kernels::BlockedFloats(inputs, outputs));
  kernels::PackBlocks(weights, inputs, outputs, blocked);
  float* padded_bias = Store(kernels::BlockedFloats(1, outputs));
  kernels::PackBlocks(bias, 1, outputs, padded_bias);
  return {blocked, padded_bias};
}

const float* BlockedModel::Repeat(const float* per_head, const kernels::Dims& dims) {
  const int64_t rows = kernels::kTileRows;
  float* repeated = Store(rows * dims.h);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(per_head, dims.h, repeated + r * dims.h);
  return repeated;
}

}  // namespace tim4rec
