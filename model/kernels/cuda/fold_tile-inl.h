// A tile of rows (events of any runs) through the whole model by one block: rules 5 to 13 of
// kernels.h, as the CPU's simd_fold-inl.h does it. The rows of one run stand together in order;
// only the recurrence of the states goes from row to row.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_TILE_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_TILE_INL_H_

#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/linear-inl.h"
#include "model/kernels/gap.h"

namespace tim4rec::cuda {

struct FoldArguments {
  ServedShape shape;
  kernels::Dims dims;
  ModelPlaces at;
  const float *weights, *embedding;
  const DeviceRun* runs;
  int32_t run_count;
  const kernels::Event* events;
  const float* writes;  // of windows, [run][layers][L][H] from WindowWrites; else null
};

// Rows of one run in a tile.
struct Segment {
  kernels::StateHeader* state;
  const float* writes;  // the first row's of the first layer, or null
  int32_t first_row, rows;
  int32_t first_event;
  bool ends;  // the run's last event is among them: it alone has an output

  __device__ float* tensors() const { return reinterpret_cast<float*>(state + 1); }
};

template <int kRows>
struct TileIndex {
  Segment segments[kRows];
  int32_t segment_of[kRows];  // a row's
  int32_t keep[kRows];        // rows with an output, in order
  int32_t count, rows, kept;
  int32_t next_run, run_end;  // the block's runs that are left
  int32_t begin, end;         // the block's events
};

// Widths of units and how far weights are read ahead, by the most rows of a tile.
template <int kRows>
struct Units {
  static constexpr int kWideRows = kRows < 8 ? kRows : 8;
  static constexpr int kWideBlocks = kRows < 16 ? 1 : 2;
  static constexpr int kAhead = kRows == 1 ? 8 : kRows < 16 ? 4 : 1;
};

template <int kRows>
struct Tile {
  const FoldArguments& a;
  TilePlaces at;
  float* base;
  TileIndex<kRows>* index;

  // ---- views

  __device__ int32_t wide_stride() const { return RowStride(Projections(a.shape)); }
  __device__ float* x(int32_t row) const { return base + at.x + row * RowStride(a.shape.d); }
  __device__ float* u(int32_t row) const { return base + at.u + row * RowStride(a.shape.d); }
  __device__ float* y(int32_t row) const { return base + at.y + row * RowStride(a.shape.e); }
  __device__ float* z(int32_t row) const { return base + at.projected + row * wide_stride(); }
  __device__ float* xbc(int32_t row) const { return z(row) + a.shape.e; }
  __device__ float* dt(int32_t row) const { return xbc(row) + Channels(a.shape); }
  __device__ const float* layer(int32_t l) const {
    return a.weights + a.at.layers + l * a.at.layer_floats;
  }
  __device__ float* tensors(const Segment& segment, int32_t l) const {
    return segment.tensors() + l * a.dims.layer_floats;
  }

  // ---- records on their way

  // Asks for a segment's tensors of one layer.
  __device__ void Prefetch(int32_t segment, int32_t l) const {
    if (l >= a.dims.layers || segment >= index->count) return;
    PrefetchToL2(tensors(index->segments[segment], l),
                 static_cast<uint32_t>(a.dims.layer_floats * sizeof(float)));
  }
  // Segments whose tensors are asked for before they are reached: as many as the second-level cache
  // can hold of all blocks.
  static constexpr int32_t kPrefetched = 6;
  __device__ void PrefetchFirst(int32_t l) const {
    if (threadIdx.x < kPrefetched) Prefetch(static_cast<int32_t>(threadIdx.x), l);
  }

  // ---- rules 5 and 6

  __device__ void BeginRow(int32_t row) const {
    const Segment& segment = index->segments[index->segment_of[row]];
    const int32_t before = row - segment.first_row;
    const kernels::Event event = a.events[segment.first_event + before];
    kernels::StateHeader header = *segment.state;
    if (before > 0) {
      header.last_timestamp_ms = a.events[segment.first_event + before - 1].timestamp_ms;
      header.folded_events += before;
    }
    const float ms = kernels::GapMs(a.dims, header, event.timestamp_ms);
    const float logarithm = kernels::Log1p(ms * a.dims.inv_tau0);
    base[at.gap_ms + row] = ms;
    base[at.gap_feature + row] = (logarithm - a.dims.gap_mean) * a.dims.inv_gap_stddev;
  }

