// Fold: a tile of rows (events) through the whole model, layer by layer. The rows of one run stand
// together in order; only the recurrence of the states goes from row to row.
#ifndef TIM4REC_MODEL_KERNELS_SIMD_FOLD_INL_H_
#define TIM4REC_MODEL_KERNELS_SIMD_FOLD_INL_H_

#include <cstring>

#include "model/kernels/gap.h"
#include "model/kernels/simd_linear-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tim4rec::kernels {
namespace {

static_assert(kTileRows % kMostRows == 0);

// Rows of one run in a tile.
struct Segment {
  StateHeader* state;
  const Event* events;
  int64_t first_row, rows;
  bool ends;            // the run's last event is among them: it alone has an output
  const float* writes;  // the first row's of the first layer, or null

  float* tensors() const { return reinterpret_cast<float*>(state + 1); }
};

struct Tile {
  Segment segments[kTileRows];
  int64_t count = 0;
  int64_t rows = 0;
};

// Rows of width w have stride RoundUp16(w).
struct FoldScratch {
  float *x, *u;                 // [rows][D]
  float* projected;             // [rows][2E+2N+H]
  float* xbc;                   // [rows][C]
  float* y;                     // [rows][E]
  float* feed_forward;          // [rows][F]
  float* hidden;                // [rows][M]
  float* scale;                 // [rows][H], rows of stride RoundUp16(H)
  float *gap_ms, *gap_feature;  // [rows]
  // [rows][H] without padding.
  float *head_gap_ms, *dt, *gate, *gate2, *delta, *carry;
};

int64_t CarveFold(const Dims& dims, float* base, FoldScratch* scratch) {
  int64_t used = 0;
  const int64_t rows = kTileRows;
  const auto take = [&](int64_t floats) {
    float* at = base == nullptr ? nullptr : base + used;
    used += RoundUp16(floats);
    return at;
  };
  scratch->x = take(rows * RoundUp16(dims.d));
  scratch->u = take(rows * RoundUp16(dims.d));
  scratch->projected = take(rows * RoundUp16(dims.projections()));
  scratch->xbc = take(rows * RoundUp16(dims.conv_channels()));
  scratch->y = take(rows * RoundUp16(dims.e));
  scratch->feed_forward = take(rows * RoundUp16(dims.f));
  scratch->hidden = take(rows * RoundUp16(dims.m));
  scratch->scale = take(rows * RoundUp16(dims.h));
  scratch->gap_ms = take(rows);
  scratch->gap_feature = take(rows);
  for (float** per_head : {&scratch->head_gap_ms, &scratch->dt, &scratch->gate, &scratch->gate2,
                           &scratch->delta, &scratch->carry}) {
    *per_head = take(rows * dims.h);
  }
  return used + 16;  // whole vectors are read from within the last row
}

// ---- norms: rule 3

// Changes v. A whole vector may be written behind the n values of a row of either.
void NormalizeLayer(float* v, int64_t n, const float* w, const float* bias, float eps,
                    float* result) {
  Partials sum;
  for (int64_t j = 0; j < kParts; ++j) sum.p[j] = hn::Zero(kF);
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t j = 0; j < kParts; ++j) {
      sum.p[j] = hn::Add(sum.p[j], LoadUpTo(v, i + j * kLanes, n));
    }
  }
  const V count = Constant(static_cast<float>(n));
  const V mean = hn::Div(Constant(FoldPartials(sum)), count);
  for (int64_t j = 0; j < kParts; ++j) sum.p[j] = hn::Zero(kF);
  for (int64_t i = 0; i < n; i += 16) {
    for (int64_t j = 0; j < kParts; ++j) {
      const int64_t at = i + j * kLanes;
      StoreUpTo(hn::Sub(LoadUpTo(v, at, n), mean), v, at, n);
      const V centred = LoadUpTo(v, at, n);
      sum.p[j] = hn::MulAdd(centred, centred, sum.p[j]);
    }
  }
  const V variance = hn::Div(Constant(FoldPartials(sum)), count);
  const V r = hn::Div(Constant(1.0f), hn::Sqrt(hn::Add(variance, Constant(eps))));
  for (int64_t i = 0; i < n; i += kLanes) {
    const V scaled = hn::Mul(LoadUpTo(v, i, n), r);
    StoreUpTo(hn::MulAdd(scaled, LoadUpTo(w, i, n), LoadUpTo(bias, i, n)), result, i, n);
  }
}

