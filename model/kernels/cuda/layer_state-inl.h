// The states of one layer pass through the rows of a chunk, a block per run: from the input
// projection to the normalised input of the output projection, rules 5 and 7 to 11 of kernels.h.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_LAYER_STATE_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_LAYER_STATE_INL_H_

#include "model/kernels/cuda/layer_chunk.h"
#include "model/kernels/cuda/linear-inl.h"
#include "model/kernels/gap.h"

namespace tim4rec::cuda {

inline constexpr int kStateThreads = 256;

// What follows `first_row` of a segment, a tile at a time.
struct StateUpdate {
  const ChunkArguments& a;
  ChunkSegment segment;
  int32_t index;  // the segment's
  int32_t l;
  float* base;  // of the tile

  // ---- views

  __device__ static int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }
  __device__ const float* w() const { return a.layer(l); }
  __device__ float* tensors() const {
    return reinterpret_cast<float*>(segment.state + 1) + l * a.dims.layer_floats;
  }
  // Row j of the segment: z, raw xBC, dt.
  __device__ const float* projected(int32_t j) const {
    return a.wide + static_cast<int64_t>(segment.first_row + j) * a.strides.wide;
  }
  // Row r of the tile.
  __device__ float* mixed(int32_t r) const {
    return base + a.tile.mixed + r * Padded(Channels(a.dims));
  }
  __device__ float* y(int32_t r) const { return base + a.tile.y + r * Padded(a.dims.e); }

  // Calls visit(r, h, place) for rows and heads; place is that of [rows][H].
  template <typename Visit>
  __device__ void ForHeads(int32_t rows, Visit visit) const {
    for (int32_t i = Thread(); i < rows * a.dims.h; i += kStateThreads) {
      visit(i / a.dims.h, i % a.dims.h, i);
    }
  }

  // Which rows go on after the state.
  __device__ bool Keeps(int32_t j) const { return l + 1 < a.dims.layers || j + 1 == segment.rows; }

  // Asks for the layer's tensors, by a warp.
  __device__ void PrefetchState() const {
    constexpr int64_t kWord = 4;  // floats
    const int64_t words = a.dims.layer_floats / kWord;
    const int64_t share = (words + 31) / 32, first = LaneIndex() * share;
    const int64_t left = words - first < share ? words - first : share;
    if (left <= 0) return;
    PrefetchToL2(tensors() + first * kWord, static_cast<uint32_t>(left * kWord * sizeof(float)));
  }

  // ---- rules 4 and 5

  __device__ void FindGaps(int32_t j0, int32_t rows) const {
    const int32_t r = kStateThreads - 1 - Thread();
    if (r >= rows) return;
    const int32_t j = j0 + r;
    kernels::StateHeader header = *segment.state;
    if (j > 0) {
      header.last_timestamp_ms = a.row_events[segment.first_row + j - 1].timestamp_ms;
      header.folded_events += j;
    }
    const float ms =
        kernels::GapMs(a.dims, header, a.row_events[segment.first_row + j].timestamp_ms);
    const float logarithm = kernels::Log1p(ms * a.dims.inv_tau0);
    base[a.tile.gap_ms + r] = ms;
    base[a.tile.gap_feature + r] = (logarithm - a.dims.gap_mean) * a.dims.inv_gap_stddev;
  }

  __device__ float Activated(float v) const {
    return a.dims.conv_silu ? kernels::Silu(v) : kernels::Hardswish(v);
  }

  __device__ void Convolve(int32_t j0, int32_t rows) const {
    const int32_t channels = Channels(a.dims), k_width = a.dims.k;
    const float* tail = tensors() + a.dims.conv_offset;
    const float* taps = w() + a.at.layer.conv;
    for (int32_t c = Thread(); c < channels; c += kStateThreads) {
      const float bias = __ldg(w() + a.at.layer.conv_bias + c);
      for (int32_t r = 0; r < rows; ++r) {
        float sum = bias;
#pragma unroll 4
        for (int32_t k = 0; k < k_width; ++k) {
          const int32_t from = j0 + r - (k_width - 1) + k;
          const float value = from >= 0 ? projected(from)[a.dims.e + c]
                                        : __ldcg(tail + (k_width - 1 + from) * channels + c);
          sum = kernels::FusedMultiplyAdd(__ldg(taps + k * channels + c), value, sum);
        }
        mixed(r)[c] = Activated(sum);
      }
    }
  }

  // After all rows: the tail becomes the last K-1 raw values. A thread has a channel, oldest first.
  __device__ void MoveTail() const {
    const int32_t channels = Channels(a.dims), tail_rows = a.dims.k - 1;
    float* tail = tensors() + a.dims.conv_offset;
    for (int32_t c = Thread(); c < channels; c += kStateThreads) {
      for (int32_t k = 0; k < tail_rows; ++k) {
        const int32_t from = segment.rows - tail_rows + k;
        const float value = from >= 0 ? projected(from)[a.dims.e + c]
                                      : __ldcg(tail + (tail_rows + from) * channels + c);
        __stcg(tail + k * channels + c, value);
      }
    }
  }

