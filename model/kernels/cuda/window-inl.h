// Windows of published models: pushing events, and rules 14 to 16 of kernels.h.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_WINDOW_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_WINDOW_INL_H_

#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/linear-inl.h"

namespace tim4rec::cuda {

// Everything of a call that encodes windows, in its workspace.
struct EncodePlaces {  // bytes
  size_t runs, events, writes, records, scratch, fold;
  size_t bytes;
};

struct WindowArguments {
  kernels::Dims dims;
  ModelPlaces at;
  const float* weights;
  const DeviceQuery* queries;
  int32_t count;
  // [count] each
  DeviceRun* runs;
  kernels::Event* events;  // of all runs, without gaps
  float* writes;           // [count][layers][L][H]
  float* records;          // [count][record_floats]
  int64_t record_floats;
  float* scratch;  // [count][4][H][RowStride(L)]
};

__device__ inline int32_t WindowLength(const kernels::Dims& dims,
                                       const kernels::StateHeader* state) {
  const int64_t folded = state->folded_events;
  return static_cast<int32_t>(folded < dims.window ? folded : dims.window);
}

__device__ inline const int64_t* WindowTimestamps(const kernels::StateHeader* state) {
  return reinterpret_cast<const int64_t*>(state + 1);
}

__device__ inline const int32_t* WindowItems(const kernels::Dims& dims,
                                             const kernels::StateHeader* state) {
  return reinterpret_cast<const int32_t*>(WindowTimestamps(state) + dims.window);
}

// A block per run: moves the window's events down and the run's behind them, from the oldest place
// on, so that a place is read before it is written.
__global__ void PushWindows(const kernels::Dims dims, const DeviceRun* runs,
                            const kernels::Event* events) {
  const DeviceRun run = runs[blockIdx.x];
  if (run.count == 0) return;
  const int32_t length = WindowLength(dims, run.state);
  auto* timestamps = const_cast<int64_t*>(WindowTimestamps(run.state));
  auto* items = const_cast<int32_t*>(WindowItems(dims, run.state));
  const int64_t all = int64_t{length} + run.count;
  const int32_t kept = static_cast<int32_t>(all < dims.window ? all : dims.window);
  const int64_t dropped = all - kept;
  for (int32_t first = 0; first < kept; first += static_cast<int32_t>(blockDim.x)) {
    const int32_t i = first + static_cast<int32_t>(threadIdx.x);
    const int64_t from = i + dropped;
    kernels::Event event = {0, 0};
    if (i < kept) {
      event = from < length ? kernels::Event{items[from], timestamps[from]}
                            : events[run.first_event + (from - length)];
    }
    __syncthreads();
    if (i < kept) {
      timestamps[i] = event.timestamp_ms;
      items[i] = event.item;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    run.state->last_timestamp_ms = events[run.first_event + run.count - 1].timestamp_ms;
    run.state->folded_events += run.count;
  }
}

// One block: the runs that fold the windows into the scratch records.
__global__ void PlanWindows(const WindowArguments a) {
  auto* sums = SharedMemory<int32_t>();  // [threads + 1]
  const int32_t threads = static_cast<int32_t>(blockDim.x);
  const int32_t t = static_cast<int32_t>(threadIdx.x);
  int32_t before = 0;
  for (int32_t first = 0; first < a.count; first += threads) {
    const int32_t i = first + t;
    const kernels::StateHeader* state = i < a.count ? a.queries[i].state : nullptr;
    const int32_t length = state == nullptr ? 0 : WindowLength(a.dims, state);
    sums[t] = length;
    __syncthreads();
    for (int32_t step = 1; step < threads; step *= 2) {
      const int32_t add = t >= step ? sums[t - step] : 0;
      __syncthreads();
      sums[t] += add;
      __syncthreads();
    }
    if (i < a.count) {
      auto* record = reinterpret_cast<kernels::StateHeader*>(a.records + i * a.record_floats);
      a.runs[i] = {record, before + sums[t] - length, length};
    }
    before += sums[threads - 1];
    __syncthreads();
  }
}

// Rule 4 along the window, for all heads: values and result [H][stride].
__device__ inline void ConvolveWindows(const kernels::Dims& dims, const float* w, const float* bias,
                                       const float* values, int32_t stride, float* result) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < dims.h * dims.window;
       i += static_cast<int32_t>(blockDim.x)) {
    const int32_t h = i / dims.window, at = i % dims.window;
    float sum = bias[h];
    for (int32_t k = 0; k < dims.k; ++k) {
      const int32_t from = at - (dims.k - 1) + k;
      const float value = from >= 0 ? values[h * stride + from] : 0.0f;
      sum = kernels::FusedMultiplyAdd(w[k * dims.h + h], value, sum);
    }
    result[h * stride + at] = dims.conv_silu ? kernels::Silu(sum) : kernels::Hardswish(sum);
  }
}