  __device__ void Begin() const {
    const int32_t threads = static_cast<int32_t>(blockDim.x);
    // From the end, so that the halves of warps that read embeddings do not wait for the headers.
    for (int32_t row = threads - 1 - static_cast<int32_t>(threadIdx.x); row < index->rows;
         row += threads) {
      BeginRow(row);
    }
    const int32_t halves = threads / 16, rows = index->rows;
    for (int32_t first = 0; first < rows; first += halves) {
      const int32_t row = first + static_cast<int32_t>(threadIdx.x / 16);
      const bool valid = row < rows;
      if (valid) {
        const Segment& segment = index->segments[index->segment_of[row]];
        const int32_t item = a.events[segment.first_event + row - segment.first_row].item;
        const float* embedding = a.embedding + static_cast<int64_t>(item) * a.shape.d;
        for (int32_t i = HalfLane(); i < a.shape.d; i += 16) u(row)[i] = __ldg(embedding + i);
      }
      NormalizeLayer(valid, u(row), a.shape.d, a.weights + a.at.in_norm,
                     a.weights + a.at.in_norm_bias, a.dims.norm_eps, x(row));
    }
  }

  // ---- rule 4

  __device__ float Activated(float v) const {
    return a.dims.conv_silu ? kernels::Silu(v) : kernels::Hardswish(v);
  }

  static constexpr int kTaps = ServedShape::k;

  // The values that a convolution of one channel sees, oldest first.
  struct Window {
    float values[kTaps];
  };

  __device__ Window LoadTail(const float* tail, int32_t channels) const {
    Window window = {};
#pragma unroll
    for (int k = 0; k + 1 < kTaps; ++k) window.values[k] = __ldcg(tail + k * channels);
    return window;
  }

  __device__ void StoreTail(const Window& window, int32_t channels, float* tail) const {
#pragma unroll
    for (int k = 0; k + 1 < kTaps; ++k) __stcg(tail + k * channels, window.values[k]);
  }

  // Convolves one value, activated, and moves the window on.
  __device__ float Convolve(const float* w, float bias, int32_t channels, float value,
                            Window* window) const {
    window->values[kTaps - 1] = value;
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      sum = kernels::FusedMultiplyAdd(__ldg(w + k * channels), window->values[k], sum);
    }
#pragma unroll
    for (int i = 0; i + 1 < kTaps; ++i) window->values[i] = window->values[i + 1];
    return Activated(sum);
  }

  // One channel of a segment, in place.
  __device__ void ConvolveChannel(const Segment& segment, int32_t l, int32_t c) const {
    const int32_t channels = Channels(a.shape);
    const float* w = layer(l) + a.at.layer.conv + c;
    const float bias = __ldg(layer(l) + a.at.layer.conv_bias + c);
    float* tail = tensors(segment, l) + a.dims.conv_offset + c;
    Window window = LoadTail(tail, channels);
    for (int32_t j = 0; j < segment.rows; ++j) {
      float* value = xbc(segment.first_row + j) + c;
      *value = Convolve(w, bias, channels, *value, &window);
    }
    StoreTail(window, channels, tail);
  }