// y * Silu(z), normalised by rule 3's RMSNorm, in y.
void GateAndNormalize(const float* z, int64_t n, const float* w, float eps, float* y) {
  Partials sum;
  for (int64_t j = 0; j < kParts; ++j) sum.p[j] = hn::Zero(kF);
  int64_t i = 0;
  constexpr int kTogether = 4;  // vectors whose chains overlap
  for (; i + kTogether * kLanes <= n; i += kTogether * kLanes) {
    V gated[kTogether];
#pragma GCC unroll 4
    for (int v = 0; v < kTogether; ++v) {
      const int64_t at = i + v * kLanes;
      gated[v] = hn::Mul(hn::LoadU(kF, y + at), VecSilu(hn::LoadU(kF, z + at)));
      hn::StoreU(gated[v], kF, y + at);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kTogether; ++v) {
      sum.p[v % kParts] = hn::MulAdd(gated[v], gated[v], sum.p[v % kParts]);
    }
  }
  for (; i < n; i += 16) {
    for (int64_t j = 0; j < kParts; ++j) {
      const int64_t at = i + j * kLanes;
      const V gated = hn::Mul(LoadUpTo(y, at, n), VecSilu(LoadUpTo(z, at, n)));
      StoreUpTo(gated, y, at, n);
      sum.p[j] = hn::MulAdd(gated, gated, sum.p[j]);
    }
  }
  const V mean_square = hn::Div(Constant(FoldPartials(sum)), Constant(static_cast<float>(n)));
  const V r = hn::Div(Constant(1.0f), hn::Sqrt(hn::Add(mean_square, Constant(eps))));
  for (i = 0; i < n; i += kLanes) {
    StoreUpTo(hn::Mul(hn::Mul(LoadUpTo(y, i, n), r), LoadUpTo(w, i, n)), y, i, n);
  }
}

// ---- convolutions: rule 4

struct Convolution {
  const float *w, *bias;
  int64_t width, channels;
};

