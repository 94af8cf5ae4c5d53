// Where the fold's kernels find a model's weights in device memory and a tile's values in shared
// memory. Shape legend: kernels.h.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAYOUT_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAYOUT_H_

#include <cstdint>

#include "model/kernels/kernels.h"
#include "model/kernels/math.h"

namespace tim4rec::cuda {

// ---- sizes

// Those that a kernel is compiled for: D 64 with the defaults of everything else.
struct ServedShape {
  static constexpr int32_t d = 64, e = 128, h = 4, p = 32, n = 32, k = 4, m = 16, f = 256;
};

inline bool IsServed(const kernels::Dims& dims) {
  using S = ServedShape;
  return dims.d == S::d && dims.e == S::e && dims.h == S::h && dims.p == S::p && dims.n == S::n &&
         dims.k == S::k && (dims.m == S::m || !dims.time_write) && dims.f == S::f;
}

// Shape: ServedShape or kernels::Dims.
template <typename Shape>
TIM4REC_KERNEL_FUNCTION int32_t Channels(const Shape& shape) {
  return shape.e + 2 * shape.n;
}

template <typename Shape>
TIM4REC_KERNEL_FUNCTION int32_t Projections(const Shape& shape) {
  return shape.e + Channels(shape) + shape.h;
}

// ---- weights

// A Linear is held in blocks of 32 outputs, one per lane: [ceil(outputs/32)][ceil(inputs/4)][32][4
// inputs], so that a lane reads four inputs' weights at once and a warp 512 bytes; zeros fill up.
inline constexpr int32_t kBlockOutputs = 32;

TIM4REC_KERNEL_FUNCTION int32_t Blocks(int32_t outputs) {
  return (outputs + kBlockOutputs - 1) / kBlockOutputs;
}

TIM4REC_KERNEL_FUNCTION int32_t Quads(int32_t inputs) { return (inputs + 3) / 4; }

TIM4REC_KERNEL_FUNCTION int64_t LinearFloats(int32_t inputs, int32_t outputs) {
  return static_cast<int64_t>(Blocks(outputs)) * Quads(inputs) * kBlockOutputs * 4;
}

// Offsets in floats, multiples of 32; from the layer's beginning, or the model's. All else than
// Linears is held as LayerWeights holds it.
struct LayerPlaces {
  int64_t in_proj, in_proj_bias;
  int64_t conv, conv_bias, time_conv1, time_conv1_bias, time_conv2, time_conv2_bias;
  int64_t time_hidden, time_hidden_bias, time_scale, time_scale_bias;
  int64_t a, rate, dt_bias, skip, norm;
  int64_t out_proj, out_proj_bias, layer_norm, layer_norm_bias;
  int64_t fc1, fc1_bias, fc2, fc2_bias, ffn_norm, ffn_norm_bias;
  int64_t window_scale1, window_scale1_bias, window_scale2, window_scale2_bias;
  int64_t window_gate, window_gate_bias, window_norm, window_norm_bias;
};

struct ModelPlaces {
  int64_t in_norm, in_norm_bias, query_hidden, query_hidden_bias, query_gate, query_gate_bias;
  int64_t window_norm, window_norm_bias;
  int64_t layers, layer_floats;  // the first layer's beginning, the stride
  LayerPlaces layer;
};

// Sets the places of all but the embedding; returns the floats of it all.
int64_t PlaceWeights(const kernels::Dims& dims, ModelPlaces* places);
// Writes the weights to `packed` (host memory) as placed.
void PackWeights(const kernels::Dims& dims, const kernels::Weights& weights,
                 const ModelPlaces& places, float* packed);

// ---- a tile's values, in floats from its beginning; rows have a stride of RowStride

// A multiple of 4, so that rows can be read in vectors; half the banks apart, so that two rows can
// be read at once.
TIM4REC_KERNEL_FUNCTION int32_t RowStride(int32_t width) { return (width + 15) / 32 * 32 + 16; }

struct TilePlaces {
  int32_t x, u;          // [rows][D]
  int32_t projected;     // [rows][2E+2N+H]: z, then B and C and what is between, dt
  int32_t feed_forward;  // [rows][F], in the place of `projected`
  int32_t y;             // [rows][E]
  int32_t hidden;        // [rows][M]
  int32_t scale;         // [rows][H], as the next ones, without padding
  int32_t gate, delta, carry;
  int32_t gap_ms, gap_feature;  // [rows]
  int32_t floats;
};

TIM4REC_KERNEL_FUNCTION TilePlaces PlaceTile(const ServedShape& shape, int32_t rows) {
  TilePlaces at = {};
  const int32_t wide = RowStride(Projections(shape)), ffn = RowStride(shape.f);
  at.u = at.x + rows * RowStride(shape.d);
  at.projected = at.feed_forward = at.u + rows * RowStride(shape.d);
  at.y = at.projected + rows * (wide > ffn ? wide : ffn);
  at.hidden = at.y + rows * RowStride(shape.e);
  at.scale = at.hidden + rows * RowStride(shape.m);
  at.gate = at.scale + rows * shape.h;
  at.delta = at.gate + rows * shape.h;
  at.carry = at.delta + rows * shape.h;
  at.gap_ms = at.carry + rows * shape.h;
  at.gap_feature = at.gap_ms + rows;
  at.floats = (at.gap_feature + rows + 31) / 32 * 32;
  return at;
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAYOUT_H_