  // Four channels of a segment of one row, by K = kTaps.
  __device__ void ConvolveQuad(const Segment& segment, int32_t l, int32_t c) const {
    const int32_t channels = Channels(a.shape);
    const float* w = layer(l) + a.at.layer.conv + c;
    float* tail = tensors(segment, l) + a.dims.conv_offset + c;
    auto* value = reinterpret_cast<float4*>(xbc(segment.first_row) + c);
    float4 taps[kTaps];
#pragma unroll
    for (int k = 0; k + 1 < kTaps; ++k) {
      taps[k] = __ldcg(reinterpret_cast<const float4*>(tail + k * channels));
    }
    taps[kTaps - 1] = *value;
    float4 sum = __ldg(reinterpret_cast<const float4*>(layer(l) + a.at.layer.conv_bias + c));
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const float4 tap = __ldg(reinterpret_cast<const float4*>(w + k * channels));
      sum.x = kernels::FusedMultiplyAdd(tap.x, taps[k].x, sum.x);
      sum.y = kernels::FusedMultiplyAdd(tap.y, taps[k].y, sum.y);
      sum.z = kernels::FusedMultiplyAdd(tap.z, taps[k].z, sum.z);
      sum.w = kernels::FusedMultiplyAdd(tap.w, taps[k].w, sum.w);
    }
#pragma unroll
    for (int k = 0; k + 1 < kTaps; ++k) {
      __stcg(reinterpret_cast<float4*>(tail + k * channels), taps[k + 1]);
    }
    *value = make_float4(Activated(sum.x), Activated(sum.y), Activated(sum.z), Activated(sum.w));
  }

  // Most segments are single rows, and vectors move them.
  __device__ bool SingleRows() const { return kRows > 1 && 2 * index->count > index->rows; }

  // By the first `threads` threads.
  __device__ void ConvolveSegments(int32_t l, int32_t threads) const {
    const int32_t channels = Channels(a.shape);
    if (SingleRows()) {
      const int32_t parts = channels / 4;
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->count * parts; i += threads) {
        const Segment& segment = index->segments[i / parts];
        const int32_t c = i % parts * 4;
        if (segment.rows == 1) {
          ConvolveQuad(segment, l, c);
        } else {
          for (int32_t j = 0; j < 4; ++j) ConvolveChannel(segment, l, c + j);
        }
      }
      return;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->count * channels; i += threads) {
      ConvolveChannel(index->segments[i / channels], l, i % channels);
    }
  }

  // ---- rules 8 and 9, by one warp for all rows and heads

  // Calls visit(segment, j, h, place): row j of the segment, its place in an array [rows][H].
  template <typename Visit>
  __device__ void ForHeads(Visit visit) const {
    for (int32_t i = LaneIndex(); i < index->rows * a.shape.h; i += 32) {
      const int32_t row = i / a.shape.h;
      const Segment& segment = index->segments[index->segment_of[row]];
      visit(segment, row - segment.first_row, i % a.shape.h, i);
    }
  }

  // The value `back` rows before row j of a segment: of `values` [rows][H], or of the tail
  // [K-1][H].
  __device__ float Earlier(const Segment& segment, int32_t j, int32_t h, int32_t back,
                           const float* values, const float* tail) const {
    const int32_t from = j - back;
    if (from >= 0) return values[(segment.first_row + from) * a.shape.h + h];
    return __ldcg(tail + (a.shape.k - 1 + from) * a.shape.h + h);
  }

  __device__ float ConvolveHead(const Segment& segment, int32_t j, int32_t h, const float* w,
                                const float* bias, const float* values, const float* tail) const {
    float sum = __ldg(bias + h);
    for (int32_t k = 0; k < a.shape.k; ++k) {
      const float value = Earlier(segment, j, h, a.shape.k - 1 - k, values, tail);
      sum = kernels::FusedMultiplyAdd(__ldg(w + k * a.shape.h + h), value, sum);
    }
    return Activated(sum);
  }

  __device__ void MoveTail(const Segment& segment, int32_t h, const float* values,
                           float* tail) const {
    for (int32_t k = 0; k + 1 < a.shape.k; ++k) {
      const float value = Earlier(segment, segment.rows - 1, h, a.shape.k - 2 - k, values, tail);
      __stcg(tail + k * a.shape.h + h, value);
    }
  }

  // The modulation r of every row and head, into gate: of the gaps alone.
  __device__ void ModulateWrites(int32_t l) const {
    const float* w = layer(l);
    const float* w1 = w + a.at.layer.time_hidden;
    const float* b1 = w + a.at.layer.time_hidden_bias;
    float *scale = base + at.scale, *gate = base + at.gate, *first = base + at.delta;
    for (int32_t i = LaneIndex(); i < index->rows * a.shape.m; i += 32) {
      const int32_t row = i / a.shape.m, m = i % a.shape.m;
      base[at.hidden + row * RowStride(a.shape.m) + m] = kernels::Silu(
          kernels::FusedMultiplyAdd(__ldg(w1 + m), base[at.gap_feature + row], __ldg(b1 + m)));
    }
    __syncwarp();
    ForHeads([&](const Segment& segment, int32_t j, int32_t h, int32_t place) {
      const int32_t row = segment.first_row + j;
      const float* hidden = base + at.hidden + row * RowStride(a.shape.m);
      float sum = __ldg(w + a.at.layer.time_scale_bias + h);
      for (int32_t m = 0; m < a.shape.m; ++m) {
        sum = kernels::FusedMultiplyAdd(__ldg(w + a.at.layer.time_scale + m * a.shape.h + h),
                                        hidden[m], sum);
      }
      scale[place] = base[at.gap_feature + row] * sum;
    });
    __syncwarp();
    ForHeads([&](const Segment& segment, int32_t j, int32_t h, int32_t place) {
      first[place] =
          ConvolveHead(segment, j, h, w + a.at.layer.time_conv1, w + a.at.layer.time_conv1_bias,
                       scale, tensors(segment, l) + a.dims.time_conv1_offset);
    });
    __syncwarp();
    ForHeads([&](const Segment& segment, int32_t j, int32_t h, int32_t place) {
      gate[place] =
          ConvolveHead(segment, j, h, w + a.at.layer.time_conv2, w + a.at.layer.time_conv2_bias,
                       first, tensors(segment, l) + a.dims.time_conv2_offset);
    });
    __syncwarp();
    for (int32_t i = LaneIndex(); i < index->count * a.shape.h; i += 32) {
      const Segment& segment = index->segments[i / a.shape.h];
      float* tails = tensors(segment, l);
      MoveTail(segment, i % a.shape.h, scale, tails + a.dims.time_conv1_offset);
      MoveTail(segment, i % a.shape.h, first, tails + a.dims.time_conv2_offset);
    }
  }

  // From dt to delta and carry.
  __device__ void DecayRows(int32_t l) const {
    const float* w = layer(l);
    ForHeads([&](const Segment& segment, int32_t j, int32_t h, int32_t place) {
      const int32_t row = segment.first_row + j;
      float value = dt(row)[h];
      if (a.dims.time_write) {
        value = kernels::FusedMultiplyAdd(value, base[at.gate + place], value);
      }
      if (segment.writes != nullptr) {
        value =
            value * segment.writes[(static_cast<int64_t>(l) * a.dims.window + j) * a.shape.h + h];
      }
      const float delta = kernels::Softplus(value + __ldg(w + a.at.layer.dt_bias + h));
      const float lambda =
          a.dims.time_decay ? base[at.gap_ms + row] * __ldg(w + a.at.layer.rate + h) : 0.0f;
      base[at.delta + place] = delta;
      base[at.carry + place] =
          kernels::Exp(kernels::FusedMultiplyAdd(__ldg(w + a.at.layer.a + h), delta, -lambda));
    });
  }

  // ---- rule 10, and rule 11's product with Silu(z)

  __device__ bool Keeps(const Segment& segment, int32_t l, int32_t j) const {
    return l + 1 < a.dims.layers || (segment.ends && j + 1 == segment.rows);
  }

  // States of one channel held in registers while the rows pass, kTogether at a time.
  __device__ void UpdateChannel(const Segment& segment, int32_t l, int32_t e) const {
    constexpr int kTogether = kRows < 16 ? ServedShape::n : 16;
    const int32_t h = e / a.shape.p, p = e % a.shape.p;
    float* state = tensors(segment, l) + a.dims.ssm_offset +
                   static_cast<int64_t>(h) * a.shape.n * a.shape.p + p;
    const float skip = __ldg(layer(l) + a.at.layer.skip + h);
    for (int32_t first = 0; first < a.shape.n; first += kTogether) {
      float s[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i < a.shape.n) s[i] = __ldcg(state + (first + i) * a.shape.p);
      }
      for (int32_t j = 0; j < segment.rows; ++j) {
        const int32_t row = segment.first_row + j;
        const float* in = xbc(row);
        const float *b = in + a.shape.e + first, *c = b + a.shape.n;
        const float carry = base[at.carry + row * a.shape.h + h];
        const float dx = base[at.delta + row * a.shape.h + h] * in[e];
        float sum = first == 0 ? 0.0f : y(row)[e];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (first + i < a.shape.n) {
            s[i] = kernels::FusedMultiplyAdd(dx, b[i], carry * s[i]);
            sum = kernels::FusedMultiplyAdd(s[i], c[i], sum);
          }
        }
        if (first + kTogether >= a.shape.n) {
          if (!Keeps(segment, l, j)) continue;
          sum = kernels::FusedMultiplyAdd(skip, in[e], sum) * kernels::Silu(z(row)[e]);
        }
        y(row)[e] = sum;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i < a.shape.n) __stcg(state + (first + i) * a.shape.p, s[i]);
      }
    }
  }

  __device__ static void UpdateQuad(const float4& dx, float b, float c, float carry, float4* s,
                                    float4* y) {
    s->x = kernels::FusedMultiplyAdd(dx.x, b, carry * s->x);
    s->y = kernels::FusedMultiplyAdd(dx.y, b, carry * s->y);
    s->z = kernels::FusedMultiplyAdd(dx.z, b, carry * s->z);
    s->w = kernels::FusedMultiplyAdd(dx.w, b, carry * s->w);
    y->x = kernels::FusedMultiplyAdd(s->x, c, y->x);
    y->y = kernels::FusedMultiplyAdd(s->y, c, y->y);
    y->z = kernels::FusedMultiplyAdd(s->z, c, y->z);
    y->w = kernels::FusedMultiplyAdd(s->w, c, y->w);
  }

  // Four channels of one row: the record passes through in vectors. Sizes of ServedShape.
  __device__ void UpdateRowQuad(const Segment& segment, int32_t l, int32_t e) const {
    constexpr int kTogether = 8;
    using S = ServedShape;
    static_assert(S::n % kTogether == 0 && S::p % 4 == 0 && S::e % 4 == 0 && S::n % 4 == 0);
    const int32_t row = segment.first_row, h = e / S::p;
    auto* state = reinterpret_cast<float4*>(tensors(segment, l) + a.dims.ssm_offset +
                                            h * S::n * S::p + e % S::p);
    const float* in = xbc(row);
    const float4 x4 = *reinterpret_cast<const float4*>(in + e);
    const float carry = base[at.carry + row * S::h + h], delta = base[at.delta + row * S::h + h];
    const float4 dx = make_float4(delta * x4.x, delta * x4.y, delta * x4.z, delta * x4.w);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int32_t n = 0; n < S::n; n += kTogether) {
      float4 s[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) s[i] = __ldcg(state + (n + i) * (S::p / 4));
#pragma unroll
      for (int i = 0; i < kTogether; i += 4) {
        const float4 b = *reinterpret_cast<const float4*>(in + S::e + n + i);
        const float4 c = *reinterpret_cast<const float4*>(in + S::e + S::n + n + i);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          UpdateQuad(dx, Component(b, k), Component(c, k), carry, &s[i + k], &sum);
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) __stcg(state + (n + i) * (S::p / 4), s[i]);
    }
    if (!Keeps(segment, l, 0)) return;
    const float skip = __ldg(layer(l) + a.at.layer.skip + h);
    const float4 gate = *reinterpret_cast<const float4*>(z(row) + e);
    sum.x = kernels::FusedMultiplyAdd(skip, x4.x, sum.x) * kernels::Silu(gate.x);
    sum.y = kernels::FusedMultiplyAdd(skip, x4.y, sum.y) * kernels::Silu(gate.y);
    sum.z = kernels::FusedMultiplyAdd(skip, x4.z, sum.z) * kernels::Silu(gate.z);
    sum.w = kernels::FusedMultiplyAdd(skip, x4.w, sum.w) * kernels::Silu(gate.w);
    *reinterpret_cast<float4*>(y(row) + e) = sum;
  }

  __device__ void UpdateSegments(int32_t l) const {
    const int32_t threads = static_cast<int32_t>(blockDim.x);
    if constexpr (kRows > 1) {
      if (SingleRows()) {
        constexpr int32_t kParts = ServedShape::e / 4;
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->count * kParts;
             i += threads) {
          const Segment& segment = index->segments[i / kParts];
          const int32_t e = i % kParts * 4;
          if (e == 0) Prefetch(i / kParts + kPrefetched, l);
          if (segment.rows == 1) {
            UpdateRowQuad(segment, l, e);
          } else {
            for (int32_t j = 0; j < 4; ++j) UpdateChannel(segment, l, e + j);
          }
        }
        return;
      }
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->count * a.shape.e;
         i += threads) {
      const int32_t segment = i / a.shape.e, e = i % a.shape.e;
      if (e == 0) Prefetch(segment + kPrefetched, l);
      UpdateChannel(index->segments[segment], l, e);
    }
  }

  // ---- rules 11 and 12 of the rows that are kept

  // In the last layer only rows with an output are kept, and they stand at the front from here on:
  // the normalised rows in z's place.
  __device__ int32_t KeptRows(int32_t l) const {
    return l + 1 < a.dims.layers ? index->rows : index->kept;
  }
  __device__ int32_t KeptRow(int32_t l, int32_t i) const {
    return l + 1 < a.dims.layers ? i : index->keep[i];
  }

  __device__ void NormalizeMixed(int32_t l) const {
    const int32_t halves = static_cast<int32_t>(blockDim.x / 16), rows = KeptRows(l);
    for (int32_t first = 0; first < rows; first += halves) {
      const int32_t i = first + static_cast<int32_t>(threadIdx.x / 16);
      const bool valid = i < rows;
      NormalizeRoot(valid, y(valid ? KeptRow(l, i) : 0), a.shape.e, layer(l) + a.at.layer.norm,
                    a.dims.norm_eps, z(i));
    }
  }

  __device__ void NormalizeRows(int32_t rows, const float* w, const float* bias, float eps) const {
    const int32_t halves = static_cast<int32_t>(blockDim.x / 16);
    for (int32_t first = 0; first < rows; first += halves) {
      const int32_t i = first + static_cast<int32_t>(threadIdx.x / 16);
      NormalizeLayer(i < rows, u(i), a.shape.d, w, bias, eps, x(i));
    }
  }

  // ---- Linears; `weights` is where their blocks are: in device memory or staged

  using U = Units<kRows>;

  // By the first `warps` warps.
  __device__ void Project(int32_t l, const float* weights, int32_t warps) const {
    const Linear linear = {weights, layer(l) + a.at.layer.in_proj_bias, a.shape.d,
                           Projections(a.shape)};
    Multiply<U::kWideRows, U::kWideBlocks, U::kAhead>(
        linear, x(0), RowStride(a.shape.d), index->rows, warps,
        [&](int32_t row, int32_t o, float sum) { z(row)[o] = sum; });
  }

  __device__ void ProjectOut(int32_t l, const float* weights) const {
    const Linear linear = {weights, layer(l) + a.at.layer.out_proj_bias, a.shape.e, a.shape.d};
    Multiply<U::kWideRows, 1, 2 * U::kAhead>(
        linear, z(0), wide_stride(), KeptRows(l), Warps(), [&](int32_t i, int32_t o, float sum) {
          u(i)[o] = a.dims.layers > 1 ? sum + x(KeptRow(l, i))[o] : sum;
        });
  }

  __device__ float* feed_forward(int32_t row) const {
    return base + at.feed_forward + row * RowStride(a.shape.f);
  }

  __device__ void Widen(int32_t l, const float* weights) const {
    const Linear linear = {weights, layer(l) + a.at.layer.fc1_bias, a.shape.d, a.shape.f};
    Multiply<U::kWideRows, U::kWideBlocks, U::kAhead>(
        linear, x(0), RowStride(a.shape.d), KeptRows(l), Warps(),
        [&](int32_t i, int32_t o, float sum) { feed_forward(i)[o] = kernels::Hardswish(sum); });
  }

  __device__ void Narrow(int32_t l, const float* weights) const {
    const Linear linear = {weights, layer(l) + a.at.layer.fc2_bias, a.shape.f, a.shape.d};
    Multiply<U::kWideRows, 1, 2 * U::kAhead>(
        linear, feed_forward(0), RowStride(a.shape.f), KeptRows(l), Warps(),
        [&](int32_t i, int32_t o, float sum) { u(i)[o] = sum + x(i)[o]; });
  }

  // ---- the end

  __device__ void End() const {
    const int32_t threads = static_cast<int32_t>(blockDim.x);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->count; i += threads) {
      const Segment& segment = index->segments[i];
      segment.state->last_timestamp_ms =
          a.events[segment.first_event + segment.rows - 1].timestamp_ms;
      segment.state->folded_events += segment.rows;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < index->kept * a.shape.d; i += threads) {
      const int32_t kept = i / a.shape.d, d = i % a.shape.d;
      const Segment& segment = index->segments[index->segment_of[index->keep[kept]]];
      segment.tensors()[a.dims.output_offset + d] = x(kept)[d];
    }
  }
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_TILE_INL_H_