  // ---- rule 8. scale and first have the K-1 values before the tile in front.

  __device__ void LoadTimeTails() const {
    const float* tails = tensors();
    for (int32_t i = Thread(); i < (a.dims.k - 1) * a.dims.h; i += kStateThreads) {
      base[a.tile.scale + i] = __ldcg(tails + a.dims.time_conv1_offset + i);
      base[a.tile.first + i] = __ldcg(tails + a.dims.time_conv2_offset + i);
    }
  }

  // After a tile; a thread has a head, oldest first.
  __device__ void MoveTimeTails(int32_t rows) const {
    const int32_t tail_floats = (a.dims.k - 1) * a.dims.h;
    for (int32_t h = Thread(); h < a.dims.h; h += kStateThreads) {
      for (int32_t i = h; i < tail_floats; i += a.dims.h) {
        base[a.tile.scale + i] = base[a.tile.scale + i + rows * a.dims.h];
        base[a.tile.first + i] = base[a.tile.first + i + rows * a.dims.h];
      }
    }
  }

  // By the threads that moved them.
  __device__ void StoreTimeTails() const {
    float* tails = tensors();
    for (int32_t h = Thread(); h < a.dims.h; h += kStateThreads) {
      for (int32_t i = h; i < (a.dims.k - 1) * a.dims.h; i += a.dims.h) {
        __stcg(tails + a.dims.time_conv1_offset + i, base[a.tile.scale + i]);
        __stcg(tails + a.dims.time_conv2_offset + i, base[a.tile.first + i]);
      }
    }
  }

  __device__ float ConvolveHead(int32_t r, int32_t h, const float* values, const float* taps,
                                const float* bias) const {
    float sum = __ldg(bias + h);
    for (int32_t k = 0; k < a.dims.k; ++k) {
      sum = kernels::FusedMultiplyAdd(__ldg(taps + k * a.dims.h + h),
                                      values[(r + k) * a.dims.h + h], sum);
    }
    return Activated(sum);
  }

  // Up to `first`, what the second convolution reads.
  __device__ void BeginModulation(int32_t rows) const {
    const LayerPlaces& places = a.at.layer;
    const float* feature = base + a.tile.gap_feature;
    float *hidden = base + a.tile.hidden, *scale = base + a.tile.scale,
          *first = base + a.tile.first;
    const int32_t before = (a.dims.k - 1) * a.dims.h;
    for (int32_t i = Thread(); i < rows * a.dims.m; i += kStateThreads) {
      const int32_t m = i % a.dims.m;
      hidden[i] = kernels::Silu(
          kernels::FusedMultiplyAdd(__ldg(w() + places.time_hidden + m), feature[i / a.dims.m],
                                    __ldg(w() + places.time_hidden_bias + m)));
    }
    __syncthreads();
    ForHeads(rows, [&](int32_t r, int32_t h, int32_t place) {
      float sum = __ldg(w() + places.time_scale_bias + h);
#pragma unroll 8
      for (int32_t m = 0; m < a.dims.m; ++m) {
        sum = kernels::FusedMultiplyAdd(__ldg(w() + places.time_scale + m * a.dims.h + h),
                                        hidden[r * a.dims.m + m], sum);
      }
      scale[before + place] = feature[r] * sum;
    });
    __syncthreads();
    ForHeads(rows, [&](int32_t r, int32_t h, int32_t place) {
      first[before + place] =
          ConvolveHead(r, h, scale, w() + places.time_conv1, w() + places.time_conv1_bias);
    });
    __syncthreads();
  }

  // ---- the second time convolution, and rule 9

  __device__ void FindDecays(int32_t j0, int32_t rows) const {
    const LayerPlaces& places = a.at.layer;
    ForHeads(rows, [&](int32_t r, int32_t h, int32_t place) {
      const int32_t j = j0 + r;
      float value = projected(j)[a.dims.e + Channels(a.dims) + h];
      if (a.dims.time_write) {
        const float gate = ConvolveHead(r, h, base + a.tile.first, w() + places.time_conv2,
                                        w() + places.time_conv2_bias);
        value = kernels::FusedMultiplyAdd(value, gate, value);
      }
      if (segment.writes != nullptr) {
        value =
            value * segment.writes[(static_cast<int64_t>(l) * a.dims.window + j) * a.dims.h + h];
      }
      const float delta = kernels::Softplus(value + __ldg(w() + places.dt_bias + h));
      const float lambda =
          a.dims.time_decay ? base[a.tile.gap_ms + r] * __ldg(w() + places.rate + h) : 0.0f;
      base[a.tile.delta + place] = delta;
      base[a.tile.carry + place] =
          kernels::Exp(kernels::FusedMultiplyAdd(__ldg(w() + places.a + h), delta, -lambda));
    });
  }

  // ---- rule 10