// kWidth is 0 where the width is known only at run time.
template <bool kSilu, int kWidth>
void ConvolveRow(const Convolution& conv, const float* const* taps, float* result) {
  constexpr int kTogether = 4;  // vectors whose chains overlap
  const int64_t width = kWidth > 0 ? kWidth : conv.width;
  int64_t c = 0;
  for (; c + kTogether * kLanes <= conv.channels; c += kTogether * kLanes) {
    V acc[kTogether];
#pragma GCC unroll 4
    for (int v = 0; v < kTogether; ++v) acc[v] = hn::LoadU(kF, conv.bias + c + v * kLanes);
#pragma GCC unroll 4
    for (int64_t k = 0; k < width; ++k) {
      const float* w = conv.w + k * conv.channels + c;
#pragma GCC unroll 4
      for (int v = 0; v < kTogether; ++v) {
        acc[v] = hn::MulAdd(hn::LoadU(kF, w + v * kLanes), hn::LoadU(kF, taps[k] + c + v * kLanes),
                            acc[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kTogether; ++v) {
      hn::StoreU(Activated<kSilu>(acc[v]), kF, result + c + v * kLanes);
    }
  }
  for (; c < conv.channels; c += kLanes) {
    V acc = LoadUpTo(conv.bias, c, conv.channels);
    for (int64_t k = 0; k < width; ++k) {
      acc = hn::MulAdd(LoadUpTo(conv.w + k * conv.channels, c, conv.channels),
                       LoadUpTo(taps[k], c, conv.channels), acc);
    }
    StoreUpTo(Activated<kSilu>(acc), result, c, conv.channels);
  }
}

template <bool kSilu>
void ConvolveRow(const Convolution& conv, const float* const* taps, float* result) {
  if (conv.width == 4) return ConvolveRow<kSilu, 4>(conv, taps, result);
  ConvolveRow<kSilu, 0>(conv, taps, result);
}

// Convolves a segment's rows of raw values, moves the raw values into the tail [K-1][channels].
void ConvolveSegment(const Convolution& conv, bool silu, int64_t rows, const float* raw,
                     int64_t raw_stride, float* tail, float* result, int64_t result_stride) {
  const int64_t before = conv.width - 1;
  // Row i of the tail followed by the raw rows.
  const auto value = [&](int64_t i) -> const float* {
    return i < before ? tail + i * conv.channels : raw + (i - before) * raw_stride;
  };
  for (int64_t r = 0; r < rows; ++r) {
    const float* taps[16];
    for (int64_t k = 0; k < conv.width; ++k) taps[k] = value(r + k);
    if (silu) {
      ConvolveRow<true>(conv, taps, result + r * result_stride);
    } else {
      ConvolveRow<false>(conv, taps, result + r * result_stride);
    }
  }
  for (int64_t i = 0; i < before; ++i) {
    std::memcpy(tail + i * conv.channels, value(rows + i),
                sizeof(float) * static_cast<size_t>(conv.channels));
  }
}

// ---- time: rule 8

// dt [rows][H] without padding, modulated by the gaps.
void ModulateWrites(const Dims& dims, const LayerWeights& w, const BlockedLayer& blocked,
                    const Tile& tile, int64_t layer_offset, const FoldScratch& s) {
  const int64_t hidden_stride = RoundUp16(dims.m), scale_stride = RoundUp16(dims.h);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const V feature = Constant(s.gap_feature[r]);
    float* hidden = s.hidden + r * hidden_stride;
    for (int64_t m = 0; m < dims.m; m += kLanes) {
      const V sum = hn::MulAdd(LoadUpTo(w.time_hidden, m, dims.m), feature,
                               LoadUpTo(w.time_hidden_bias, m, dims.m));
      StoreUpTo(VecSilu(sum), hidden, m, dims.m);
    }
  }
  LinearRows(blocked.time_scale, dims.m, dims.h, s.hidden, hidden_stride, tile.rows, s.scale,
             scale_stride);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const V feature = Constant(s.gap_feature[r]);
    for (int64_t h = 0; h < dims.h; h += kLanes) {
      StoreUpTo(hn::Mul(feature, LoadUpTo(s.scale + r * scale_stride, h, dims.h)),
                s.gate + r * dims.h, h, dims.h);
    }
  }
  const Convolution first = {w.time_conv1, w.time_conv1_bias, dims.k, dims.h};
  const Convolution second = {w.time_conv2, w.time_conv2_bias, dims.k, dims.h};
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    float* layer = segment.tensors() + layer_offset;
    float* gate = s.gate + segment.first_row * dims.h;
    float* gate2 = s.gate2 + segment.first_row * dims.h;
    ConvolveSegment(first, dims.conv_silu, segment.rows, gate, dims.h,
                    layer + dims.time_conv1_offset, gate2, dims.h);
    ConvolveSegment(second, dims.conv_silu, segment.rows, gate2, dims.h,
                    layer + dims.time_conv2_offset, gate, dims.h);
  }
  for (int64_t i = 0; i < tile.rows * dims.h; i += kLanes) {
    const int64_t n = tile.rows * dims.h;
    const V dt = LoadUpTo(s.dt, i, n);
    StoreUpTo(hn::MulAdd(dt, LoadUpTo(s.gate, i, n), dt), s.dt, i, n);
  }
}

// dt times the window's r, where a run has one.
void ApplyWindowWrites(const Dims& dims, const Tile& tile, int32_t layer, const FoldScratch& s) {
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    if (segment.writes == nullptr) continue;
    const float* writes = segment.writes + static_cast<int64_t>(layer) * dims.window * dims.h;
    float* dt = s.dt + segment.first_row * dims.h;
    const int64_t n = segment.rows * dims.h;
    for (int64_t j = 0; j < n; j += kLanes) {
      StoreUpTo(hn::Mul(LoadUpTo(dt, j, n), LoadUpTo(writes, j, n)), dt, j, n);
    }
  }
}

// Rule 9, from dt to delta and carry.
void DecayRows(const Dims& dims, const BlockedLayer& blocked, int64_t rows, const FoldScratch& s) {
  const int64_t n = rows * dims.h;
  for (int64_t i = 0; i < n; i += kLanes) {
    const V delta = VecSoftplus(hn::Add(LoadUpTo(s.dt, i, n), LoadUpTo(blocked.dt_bias, i, n)));
    V lambda = hn::Zero(kF);
    if (dims.time_decay) {
      lambda = hn::Mul(LoadUpTo(s.head_gap_ms, i, n), LoadUpTo(blocked.rate, i, n));
    }
    const V exponent = hn::MulAdd(LoadUpTo(blocked.a, i, n), delta, hn::Neg(lambda));
    StoreUpTo(delta, s.delta, i, n);
    StoreUpTo(VecExp(exponent), s.carry, i, n);
  }
}