// Rows [H][L] by half warps; changes v.
__device__ inline void NormalizeWindows(const kernels::Dims& dims, float* v, int32_t stride,
                                        const float* w, const float* bias, float* result) {
  const int32_t halves = static_cast<int32_t>(blockDim.x / 16);
  for (int32_t first = 0; first < dims.h; first += halves) {
    const int32_t h = first + static_cast<int32_t>(threadIdx.x / 16);
    NormalizeLayer(h < dims.h, v + h * stride, dims.window, w, bias, dims.norm_eps,
                   result + h * stride);
  }
}

// A block per query: its events, its empty record and what modulates its writes.
__global__ void WriteWindows(const WindowArguments a) {
  const kernels::Dims& dims = a.dims;
  const kernels::StateHeader* state = a.queries[blockIdx.x].state;
  if (state == nullptr) return;
  const int32_t threads = static_cast<int32_t>(blockDim.x), t = static_cast<int32_t>(threadIdx.x);
  const int32_t l = dims.window, stride = RowStride(l);
  float* tau = a.scratch + blockIdx.x * (int64_t{4} * dims.h * stride);
  float *hidden = tau + dims.h * stride, *row = hidden + dims.h * stride;
  float* events = row + dims.h * stride;
  float* writes = a.writes + blockIdx.x * (int64_t{dims.layers} * l * dims.h);
  float* record = a.records + blockIdx.x * a.record_floats;
  for (int64_t i = t; i < a.record_floats; i += threads) record[i] = 0.0f;
  const int32_t length = WindowLength(dims, state);
  const DeviceRun run = a.runs[blockIdx.x];
  const auto seconds = [&](int32_t i) {
    if (i >= length) return 0.0f;
    return static_cast<float>(static_cast<double>(WindowTimestamps(state)[i]) / 1000.0);
  };
  for (int32_t i = t; i < l; i += threads) {
    if (i < length) {
      a.events[run.first_event + i] = {WindowItems(dims, state)[i], WindowTimestamps(state)[i]};
    }
    const float gap = i == 0 ? 0.0f : seconds(i) - seconds(i - 1);
    for (int32_t h = 0; h < dims.h; ++h) row[h * stride + i] = gap;
  }
  __syncthreads();
  NormalizeWindows(dims, row, stride, a.weights + a.at.window_norm,
                   a.weights + a.at.window_norm_bias, tau);
  __syncthreads();
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    const float* w = a.weights + a.at.layers + layer * a.at.layer_floats;
    const LayerPlaces& at = a.at.layer;
    const auto multiply = [&](int64_t weights, int64_t bias, int32_t outputs, const float* x,
                              auto store) {
      Multiply<4, 1, 2>({w + weights, w + bias, l, outputs}, x, stride, dims.h, Warps(), store);
      __syncthreads();
    };
    multiply(at.window_scale1, at.window_scale1_bias, l, tau,
             [&](int32_t h, int32_t i, float sum) { hidden[h * stride + i] = kernels::Silu(sum); });
    multiply(at.window_scale2, at.window_scale2_bias, l, hidden,
             [&](int32_t h, int32_t i, float sum) {
               events[h * stride + i] = tau[h * stride + i] * sum;
             });
    ConvolveWindows(dims, w + at.time_conv1, w + at.time_conv1_bias, events, stride, hidden);
    __syncthreads();
    ConvolveWindows(dims, w + at.time_conv2, w + at.time_conv2_bias, hidden, stride, row);
    __syncthreads();
    for (int32_t i = t; i < l * dims.h; i += threads) {
      writes[int64_t{layer} * l * dims.h + i] = row[i % dims.h * stride + i / dims.h];
    }
    if (layer + 1 == dims.layers) return;
    const int32_t gates = dims.window_gate_per_event ? l : 1;
    multiply(at.window_gate, at.window_gate_bias, gates, tau, [&](int32_t h, int32_t i, float sum) {
      hidden[h * stride + i] = kernels::Sigmoid(sum);
    });
    for (int32_t i = t; i < l * dims.h; i += threads) {
      const int32_t place = i % dims.h * stride + i / dims.h;
      const float gamma = hidden[i % dims.h * stride + (gates == 1 ? 0 : i / dims.h)];
      const float rest = (1.0f - gamma) * row[place];
      row[place] = kernels::FusedMultiplyAdd(gamma, tau[place], rest);
    }
    __syncthreads();
    NormalizeWindows(dims, row, stride, w + at.window_norm, w + at.window_norm_bias, tau);
    __syncthreads();
  }
}

// A block per query: the output of its scratch record.
__global__ void CopyOutputs(const WindowArguments a, float* out) {
  if (a.queries[blockIdx.x].state == nullptr) return;
  const float* output = a.records + blockIdx.x * a.record_floats +
                        sizeof(kernels::StateHeader) / sizeof(float) + a.dims.output_offset;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < a.dims.d;
       i += static_cast<int32_t>(blockDim.x)) {
    out[blockIdx.x * int64_t{a.dims.d} + i] = output[i];
  }
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_WINDOW_INL_H_