  // Values from `first` on of one channel's state, in registers while the tile's rows pass. With
  // kWidth, which is P, all kTogether are there, and B and C are read in vectors.
  template <int kTogether, int kWidth>
  __device__ void UpdateGroup(int32_t e, int32_t first, int32_t rows) const {
    constexpr bool kWhole = kWidth > 0;
    const int32_t p_width = kWhole ? kWidth : a.dims.p, h = e / p_width;
    const int32_t count = kWhole ? kTogether : a.dims.n - first;
    float* state = tensors() + a.dims.ssm_offset +
                   (static_cast<int64_t>(h) * a.dims.n + first) * p_width + (e - h * p_width);
    float s[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) s[i] = __ldcg(state + i * p_width);
    }
    const float skip = __ldg(w() + a.at.layer.skip + h);
    for (int32_t r = 0; r < rows; ++r) {
      const float* in = mixed(r);
      const float *b = in + a.dims.e + first, *c = b + a.dims.n;
      const float carry = base[a.tile.carry + r * a.dims.h + h];
      const float dx = base[a.tile.delta + r * a.dims.h + h] * in[e];
      float sum = first == 0 ? 0.0f : y(r)[e];
#pragma unroll
      for (int q = 0; q < kTogether; q += 4) {
        float4 b4 = {}, c4 = {};
        if constexpr (kWhole) {
          b4 = *reinterpret_cast<const float4*>(b + q);
          c4 = *reinterpret_cast<const float4*>(c + q);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (q + i >= count) break;
          const float b_n = kWhole ? Component(b4, i) : b[q + i];
          const float c_n = kWhole ? Component(c4, i) : c[q + i];
          s[q + i] = kernels::FusedMultiplyAdd(dx, b_n, carry * s[q + i]);
          sum = kernels::FusedMultiplyAdd(s[q + i], c_n, sum);
        }
      }
      if (first + kTogether >= a.dims.n) sum = kernels::FusedMultiplyAdd(skip, in[e], sum);
      y(r)[e] = sum;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (i < count) __stcg(state + i * p_width, s[i]);
    }
  }

  __device__ void UpdateStates(int32_t rows) const {
    const bool vectors = a.dims.p == 32 && a.dims.n % 4 == 0;
    for (int32_t e = Thread(); e < a.dims.e; e += kStateThreads) {
      int32_t first = 0;
      if (vectors) {
        for (; first + 32 <= a.dims.n; first += 32) UpdateGroup<32, 32>(e, first, rows);
      }
      for (; first < a.dims.n; first += 8) UpdateGroup<8, 0>(e, first, rows);
    }
  }

  // ---- rule 11, of the rows that are kept

  __device__ void GateRows(int32_t j0, int32_t rows) const {
    for (int32_t r = 0; r < rows; ++r) {
      if (!Keeps(j0 + r)) continue;
      const float* z = projected(j0 + r);
      for (int32_t e = Thread(); e < a.dims.e; e += kStateThreads) {
        y(r)[e] = y(r)[e] * kernels::Silu(z[e]);
      }
    }
  }

  __device__ void NormalizeRows(int32_t j0, int32_t rows) const {
    constexpr int kHalves = kStateThreads / 16;
    for (int32_t first = 0; first < rows; first += kHalves) {
      const int32_t r = first + Thread() / 16;
      const bool valid = r < rows && Keeps(j0 + r);
      const int32_t to = l + 1 < a.dims.layers ? segment.first_row + j0 + r : index;
      NormalizeRoot(valid, y(r), a.dims.e, w() + a.at.layer.norm, a.dims.norm_eps,
                    a.y + static_cast<int64_t>(valid ? to : 0) * a.strides.y);
    }
  }

  // ---- a segment

  __device__ void Run() const {
    if (a.dims.time_write) LoadTimeTails();
    for (int32_t j0 = 0; j0 < segment.rows; j0 += a.tile_rows) {
      const int32_t left = segment.rows - j0;
      const int32_t rows = left < a.tile_rows ? left : a.tile_rows;
      FindGaps(j0, rows);
      Convolve(j0, rows);
      __syncthreads();
      if (a.dims.time_write) BeginModulation(rows);
      FindDecays(j0, rows);
      __syncthreads();
      if (a.dims.time_write) MoveTimeTails(rows);
      UpdateStates(rows);
      GateRows(j0, rows);  // a thread has the same channels as before
      __syncthreads();
      NormalizeRows(j0, rows);
    }
    MoveTail();
    if (a.dims.time_write) StoreTimeTails();
  }
};

// A block per segment. Shared memory: the tile, unless it is in the workspace.
__global__ void __launch_bounds__(kStateThreads, 2)
    UpdateLayer(const __grid_constant__ ChunkArguments a, int32_t l) {
  const auto index = static_cast<int32_t>(blockIdx.x);
  if (index >= a.counts->segments) return;
  const ChunkSegment segment = a.segments[index];
  float* base = a.tiles == nullptr
                    ? SharedMemory<float>()
                    : a.tiles + static_cast<int64_t>(segment.first_row) * a.strides.tile;
  const StateUpdate update = {a, segment, index, l, base};
  if (WarpIndex() == 0) update.PrefetchState();
  update.Run();
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_LAYER_STATE_INL_H_