// ---- the states: rule 10

// Up to kLanes channels of one head.
struct Lanes {
  int64_t head, channel, count;
};

// What UpdateLanes needs of a segment.
struct StateRows {
  int64_t rows;
  const float* xbc;  // first row
  int64_t xbc_stride;
  const float *delta, *carry;  // [rows][H]
  float* y;
  int64_t y_stride;
  float* ssm;
  int64_t ahead_bytes;  // from this record's tensors to those that are used next
};

template <bool kWhole>
HWY_INLINE V LoadState(const float* at, int64_t count) {
  if constexpr (kWhole) return hn::LoadU(kF, at);
  return hn::MaskedLoad(hn::FirstN(kF, static_cast<size_t>(count)), kF, at);
}

template <bool kWhole>
HWY_INLINE void StoreState(V v, float* at, int64_t count) {
  if constexpr (kWhole) {
    hn::StoreU(v, kF, at);
  } else {
    hn::BlendedStore(v, hn::FirstN(kF, static_cast<size_t>(count)), kF, at);
  }
}

// kGroup vectors of channels together, so that their chains of fma overlap.
template <int kGroup, bool kWhole>
HWY_NOINLINE void UpdateLanes(const Dims& dims, const float* skip, const Lanes* lanes,
                              const StateRows& rows) {
  float* state[kGroup];
#pragma GCC unroll 4
  for (int g = 0; g < kGroup; ++g) {
    state[g] =
        rows.ssm + lanes[g].head * dims.n * dims.p + lanes[g].channel - lanes[g].head * dims.p;
  }
  // Copies: the compiler must take a store of floats for a change of what it reads by reference.
  const int64_t row_floats = dims.p, state_floats = dims.n * int64_t{dims.p};
  const int64_t ahead_bytes = rows.ahead_bytes;
  int64_t counts[kGroup];
#pragma GCC unroll 4
  for (int g = 0; g < kGroup; ++g) counts[g] = lanes[g].count;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* xbc = rows.xbc + r * rows.xbc_stride;
    const float* HWY_RESTRICT b = xbc + dims.e;
    const float* HWY_RESTRICT c = b + dims.n;
    V dx[kGroup], carry[kGroup], y[kGroup];
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g) {
      const int64_t head = r * dims.h + lanes[g].head;
      dx[g] = hn::Mul(Constant(rows.delta[head]),
                      LoadState<kWhole>(xbc + lanes[g].channel, lanes[g].count));
      carry[g] = Constant(rows.carry[head]);
      y[g] = hn::Zero(kF);
    }
    for (int64_t at_n = 0; at_n < state_floats; at_n += row_floats) {
      const V b_n = Constant(*b++);
      const V c_n = Constant(*c++);
#pragma GCC unroll 4
      for (int g = 0; g < kGroup; ++g) {
        float* at = state[g] + at_n;
        __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead_bytes);
        V s = LoadState<kWhole>(at, counts[g]);
        s = hn::MulAdd(dx[g], b_n, hn::Mul(carry[g], s));
        StoreState<kWhole>(s, at, counts[g]);
        y[g] = hn::MulAdd(s, c_n, y[g]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroup; ++g) {
      const V x = LoadState<kWhole>(xbc + lanes[g].channel, lanes[g].count);
      StoreState<kWhole>(hn::MulAdd(Constant(skip[lanes[g].head]), x, y[g]),
                         rows.y + r * rows.y_stride + lanes[g].channel, lanes[g].count);
    }
  }
}

template <bool kWhole>
void UpdateGroup(const Dims& dims, const float* skip, const Lanes* lanes, int group,
                 const StateRows& rows) {
  switch (group) {
    case 1:
      return UpdateLanes<1, kWhole>(dims, skip, lanes, rows);
    case 2:
      return UpdateLanes<2, kWhole>(dims, skip, lanes, rows);
    case 3:
      return UpdateLanes<3, kWhole>(dims, skip, lanes, rows);
    default:
      return UpdateLanes<4, kWhole>(dims, skip, lanes, rows);
  }
}

