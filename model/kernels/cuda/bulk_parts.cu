#include "model/kernels/cuda/bulk_parts.h"

#include "model/kernels/cuda/device.h"
#include "model/kernels/gap.h"
#include "model/kernels/math.h"

namespace tim4rec::cuda::bulk {
namespace {

using kernels::Dims;
using kernels::LayerWeights;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int32_t kThreads = 256;

__device__ int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }

// The index of the thread in a grid over `count` things, or -1.
__device__ int64_t ThingOf(int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + Thread();
  return i < count ? i : -1;
}

Grid OverThings(int64_t count) {
  Grid grid;
  grid.blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  grid.threads = kThreads;
  return grid;
}

// A warp's row in a grid over `rows`, or -1.
__device__ int32_t RowOf(int32_t rows) {
  const int32_t row = static_cast<int32_t>(blockIdx.x) * (kThreads / 32) + Thread() / 32;
  return row < rows ? row : -1;
}

Grid OverRows(int32_t rows) { return OverThings(int64_t{rows} * 32); }

__device__ float SumOfLanes(float x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

__device__ float Activated(bool silu, float x) {
  return silu ? kernels::Silu(x) : kernels::Hardswish(x);
}

// LayerNorm by a warp; v and result may be the same.
__device__ void NormalizeRow(const float* v, int32_t n, const float* w, const float* bias,
                             float eps, float* result) {
  const int32_t lane = Thread() % 32;
  float sum = 0, squares = 0;
  for (int32_t i = lane; i < n; i += 32) sum += v[i];
  const float mean = SumOfLanes(sum) / static_cast<float>(n);
  for (int32_t i = lane; i < n; i += 32) squares += (v[i] - mean) * (v[i] - mean);
  const float variance = SumOfLanes(squares) / static_cast<float>(n);
  const float r = kernels::Divide(1.0f, kernels::SquareRoot(variance + eps));
  for (int32_t i = lane; i < n; i += 32) result[i] = (v[i] - mean) * r * w[i] + bias[i];
}

__device__ float FeatureOf(const Dims& dims, float gap_ms) {
  return (kernels::Log1p(gap_ms * dims.inv_tau0) - dims.gap_mean) * dims.inv_gap_stddev;
}

// A block per history.
__global__ void PlaceEvents(const __grid_constant__ Dims dims,
                            const __grid_constant__ Histories a) {
  const int32_t begin = a.first[blockIdx.x], end = a.first[blockIdx.x + 1];
  for (int32_t i = begin + Thread(); i < end; i += kThreads) {
    a.place[i] = i - begin;
    kernels::StateHeader before = {0, 0};
    if (i > begin) before = {a.events[i - 1].timestamp_ms, 1};
    a.gap_ms[i] = kernels::GapMs(dims, before, a.events[i].timestamp_ms);
    a.feature[i] = FeatureOf(dims, a.gap_ms[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    EmbedEvents(const float* embedding, const float* norm, const float* bias, float eps, int32_t d,
                const kernels::Event* events, int32_t rows, float* x) {
  const int32_t row = RowOf(rows);
  if (row < 0) return;
  NormalizeRow(embedding + static_cast<int64_t>(events[row].item) * d, d, norm, bias, eps,
               x + static_cast<int64_t>(row) * d);
}

__global__ void __launch_bounds__(kThreads)
    NormalizeRows(const float* u, const float* w, const float* bias, float eps, int32_t d,
                  int32_t rows, float* x) {
  const int32_t row = RowOf(rows);
  if (row < 0) return;
  const int64_t at = static_cast<int64_t>(row) * d;
  NormalizeRow(u + at, d, w, bias, eps, x + at);
}

// Rule 4 for one value of many channels: rows of the input are `stride` apart.
struct Convolution {
  const float *w, *bias;  // [K][channels], [channels]
  const float* values;
  int64_t stride;
  int32_t channels, width;
  bool silu;
  float* result;  // [rows][channels]
};

__global__ void __launch_bounds__(kThreads)
    ConvolveRows(const __grid_constant__ Convolution a, const int32_t* place, int32_t rows) {
  const int64_t i = ThingOf(static_cast<int64_t>(rows) * a.channels);
  if (i < 0) return;
  const int64_t row = i / a.channels;
  const auto channel = static_cast<int32_t>(i % a.channels);
  float sum = a.bias[channel];
  for (int32_t k = 0; k < a.width; ++k) {
    const int32_t back = a.width - 1 - k;
    if (back > place[row]) continue;
    sum = kernels::FusedMultiplyAdd(a.w[k * a.channels + channel],
                                    a.values[(row - back) * a.stride + channel], sum);
  }
  a.result[i] = Activated(a.silu, sum);
}

// Rule 8's q.
__global__ void __launch_bounds__(kThreads)
    MakeGateInputs(const __grid_constant__ Dims dims, const __grid_constant__ LayerWeights w,
                   const float* feature, int32_t rows, float* q) {
  const int64_t i = ThingOf(static_cast<int64_t>(rows) * dims.h);
  if (i < 0) return;
  const float u = feature[i / dims.h];
  const auto h = static_cast<int32_t>(i % dims.h);
  float sum = w.time_scale_bias[h];
  for (int32_t m = 0; m < dims.m; ++m) {
    const float hidden =
        kernels::Silu(kernels::FusedMultiplyAdd(w.time_hidden[m], u, w.time_hidden_bias[m]));
    sum = kernels::FusedMultiplyAdd(w.time_scale[m * dims.h + h], hidden, sum);
  }
  q[i] = u * sum;
}

// Rule 9 but for the exponential.
__global__ void __launch_bounds__(kThreads)
    MakeSteps(const __grid_constant__ Dims dims, const __grid_constant__ LayerWeights w,
              const __grid_constant__ Mixed a, const float* gap_ms, int32_t rows) {
  const int64_t i = ThingOf(static_cast<int64_t>(rows) * dims.h);
  if (i < 0) return;
  const int64_t row = i / dims.h;
  const auto h = static_cast<int32_t>(i % dims.h);
  const int64_t before_dt = 2 * (int64_t{dims.e} + dims.n);
  float dt = a.projected[row * (before_dt + dims.h) + before_dt + h];
  if (dims.time_write) dt = kernels::FusedMultiplyAdd(dt, a.gate[i], dt);
  if (dims.window > 0) dt = dt * a.gate[i];
  const float delta = kernels::Softplus(dt + w.dt_bias[h]);
  const float lambda = dims.time_decay ? gap_ms[row] * w.rate[h] : 0.0f;
  a.delta[i] = delta;
  a.log_carry[i] = kernels::FusedMultiplyAdd(w.a[h], delta, -lambda);
}

__global__ void __launch_bounds__(kThreads)
    GateRows(const float* norm, float eps, int32_t e, const float* z, int64_t z_stride,
             int32_t rows, float* y) {
  const int32_t row = RowOf(rows);
  if (row < 0) return;
  const float* z_row = z + row * z_stride;
  float* y_row = y + static_cast<int64_t>(row) * e;
  float squares = 0;
  for (int32_t i = Thread() % 32; i < e; i += 32) {
    const float value = y_row[i] * kernels::Silu(z_row[i]);
    y_row[i] = value;
    squares += value * value;
  }
  const float mean = SumOfLanes(squares) / static_cast<float>(e);
  const float r = kernels::Divide(1.0f, kernels::SquareRoot(mean + eps));
  for (int32_t i = Thread() % 32; i < e; i += 32) y_row[i] = y_row[i] * r * norm[i];
}

__global__ void __launch_bounds__(kThreads)
    CopyLast(const int32_t* first, const float* from, int64_t stride, int32_t width, int32_t count,
             float* to) {
  const int64_t i = ThingOf(static_cast<int64_t>(count) * width);
  if (i < 0) return;
  to[i] = from[(first[i / width + 1] - 1) * stride + i % width];
}

// ---- windows

// A block per window.
__global__ void UnpackEachWindow(const DeviceQuery* windows, const int32_t* first, int32_t l,
                                 kernels::Event* events) {
  const int32_t begin = first[blockIdx.x], end = first[blockIdx.x + 1];
  const auto* times = reinterpret_cast<const int64_t*>(windows[blockIdx.x].state + 1);
  const auto* items = reinterpret_cast<const int32_t*>(times + l);
  for (int32_t i = Thread(); i < end - begin; i += kThreads) {
    events[begin + i].item = items[i];
    events[begin + i].timestamp_ms = times[i];
  }
}

struct Windows {
  Dims dims;
  const float *norm, *norm_bias;
  const LayerWeights* layers;
  const kernels::Event* events;
  const int32_t* first;
  int32_t rows;
  float* scratch;  // [count][4][H][L]
  float* gates;    // [layers][rows][H]
};

// result = x w + bias along the window, for every head; a thread per output.
template <typename Store>
__device__ void MultiplyWindow(const Dims& dims, const float* w, const float* bias, int32_t outputs,
                               const float* x, Store store) {
  for (int32_t i = Thread(); i < dims.h * outputs; i += kThreads) {
    const int32_t h = i / outputs, o = i % outputs;
    float sum = bias[o];
    for (int32_t k = 0; k < dims.window; ++k) {
      sum = kernels::FusedMultiplyAdd(w[static_cast<int64_t>(k) * outputs + o],
                                      x[h * dims.window + k], sum);
    }
    store(h, o, sum);
  }
  __syncthreads();
}

__device__ void ConvolveWindow(const Dims& dims, const float* w, const float* bias, const float* x,
                               float* result) {
  for (int32_t i = Thread(); i < dims.h * dims.window; i += kThreads) {
    const int32_t h = i / dims.window, at = i % dims.window;
    float sum = bias[h];
    for (int32_t k = 0; k < dims.k; ++k) {
      const int32_t from = at - (dims.k - 1) + k;
      if (from < 0) continue;
      sum = kernels::FusedMultiplyAdd(w[k * dims.h + h], x[h * dims.window + from], sum);
    }
    result[i] = Activated(dims.conv_silu, sum);
  }
  __syncthreads();
}

__device__ void NormalizeHeads(const Dims& dims, const float* v, const float* w, const float* bias,
                               float* result) {
  for (int32_t h = Thread() / 32; h < dims.h; h += kThreads / 32) {
    NormalizeRow(v + h * dims.window, dims.window, w, bias, dims.norm_eps,
                 result + h * dims.window);
  }
  __syncthreads();
}

// A block per window.
__global__ void __launch_bounds__(kThreads, 2) GateEachWindow(const __grid_constant__ Windows a) {
  const Dims& dims = a.dims;
  const int32_t l = dims.window, all = dims.h * l;
  const int32_t begin = a.first[blockIdx.x], length = a.first[blockIdx.x + 1] - begin;
  float* tau = a.scratch + static_cast<int64_t>(blockIdx.x) * 4 * all;
  float *hidden = tau + all, *row = hidden + all, *q = row + all;
  const auto seconds = [&](int32_t i) {
    if (i >= length) return 0.0f;
    return static_cast<float>(static_cast<double>(a.events[begin + i].timestamp_ms) / 1000.0);
  };
  for (int32_t i = Thread(); i < all; i += kThreads) {
    row[i] = i % l == 0 ? 0.0f : seconds(i % l) - seconds(i % l - 1);
  }
  __syncthreads();
  NormalizeHeads(dims, row, a.norm, a.norm_bias, tau);
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    const LayerWeights& w = a.layers[layer];
    MultiplyWindow(
        dims, w.window_scale1, w.window_scale1_bias, l, tau,
        [&](int32_t h, int32_t i, float sum) { hidden[h * l + i] = kernels::Silu(sum); });
    MultiplyWindow(dims, w.window_scale2, w.window_scale2_bias, l, hidden,
                   [&](int32_t h, int32_t i, float sum) { q[h * l + i] = tau[h * l + i] * sum; });
    ConvolveWindow(dims, w.time_conv1, w.time_conv1_bias, q, hidden);
    ConvolveWindow(dims, w.time_conv2, w.time_conv2_bias, hidden, row);
    for (int32_t i = Thread(); i < length * dims.h; i += kThreads) {
      a.gates[(static_cast<int64_t>(layer) * a.rows + begin) * dims.h + i] =
          row[i % dims.h * l + i / dims.h];
    }
    if (layer + 1 == dims.layers) return;
    const int32_t gates = dims.window_gate_per_event ? l : 1;
    MultiplyWindow(
        dims, w.window_gate, w.window_gate_bias, gates, tau,
        [&](int32_t h, int32_t i, float sum) { hidden[h * l + i] = kernels::Sigmoid(sum); });
    for (int32_t i = Thread(); i < all; i += kThreads) {
      const float gamma = hidden[i / l * l + (gates == 1 ? 0 : i % l)];
      row[i] = kernels::FusedMultiplyAdd(gamma, tau[i], (1.0f - gamma) * row[i]);
    }
    __syncthreads();
    NormalizeHeads(dims, row, w.window_norm, w.window_norm_bias, tau);
  }
}

// ---- queries

struct QueryWeights {
  const float *hidden, *hidden_bias, *gate, *gate_bias;
};

__global__ void __launch_bounds__(kThreads)
    GateQueries(const __grid_constant__ Dims dims, const __grid_constant__ QueryWeights w,
                const kernels::Event* events, const int32_t* first, const int64_t* as_of_ms,
                const float* x, int32_t count, float* queries) {
  const int64_t i = ThingOf(static_cast<int64_t>(count) * dims.d);
  if (i < 0) return;
  const int64_t s = i / dims.d;
  const auto d = static_cast<int32_t>(i % dims.d);
  const kernels::StateHeader last = {events[first[s + 1] - 1].timestamp_ms, 1};
  const float u = FeatureOf(dims, kernels::GapMs(dims, last, as_of_ms[s]));
  float scale = w.gate_bias[d], shift = w.gate_bias[dims.d + d];
  for (int32_t m = 0; m < dims.m; ++m) {
    const float hidden = kernels::Silu(kernels::FusedMultiplyAdd(w.hidden[m], u, w.hidden_bias[m]));
    const float* gates = w.gate + static_cast<int64_t>(m) * 2 * dims.d;
    scale = kernels::FusedMultiplyAdd(gates[d], hidden, scale);
    shift = kernels::FusedMultiplyAdd(gates[dims.d + d], hidden, shift);
  }
  queries[i] = kernels::FusedMultiplyAdd(x[i], 1.0f + scale, shift);
}

}  // namespace

Fault Place(const Dims& dims, const Histories& histories, Stream stream) {
  Grid grid;
  grid.blocks = static_cast<unsigned>(histories.count);
  grid.threads = kThreads;
  return Launch(PlaceEvents, grid, stream, dims, histories);
}

Fault UnpackWindows(const Dims& dims, const DeviceQuery* windows, const int32_t* first,
                    int32_t count, kernels::Event* events, Stream stream) {
  Grid grid;
  grid.blocks = static_cast<unsigned>(count);
  grid.threads = kThreads;
  return Launch(UnpackEachWindow, grid, stream, windows, first, dims.window, events);
}

Fault Embed(const Dims& dims, const kernels::Weights& weights, const float* embedding,
            const Histories& histories, float* x, Stream stream) {
  return Launch(EmbedEvents, OverRows(histories.rows), stream, embedding, weights.in_norm,
                weights.in_norm_bias, dims.norm_eps, dims.d, histories.events, histories.rows, x);
}

Fault Mix(const Dims& dims, const LayerWeights& w, const Histories& histories, const Mixed& mixed,
          Stream stream) {
  const int32_t rows = histories.rows;
  const auto convolve = [&](const float* taps, const float* bias, const float* values,
                            int64_t stride, int32_t channels, float* result) {
    const Convolution convolution = {taps,     bias,   values,         stride,
                                     channels, dims.k, dims.conv_silu, result};
    return Launch(ConvolveRows, OverThings(int64_t{rows} * channels), stream, convolution,
                  histories.place, rows);
  };
  Fault fault = convolve(w.conv, w.conv_bias, mixed.projected + dims.e, dims.projections(),
                         dims.conv_channels(), mixed.xbc);
  const Grid over_heads = OverThings(int64_t{rows} * dims.h);
  if (fault == nullptr && dims.time_write) {
    fault = Launch(MakeGateInputs, over_heads, stream, dims, w, histories.feature, rows, mixed.q);
    if (fault == nullptr) {
      fault = convolve(w.time_conv1, w.time_conv1_bias, mixed.q, dims.h, dims.h, mixed.r1);
    }
    if (fault == nullptr) {
      fault = convolve(w.time_conv2, w.time_conv2_bias, mixed.r1, dims.h, dims.h, mixed.gate);
    }
  }
  if (fault != nullptr) return fault;
  return Launch(MakeSteps, over_heads, stream, dims, w, mixed, histories.gap_ms, rows);
}

Fault GateAndNorm(const Dims& dims, const LayerWeights& w, const float* z, int64_t z_stride,
                  int32_t rows, float* y, Stream stream) {
  return Launch(GateRows, OverRows(rows), stream, w.norm, dims.norm_eps, dims.e, z, z_stride, rows,
                y);
}

Fault Normalize(const float* u, const float* w, const float* bias, float eps, int32_t d,
                int32_t rows, float* x, Stream stream) {
  return Launch(NormalizeRows, OverRows(rows), stream, u, w, bias, eps, d, rows, x);
}

Fault GatherLast(const Histories& histories, const float* from, int64_t stride, int32_t width,
                 float* to, Stream stream) {
  return Launch(CopyLast, OverThings(int64_t{histories.count} * width), stream, histories.first,
                from, stride, width, histories.count, to);
}

Fault GateWindows(const Dims& dims, const float* norm, const float* norm_bias,
                  const LayerWeights* layers, const Histories& histories, float* scratch,
                  float* gates, Stream stream) {
  const Windows windows = {
      dims,           norm,    norm_bias, layers, histories.events, histories.first,
      histories.rows, scratch, gates};
  Grid grid;
  grid.blocks = static_cast<unsigned>(histories.count);
  grid.threads = kThreads;
  return Launch(GateEachWindow, grid, stream, windows);
}

Fault MakeQueries(const Dims& dims, const kernels::Weights& weights, const Histories& histories,
                  const int64_t* as_of_ms, const float* x, float* queries, Stream stream) {
  const QueryWeights w = {weights.query_hidden, weights.query_hidden_bias, weights.query_gate,
                          weights.query_gate_bias};
  return Launch(GateQueries, OverThings(int64_t{histories.count} * dims.d), stream, dims, w,
                histories.events, histories.first, as_of_ms, x, histories.count, queries);
}

}  // namespace tim4rec::cuda::bulk
