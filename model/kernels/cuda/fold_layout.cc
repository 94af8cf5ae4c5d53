#include "model/kernels/cuda/fold_layout.h"

#include <cstring>

namespace tim4rec::cuda {
namespace {

using kernels::Dims;
using kernels::LayerWeights;
using kernels::Weights;

int64_t RoundUp32(int64_t floats) { return (floats + 31) / 32 * 32; }

// Both walks name every part of a model once: `values` for one that is held as it is, `linear` for
// a Linear [inputs][outputs] with its bias.
template <typename Values, typename Linear>
void VisitLayer(const Dims& dims, const LayerWeights& w, LayerPlaces* at, Values values,
                Linear linear) {
  const int32_t c = dims.conv_channels();
  linear(&at->in_proj, &at->in_proj_bias, w.in_proj, w.in_proj_bias, dims.d, dims.projections());
  values(&at->conv, w.conv, dims.k * c);
  values(&at->conv_bias, w.conv_bias, c);
  if (dims.time_write || dims.window > 0) {
    values(&at->time_conv1, w.time_conv1, dims.k * dims.h);
    values(&at->time_conv1_bias, w.time_conv1_bias, dims.h);
    values(&at->time_conv2, w.time_conv2, dims.k * dims.h);
    values(&at->time_conv2_bias, w.time_conv2_bias, dims.h);
  }
  if (dims.time_write) {
    values(&at->time_hidden, w.time_hidden, dims.m);
    values(&at->time_hidden_bias, w.time_hidden_bias, dims.m);
    values(&at->time_scale, w.time_scale, dims.m * dims.h);
    values(&at->time_scale_bias, w.time_scale_bias, dims.h);
  }
  values(&at->a, w.a, dims.h);
  if (dims.time_decay) values(&at->rate, w.rate, dims.h);
  values(&at->dt_bias, w.dt_bias, dims.h);
  values(&at->skip, w.skip, dims.h);
  values(&at->norm, w.norm, dims.e);
  linear(&at->out_proj, &at->out_proj_bias, w.out_proj, w.out_proj_bias, dims.e, dims.d);
  values(&at->layer_norm, w.layer_norm, dims.d);
  values(&at->layer_norm_bias, w.layer_norm_bias, dims.d);
  if (dims.ffn) {
    linear(&at->fc1, &at->fc1_bias, w.fc1, w.fc1_bias, dims.d, dims.f);
    linear(&at->fc2, &at->fc2_bias, w.fc2, w.fc2_bias, dims.f, dims.d);
    values(&at->ffn_norm, w.ffn_norm, dims.d);
    values(&at->ffn_norm_bias, w.ffn_norm_bias, dims.d);
  }
  if (dims.window > 0) {
    const int32_t l = dims.window, gates = dims.window_gate_per_event ? l : 1;
    linear(&at->window_scale1, &at->window_scale1_bias, w.window_scale1, w.window_scale1_bias, l,
           l);
    linear(&at->window_scale2, &at->window_scale2_bias, w.window_scale2, w.window_scale2_bias, l,
           l);
    linear(&at->window_gate, &at->window_gate_bias, w.window_gate, w.window_gate_bias, l, gates);
    values(&at->window_norm, w.window_norm, l);
    values(&at->window_norm_bias, w.window_norm_bias, l);
  }
}

template <typename Values>
void VisitModel(const Dims& dims, const Weights& w, ModelPlaces* at, Values values) {
  values(&at->in_norm, w.in_norm, dims.d);
  values(&at->in_norm_bias, w.in_norm_bias, dims.d);
  if (dims.time_query) {
    values(&at->query_hidden, w.query_hidden, dims.m);
    values(&at->query_hidden_bias, w.query_hidden_bias, dims.m);
    values(&at->query_gate, w.query_gate, int64_t{2} * dims.m * dims.d);
    values(&at->query_gate_bias, w.query_gate_bias, 2 * dims.d);
  }
  if (dims.window > 0) {
    values(&at->window_norm, w.window_norm, dims.window);
    values(&at->window_norm_bias, w.window_norm_bias, dims.window);
  }
}

// `packed` is all zeros.
void PackLinear(const float* weights, int32_t inputs, int32_t outputs, float* packed) {
  for (int32_t o = 0; o < outputs; ++o) {
    float* block =
        packed + static_cast<int64_t>(o / kBlockOutputs) * Quads(inputs) * kBlockOutputs * 4;
    for (int32_t k = 0; k < inputs; ++k) {
      block[(k / 4 * kBlockOutputs + o % kBlockOutputs) * 4 + k % 4] =
          weights[static_cast<int64_t>(k) * outputs + o];
    }
  }
}

}  // namespace

int64_t PlaceWeights(const Dims& dims, ModelPlaces* places) {
  *places = {};
  int64_t used = 0;
  const auto values = [&](int64_t* place, const float*, int64_t floats) {
    *place = used;
    used += RoundUp32(floats);
  };
  const auto linear = [&](int64_t* weights, int64_t* bias, const float*, const float*,
                          int32_t inputs, int32_t outputs) {
    *weights = used;
    used += LinearFloats(inputs, outputs);
    values(bias, nullptr, outputs);
  };
  VisitModel(dims, Weights{}, places, values);
  places->layers = used;
  used = 0;
  VisitLayer(dims, LayerWeights{}, &places->layer, values, linear);
  places->layer_floats = used;
  return places->layers + dims.layers * places->layer_floats;
}

void PackWeights(const Dims& dims, const Weights& weights, const ModelPlaces& places,
                 float* packed) {
  float* base = packed;
  const auto values = [&](const int64_t* place, const float* from, int64_t floats) {
    std::memcpy(base + *place, from, sizeof(float) * static_cast<size_t>(floats));
  };
  const auto linear = [&](const int64_t* place, const int64_t* bias_place, const float* from,
                          const float* bias, int32_t inputs, int32_t outputs) {
    PackLinear(from, inputs, outputs, base + *place);
    values(bias_place, bias, outputs);
  };
  ModelPlaces at = places;
  VisitModel(dims, weights, &at, values);
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    base = packed + places.layers + layer * places.layer_floats;
    VisitLayer(dims, weights.layers[layer], &at.layer, values, linear);
  }
}

}  // namespace tim4rec::cuda