void UpdateStates(const Dims& dims, const float* skip, const StateRows& rows) {
  constexpr int kGroup = 4;
  Lanes lanes[kGroup];
  int group = 0;
  const bool whole = dims.p % kLanes == 0;
  for (int64_t head = 0; head < dims.h; ++head) {
    for (int64_t p = 0; p < dims.p; p += kLanes) {
      lanes[group++] = {head, head * dims.p + p, dims.p - p < kLanes ? dims.p - p : kLanes};
      const bool last = head + 1 == dims.h && p + kLanes >= dims.p;
      if (group < kGroup && !last) continue;
      if (whole) {
        UpdateGroup<true>(dims, skip, lanes, group, rows);
      } else {
        UpdateGroup<false>(dims, skip, lanes, group, rows);
      }
      group = 0;
    }
  }
}

// ---- a tile through the model

// The tensors that follow those of segment i in layer `layer` in use, or null.
const float* NextTensors(const Dims& dims, const Tile& tile, int64_t i, int32_t layer) {
  if (i + 1 < tile.count) return tile.segments[i + 1].tensors() + layer * dims.layer_floats;
  if (layer + 1 < dims.layers) return tile.segments[0].tensors() + (layer + 1) * dims.layer_floats;
  return nullptr;
}

// in_proj. In the last layer z is read of the rows with an output only: where those are few, it is
// made of them alone.
void ProjectRows(const Dims& dims, const BlockedLinear& in_proj, const Tile& tile, bool last_layer,
                 const FoldScratch& s) {
  const int64_t x_stride = RoundUp16(dims.d), stride = RoundUp16(dims.projections());
  int64_t outputs = 0;
  for (int64_t i = 0; i < tile.count; ++i) outputs += tile.segments[i].ends ? 1 : 0;
  if (!last_layer || dims.e % 16 != 0 || 4 * outputs > tile.rows) {
    LinearRows(in_proj, dims.d, dims.projections(), s.x, x_stride, tile.rows, s.projected, stride);
    return;
  }
  const BlockedLinear after_z = {in_proj.weights + static_cast<int64_t>(dims.e) * dims.d,
                                 in_proj.bias + dims.e};
  LinearRows(after_z, dims.d, dims.projections() - dims.e, s.x, x_stride, tile.rows,
             s.projected + dims.e, stride);
  for (int64_t i = 0; i < tile.count; ++i) {
    if (!tile.segments[i].ends) continue;
    const int64_t row = tile.segments[i].first_row + tile.segments[i].rows - 1;
    LinearRows(in_proj, dims.d, dims.e, s.x + row * x_stride, x_stride, 1,
               s.projected + row * stride, stride);
  }
}

// Rules 7 to 10: updates the layer's states and leaves the SSD's output in s.y.
void MixSequences(const Dims& dims, const LayerWeights& w, const BlockedLayer& blocked,
                  const Tile& tile, int32_t layer, const FoldScratch& s) {
  const int64_t projected_stride = RoundUp16(dims.projections());
  const int64_t xbc_stride = RoundUp16(dims.conv_channels());
  const int64_t layer_offset = layer * dims.layer_floats;
  ProjectRows(dims, blocked.in_proj, tile, layer + 1 == dims.layers, s);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* dt = s.projected + r * projected_stride + dims.e + dims.conv_channels();
    for (int64_t h = 0; h < dims.h; h += kLanes) {
      StoreUpTo(LoadUpTo(dt, h, dims.h), s.dt + r * dims.h, h, dims.h);
    }
  }
  if (dims.time_write) ModulateWrites(dims, w, blocked, tile, layer_offset, s);
  if (dims.window > 0) ApplyWindowWrites(dims, tile, layer, s);
  DecayRows(dims, blocked, tile.rows, s);
  const Convolution conv = {w.conv, w.conv_bias, dims.k, dims.conv_channels()};
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    float* tensors = segment.tensors() + layer_offset;
    StateRows rows;
    rows.rows = segment.rows;
    rows.xbc = s.xbc + segment.first_row * xbc_stride;
    rows.xbc_stride = xbc_stride;
    rows.delta = s.delta + segment.first_row * dims.h;
    rows.carry = s.carry + segment.first_row * dims.h;
    rows.y = s.y + segment.first_row * RoundUp16(dims.e);
    rows.y_stride = RoundUp16(dims.e);
    rows.ssm = tensors + dims.ssm_offset;
    const float* next = NextTensors(dims, tile, i, layer);
    rows.ahead_bytes = next == nullptr ? 0
                                       : static_cast<int64_t>(reinterpret_cast<uintptr_t>(next) -
                                                              reinterpret_cast<uintptr_t>(tensors));
    ConvolveSegment(conv, dims.conv_silu, segment.rows,
                    s.projected + segment.first_row * projected_stride + dims.e, projected_stride,
                    tensors + dims.conv_offset, s.xbc + segment.first_row * xbc_stride, xbc_stride);
    UpdateStates(dims, w.skip, rows);
  }
}

// Rules 11 and 12 for the first `rows` rows: from s.x, s.y and z to the layer's output, in s.x.
void FinishRows(const Dims& dims, const LayerWeights& w, const BlockedLayer& blocked, int64_t rows,
                const FoldScratch& s) {
  if (rows == 0) return;
  const int64_t d_stride = RoundUp16(dims.d), e_stride = RoundUp16(dims.e);
  const int64_t f_stride = RoundUp16(dims.f);
  for (int64_t r = 0; r < rows; ++r) {
    GateAndNormalize(s.projected + r * RoundUp16(dims.projections()), dims.e, w.norm, dims.norm_eps,
                     s.y + r * e_stride);
  }
  LinearRows(blocked.out_proj, dims.e, dims.d, s.y, e_stride, rows, s.u, d_stride);
  for (int64_t r = 0; r < rows; ++r) {
    float* u = s.u + r * d_stride;
    float* x = s.x + r * d_stride;
    if (dims.layers > 1) {
      for (int64_t i = 0; i < dims.d; i += kLanes) {
        StoreUpTo(hn::Add(LoadUpTo(u, i, dims.d), LoadUpTo(x, i, dims.d)), u, i, dims.d);
      }
    }
    NormalizeLayer(u, dims.d, w.layer_norm, w.layer_norm_bias, dims.norm_eps, x);
  }
  if (!dims.ffn) return;
  LinearRows(blocked.fc1, dims.d, dims.f, s.x, d_stride, rows, s.feed_forward, f_stride);
  for (int64_t i = 0; i < rows * f_stride; i += kLanes) {
    hn::StoreU(VecHardswish(hn::LoadU(kF, s.feed_forward + i)), kF, s.feed_forward + i);
  }
  LinearRows(blocked.fc2, dims.f, dims.d, s.feed_forward, f_stride, rows, s.u, d_stride);
  for (int64_t r = 0; r < rows; ++r) {
    float* u = s.u + r * d_stride;
    float* x = s.x + r * d_stride;
    for (int64_t i = 0; i < dims.d; i += kLanes) {
      StoreUpTo(hn::Add(LoadUpTo(u, i, dims.d), LoadUpTo(x, i, dims.d)), u, i, dims.d);
    }
    constexpr float kFfnNormEps = 1e-12f;
    NormalizeLayer(u, dims.d, w.ffn_norm, w.ffn_norm_bias, kFfnNormEps, x);
  }
}

void MoveRow(float* rows, int64_t stride, int64_t width, int64_t from, int64_t to) {
  std::memcpy(rows + to * stride, rows + from * stride, sizeof(float) * static_cast<size_t>(width));
}

// Moves the rows whose output is read, the last of each ending segment, to the front. Returns their
// number.
int64_t KeepLastRows(const Dims& dims, const Tile& tile, const FoldScratch& s) {
  int64_t kept = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    if (!segment.ends) continue;
    const int64_t row = segment.first_row + segment.rows - 1;
    if (row != kept) {
      MoveRow(s.x, RoundUp16(dims.d), dims.d, row, kept);
      MoveRow(s.y, RoundUp16(dims.e), dims.e, row, kept);
      MoveRow(s.projected, RoundUp16(dims.projections()), dims.e, row, kept);
    }
    ++kept;
  }
  return kept;
}

// Header and time tails, the first of a record that are read, each in a line of its own.
void PrefetchTimes(const Dims& dims, const Segment& segment) {
  __builtin_prefetch(segment.state, 1);
  for (int64_t layer = 0; layer < dims.layers; ++layer) {
    const float* tensors = segment.tensors() + layer * dims.layer_floats;
    for (int64_t i = dims.time_conv1_offset; i < dims.layer_floats; i += 16) {
      __builtin_prefetch(tensors + i, 1);
    }
  }
}

// Rules 5 and 6.
void BeginRows(const Dims& dims, const Weights& weights, const Tile& tile, const FoldScratch& s) {
  const int64_t d_stride = RoundUp16(dims.d);
  for (int64_t i = 0; i < tile.count; ++i) PrefetchTimes(dims, tile.segments[i]);
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    StateHeader header = *segment.state;
    for (int64_t j = 0; j < segment.rows; ++j) {
      const int64_t r = segment.first_row + j;
      const Event& event = segment.events[j];
      s.gap_ms[r] = GapMs(dims, header, event.timestamp_ms);
      for (int64_t h = 0; h < dims.h; ++h) s.head_gap_ms[r * dims.h + h] = s.gap_ms[r];
      header.last_timestamp_ms = event.timestamp_ms;
      header.folded_events += 1;
      float* u = s.u + r * d_stride;
      std::memcpy(u, weights.embedding + static_cast<int64_t>(event.item) * dims.d,
                  sizeof(float) * static_cast<size_t>(dims.d));
      NormalizeLayer(u, dims.d, weights.in_norm, weights.in_norm_bias, dims.norm_eps,
                     s.x + r * d_stride);
    }
  }
  for (int64_t r = 0; r < tile.rows; r += kLanes) {
    V u = VecLog1p(hn::Mul(LoadUpTo(s.gap_ms, r, tile.rows), Constant(dims.inv_tau0)));
    u = hn::Mul(hn::Sub(u, Constant(dims.gap_mean)), Constant(dims.inv_gap_stddev));
    StoreUpTo(u, s.gap_feature, r, tile.rows);
  }
}

void FoldTile(const Dims& dims, const Weights& weights, const BlockedLayer* blocked,
              const Tile& tile, const FoldScratch& s) {
  BeginRows(dims, weights, tile, s);
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    const LayerWeights& w = weights.layers[layer];
    MixSequences(dims, w, blocked[layer], tile, layer, s);
    const bool last = layer + 1 == dims.layers;
    FinishRows(dims, w, blocked[layer], last ? KeepLastRows(dims, tile, s) : tile.rows, s);
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    const Segment& segment = tile.segments[i];
    segment.state->last_timestamp_ms = segment.events[segment.rows - 1].timestamp_ms;
    segment.state->folded_events += segment.rows;
    if (!segment.ends) continue;
    std::memcpy(segment.tensors() + dims.output_offset, s.x + kept * RoundUp16(dims.d),
                sizeof(float) * static_cast<size_t>(dims.d));
    ++kept;
  }
}

// Tiles of nearly equal sizes, in whole groups of rows: a last tile of a few would pay for all the
// weights.
int64_t RowsOfTiles(const FoldRun* runs, int64_t count) {
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) rows += runs[i].count;
  if (rows <= kTileRows) return kTileRows;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return ((rows + tiles - 1) / tiles + kMostRows - 1) / kMostRows * kMostRows;
}

void Fold(const Dims& dims, const Weights& weights, const BlockedLayer* layers, const FoldRun* runs,
          int64_t count, float* scratch) {
  FoldScratch s;
  CarveFold(dims, scratch, &s);
  const int64_t most = RowsOfTiles(runs, count);
  Tile tile;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t done = 0; done < runs[i].count;) {
      const int64_t room = most - tile.rows;
      const int64_t left = runs[i].count - done;
      const int64_t rows = left < room ? left : room;
      tile.segments[tile.count++] = {
          runs[i].state,
          runs[i].events + done,
          tile.rows,
          rows,
          /*ends=*/rows == left,
          runs[i].writes == nullptr ? nullptr : runs[i].writes + done * dims.h};
      tile.rows += rows;
      done += rows;
      if (tile.rows < most) continue;
      FoldTile(dims, weights, layers, tile, s);
      tile.count = tile.rows = 0;
    }
  }
  if (tile.rows > 0) FoldTile(dims, weights, layers, tile, s);
}

int64_t FoldScratchFloats(const Dims& dims) {
  FoldScratch scratch;
  return CarveFold(dims, nullptr, &scratch);
}

}  // namespace
}  // namespace tim4rec::kernels
HWY_AFTER_NAMESPACE();

#endif  // TIM4REC_MODEL_KERNELS_SIMD_FOLD_INL_H_
