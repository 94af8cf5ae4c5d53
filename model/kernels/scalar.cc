// The truth: the operations of kernels.h in their order, in plain loops. The loops that run across
// outputs are written so that the compiler may use vectors for them; that changes no bit.
#include <cstdint>
#include <cstring>

#include "model/kernels/best_heap-inl.h"
#include "model/kernels/gap.h"
#include "model/kernels/kernels.h"
#include "model/kernels/left_out.h"
#include "model/kernels/math.h"

namespace tim4rec::kernels {
namespace {

constexpr float kFfnNormEps = 1e-12f;

// ---- rule 1

// y[o] = fma(w[k][o], x[k], y[o]) for k ascending. Eight k per pass keep y in registers meanwhile.
void AddProducts(const float* __restrict w, const float* __restrict x, int64_t inputs,
                 int64_t outputs, float* __restrict y) {
  int64_t k = 0;
  for (; k + 8 <= inputs; k += 8) {
    const float* __restrict row = w + k * outputs;
    const float x0 = x[k], x1 = x[k + 1], x2 = x[k + 2], x3 = x[k + 3];
    const float x4 = x[k + 4], x5 = x[k + 5], x6 = x[k + 6], x7 = x[k + 7];
    for (int64_t o = 0; o < outputs; ++o) {
      float sum = y[o];
      sum = FusedMultiplyAdd(row[o], x0, sum);
      sum = FusedMultiplyAdd(row[o + outputs], x1, sum);
      sum = FusedMultiplyAdd(row[o + 2 * outputs], x2, sum);
      sum = FusedMultiplyAdd(row[o + 3 * outputs], x3, sum);
      sum = FusedMultiplyAdd(row[o + 4 * outputs], x4, sum);
      sum = FusedMultiplyAdd(row[o + 5 * outputs], x5, sum);
      sum = FusedMultiplyAdd(row[o + 6 * outputs], x6, sum);
      sum = FusedMultiplyAdd(row[o + 7 * outputs], x7, sum);
      y[o] = sum;
    }
  }
  for (; k < inputs; ++k) {
    const float* __restrict row = w + k * outputs;
    for (int64_t o = 0; o < outputs; ++o) y[o] = FusedMultiplyAdd(row[o], x[k], y[o]);
  }
}

void Linear(const float* w, const float* bias, const float* x, int64_t inputs, int64_t outputs,
            float* y) {
  std::memcpy(y, bias, sizeof(float) * static_cast<size_t>(outputs));
  AddProducts(w, x, inputs, outputs, y);
}

// ---- rules 2 and 3

float FoldPartials(float (&partial)[16]) {
  for (int s = 8; s > 0; s /= 2) {
    for (int j = 0; j < s; ++j) partial[j] += partial[j + s];
  }
  return partial[0];
}

float Sum16(const float* v, int64_t n) {
  float partial[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) partial[j] += v[i + j];
  }
  for (int j = 0; i < n; ++i, ++j) partial[j] += v[i];
  return FoldPartials(partial);
}

float SumSquares16(const float* v, int64_t n) {
  float partial[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) partial[j] = FusedMultiplyAdd(v[i + j], v[i + j], partial[j]);
  }
  for (int j = 0; i < n; ++i, ++j) partial[j] = FusedMultiplyAdd(v[i], v[i], partial[j]);
  return FoldPartials(partial);
}

void LayerNorm(float* v, int64_t n, const float* w, const float* bias, float eps, float* result) {
  const float mean = Divide(Sum16(v, n), static_cast<float>(n));
  for (int64_t i = 0; i < n; ++i) v[i] = v[i] - mean;
  const float variance = Divide(SumSquares16(v, n), static_cast<float>(n));
  const float r = Divide(1.0f, SquareRoot(variance + eps));
  for (int64_t i = 0; i < n; ++i) result[i] = FusedMultiplyAdd(v[i] * r, w[i], bias[i]);
}

void RmsNorm(float* v, int64_t n, const float* w, float eps) {
  const float mean_square = Divide(SumSquares16(v, n), static_cast<float>(n));
  const float r = Divide(1.0f, SquareRoot(mean_square + eps));
  for (int64_t i = 0; i < n; ++i) v[i] = (v[i] * r) * w[i];
}

// ---- rule 4

void Activate(bool silu, float* v, int64_t n) {
  if (silu) {
    for (int64_t i = 0; i < n; ++i) v[i] = Silu(v[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) v[i] = Hardswish(v[i]);
  }
}

// Convolves `v` [channels] with the tail before it, in place, and moves the raw values into the
// tail [K-1][channels].
void ConvolveAndActivate(const float* w, const float* bias, bool silu, int64_t width,
                         int64_t channels, float* __restrict tail, float* __restrict v,
                         float* __restrict raw) {
  const size_t row_bytes = sizeof(float) * static_cast<size_t>(channels);
  std::memcpy(raw, v, row_bytes);
  std::memcpy(v, bias, row_bytes);
  for (int64_t k = 0; k < width; ++k) {
    const float* __restrict tap = w + k * channels;
    const float* __restrict value = k + 1 < width ? tail + k * channels : raw;
    for (int64_t c = 0; c < channels; ++c) v[c] = FusedMultiplyAdd(tap[c], value[c], v[c]);
  }
  std::memmove(tail, tail + channels, row_bytes * static_cast<size_t>(width - 2));
  std::memcpy(tail + (width - 2) * channels, raw, row_bytes);
  Activate(silu, v, channels);
}

// ---- time: rules 5, 8, the decay of 9, and the query's gate

struct Gap {
  float ms;
  float feature;  // u
};

Gap GapBetween(const Dims& dims, const StateHeader& state, int64_t timestamp_ms) {
  Gap result;
  result.ms = GapMs(dims, state, timestamp_ms);
  result.feature = (Log1p(result.ms * dims.inv_tau0) - dims.gap_mean) * dims.inv_gap_stddev;
  return result;
}

// product sum over hid_m = Silu(fma(w1_m, u, b1_m)), hid in scratch [M].
void PointwiseTime(const Dims& dims, const float* w1, const float* b1, const float* w2,
                   const float* b2, float feature, int64_t outputs, float* hidden, float* result) {
  for (int32_t m = 0; m < dims.m; ++m) hidden[m] = FusedMultiplyAdd(w1[m], feature, b1[m]);
  Activate(/*silu=*/true, hidden, dims.m);
  Linear(w2, b2, hidden, dims.m, outputs, result);
}

// Modulates dt [H] by the gap; `work` holds M + 2 H values.
void ModulateWrite(const Dims& dims, const LayerWeights& w, const Gap& gap, float* state,
                   float* work, float* dt) {
  float* gate = work;
  float* raw = work + dims.h;
  float* hidden = work + 2 * dims.h;
  PointwiseTime(dims, w.time_hidden, w.time_hidden_bias, w.time_scale, w.time_scale_bias,
                gap.feature, dims.h, hidden, gate);
  for (int32_t h = 0; h < dims.h; ++h) gate[h] = gap.feature * gate[h];
  ConvolveAndActivate(w.time_conv1, w.time_conv1_bias, dims.conv_silu, dims.k, dims.h,
                      state + dims.time_conv1_offset, gate, raw);
  ConvolveAndActivate(w.time_conv2, w.time_conv2_bias, dims.conv_silu, dims.k, dims.h,
                      state + dims.time_conv2_offset, gate, raw);
  for (int32_t h = 0; h < dims.h; ++h) dt[h] = FusedMultiplyAdd(dt[h], gate[h], dt[h]);
}

float CarryExponent(const Dims& dims, const LayerWeights& w, const Gap& gap, int32_t h,
                    float delta) {
  const float lambda = dims.time_decay ? gap.ms * w.rate[h] : 0.0f;
  return FusedMultiplyAdd(w.a[h], delta, -lambda);
}

// ---- rule 10, one head

void UpdateHead(int64_t n_states, int64_t p_width, float carry, float delta, float skip,
                const float* __restrict b, const float* __restrict c, const float* __restrict x,
                float* __restrict s, float* __restrict dx, float* __restrict y) {
  for (int64_t p = 0; p < p_width; ++p) {
    dx[p] = delta * x[p];
    y[p] = 0.0f;
  }
  for (int64_t n = 0; n < n_states; ++n) {
    float* __restrict row = s + n * p_width;
    const float b_n = b[n];
    const float c_n = c[n];
    for (int64_t p = 0; p < p_width; ++p) {
      row[p] = FusedMultiplyAdd(dx[p], b_n, carry * row[p]);
      y[p] = FusedMultiplyAdd(row[p], c_n, y[p]);
    }
  }
  for (int64_t p = 0; p < p_width; ++p) y[p] = FusedMultiplyAdd(skip, x[p], y[p]);
}

// ---- one event

struct Scratch {
  float *x, *u;         // [D]
  float* projected;     // [2E+2N+H]
  float* y;             // [E]
  float* feed_forward;  // [F]
  float* raw;           // [C]
  float* dx;            // [P]
  float* time;          // [M + 2H]
  float* gate;          // [2D]
};

int64_t Carve(const Dims& dims, float* base, Scratch* scratch) {
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = base == nullptr ? nullptr : base + used;
    used += (floats + 15) / 16 * 16;
    return at;
  };
  scratch->x = take(dims.d);
  scratch->u = take(dims.d);
  scratch->projected = take(dims.projections());
  scratch->y = take(dims.e);
  scratch->feed_forward = take(dims.f);
  scratch->raw = take(dims.conv_channels());
  scratch->dx = take(dims.p);
  scratch->time = take(dims.m + 2 * static_cast<int64_t>(dims.h));
  scratch->gate = take(2 * static_cast<int64_t>(dims.d));
  return used;
}

// Rules 7 to 10: updates the layer's state and leaves the SSD's output in scratch.y. `write` [H],
// if given, is the window's r.
void MixSequence(const Dims& dims, const LayerWeights& w, const Gap& gap, const float* write,
                 float* state, const Scratch& scratch) {
  Linear(w.in_proj, w.in_proj_bias, scratch.x, dims.d, dims.projections(), scratch.projected);
  float* xbc = scratch.projected + dims.e;
  float* dt = xbc + dims.conv_channels();
  ConvolveAndActivate(w.conv, w.conv_bias, dims.conv_silu, dims.k, dims.conv_channels(),
                      state + dims.conv_offset, xbc, scratch.raw);
  if (dims.time_write) ModulateWrite(dims, w, gap, state, scratch.time, dt);
  if (write != nullptr) {
    for (int32_t h = 0; h < dims.h; ++h) dt[h] = dt[h] * write[h];
  }
  const float* b = xbc + dims.e;
  const float* c = b + dims.n;
  for (int32_t h = 0; h < dims.h; ++h) {
    const float delta = Softplus(dt[h] + w.dt_bias[h]);
    const float carry = Exp(CarryExponent(dims, w, gap, h, delta));
    const int64_t head = static_cast<int64_t>(h) * dims.p;
    UpdateHead(dims.n, dims.p, carry, delta, w.skip[h], b, c, xbc + head,
               state + dims.ssm_offset + head * dims.n, scratch.dx, scratch.y + head);
  }
}

// Rules 11 and 12: from scratch.x, scratch.y and z to the layer's output, in scratch.x.
void FinishLayer(const Dims& dims, const LayerWeights& w, const Scratch& scratch) {
  float* z = scratch.projected;
  Activate(/*silu=*/true, z, dims.e);
  for (int32_t i = 0; i < dims.e; ++i) scratch.y[i] = scratch.y[i] * z[i];
  RmsNorm(scratch.y, dims.e, w.norm, dims.norm_eps);
  Linear(w.out_proj, w.out_proj_bias, scratch.y, dims.e, dims.d, scratch.u);
  if (dims.layers > 1) {
    for (int32_t i = 0; i < dims.d; ++i) scratch.u[i] = scratch.u[i] + scratch.x[i];
  }
  LayerNorm(scratch.u, dims.d, w.layer_norm, w.layer_norm_bias, dims.norm_eps, scratch.x);
  if (!dims.ffn) return;
  Linear(w.fc1, w.fc1_bias, scratch.x, dims.d, dims.f, scratch.feed_forward);
  Activate(/*silu=*/false, scratch.feed_forward, dims.f);
  Linear(w.fc2, w.fc2_bias, scratch.feed_forward, dims.f, dims.d, scratch.u);
  for (int32_t i = 0; i < dims.d; ++i) scratch.u[i] = scratch.u[i] + scratch.x[i];
  LayerNorm(scratch.u, dims.d, w.ffn_norm, w.ffn_norm_bias, kFfnNormEps, scratch.x);
}

// Only the output after a run's last event is ever read: without `want_output` what leads from the
// last layer's state to it is left out. `write`, if given, holds the window's r for this event at
// [layer][0][h], L rows to a layer.
void Step(const Dims& dims, const Weights& weights, const Event& event, bool want_output,
          const float* write, StateHeader* state, const Scratch& scratch) {
  float* tensors = reinterpret_cast<float*>(state + 1);
  const Gap gap = GapBetween(dims, *state, event.timestamp_ms);
  std::memcpy(scratch.u, weights.embedding + static_cast<int64_t>(event.item) * dims.d,
              sizeof(float) * static_cast<size_t>(dims.d));
  LayerNorm(scratch.u, dims.d, weights.in_norm, weights.in_norm_bias, dims.norm_eps, scratch.x);
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    const LayerWeights& w = weights.layers[layer];
    const float* layer_write =
        write == nullptr ? nullptr : write + static_cast<int64_t>(layer) * dims.window * dims.h;
    MixSequence(dims, w, gap, layer_write, tensors + layer * dims.layer_floats, scratch);
    if (layer + 1 < dims.layers || want_output) FinishLayer(dims, w, scratch);
  }
  if (want_output) {
    std::memcpy(tensors + dims.output_offset, scratch.x,
                sizeof(float) * static_cast<size_t>(dims.d));
  }
  state->last_timestamp_ms = event.timestamp_ms;
  state->folded_events += 1;
}

// ---- windows: rules 14 to 16

int64_t WindowLength(const Dims& dims, const StateHeader* state) {
  return state->folded_events < dims.window ? state->folded_events : dims.window;
}

const int64_t* WindowTimestamps(const StateHeader* state) {
  return reinterpret_cast<const int64_t*>(state + 1);
}

const int32_t* WindowItems(const Dims& dims, const StateHeader* state) {
  return reinterpret_cast<const int32_t*>(WindowTimestamps(state) + dims.window);
}

struct WindowScratch {
  float* record;  // a recurrent state, its header included
  float* write;   // [layers][L][H]
  float* tau;     // [H][L]
  float* raw;     // [K - 1 + L]: what a convolution reads, zeros before the first event
  float* row;     // [L]
  float* hidden;  // [L]
  float* step;
};

int64_t RecordFloats(const Dims& dims) {
  return static_cast<int64_t>(sizeof(StateHeader) / sizeof(float)) + dims.output_offset + dims.d;
}

int64_t CarveWindow(const Dims& dims, float* base, WindowScratch* scratch) {
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* at = base == nullptr ? nullptr : base + used;
    used += (floats + 15) / 16 * 16;
    return at;
  };
  const int64_t window = dims.window;
  scratch->record = take(RecordFloats(dims));
  scratch->write = take(dims.layers * window * dims.h);
  scratch->tau = take(dims.h * window);
  scratch->raw = take(dims.k - 1 + window);
  scratch->row = take(window);
  scratch->hidden = take(window);
  scratch->step = take(ScratchFloats(dims));
  return used;
}

// Rule 14, into tau of every head.
void InitialTime(const Dims& dims, const Weights& weights, const StateHeader* state,
                 const WindowScratch& scratch) {
  const int64_t length = WindowLength(dims, state);
  float before = 0.0f;
  for (int64_t i = 0; i < dims.window; ++i) {
    const float seconds =
        i < length ? static_cast<float>(static_cast<double>(WindowTimestamps(state)[i]) / 1000.0)
                   : 0.0f;
    scratch.row[i] = i == 0 ? 0.0f : seconds - before;
    before = seconds;
  }
  LayerNorm(scratch.row, dims.window, weights.window_norm, weights.window_norm_bias, dims.norm_eps,
            scratch.tau);
  for (int32_t h = 1; h < dims.h; ++h) {
    std::memcpy(scratch.tau + static_cast<int64_t>(h) * dims.window, scratch.tau,
                sizeof(float) * static_cast<size_t>(dims.window));
  }
}

// Rule 4 along the window for one head; raw [K-1+L] holds the input, `w` is [K][H] at the head.
void ConvolveWindow(const Dims& dims, const float* w, float bias, const float* __restrict raw,
                    float* __restrict v) {
  for (int64_t i = 0; i < dims.window; ++i) v[i] = bias;
  for (int32_t k = 0; k < dims.k; ++k) {
    const float tap = w[static_cast<int64_t>(k) * dims.h];
    for (int64_t i = 0; i < dims.window; ++i) v[i] = FusedMultiplyAdd(tap, raw[i + k], v[i]);
  }
  Activate(dims.conv_silu, v, dims.window);
}

// Rules 15 and 16 for one head of one layer: r into write [L][H], the next tau in place.
void ModulateWindow(const Dims& dims, const LayerWeights& w, int32_t head, bool want_next,
                    const WindowScratch& scratch, float* write) {
  const int64_t window = dims.window;
  float* tau = scratch.tau + head * window;
  float* events = scratch.raw + dims.k - 1;
  Linear(w.window_scale1, w.window_scale1_bias, tau, window, window, scratch.hidden);
  Activate(/*silu=*/true, scratch.hidden, window);
  Linear(w.window_scale2, w.window_scale2_bias, scratch.hidden, window, window, scratch.row);
  for (int64_t i = 0; i < window; ++i) events[i] = tau[i] * scratch.row[i];
  ConvolveWindow(dims, w.time_conv1 + head, w.time_conv1_bias[head], scratch.raw, scratch.row);
  std::memcpy(events, scratch.row, sizeof(float) * static_cast<size_t>(window));
  ConvolveWindow(dims, w.time_conv2 + head, w.time_conv2_bias[head], scratch.raw, scratch.row);
  for (int64_t i = 0; i < window; ++i) write[i * dims.h + head] = scratch.row[i];
  if (!want_next) return;

  const int64_t gates = dims.window_gate_per_event ? window : 1;
  Linear(w.window_gate, w.window_gate_bias, tau, window, gates, scratch.hidden);
  for (int64_t i = 0; i < gates; ++i) scratch.hidden[i] = Sigmoid(scratch.hidden[i]);
  for (int64_t i = 0; i < window; ++i) {
    const float gamma = scratch.hidden[gates == 1 ? 0 : i];
    const float rest = (1.0f - gamma) * scratch.row[i];
    scratch.row[i] = FusedMultiplyAdd(gamma, tau[i], rest);
  }
  LayerNorm(scratch.row, window, w.window_norm, w.window_norm_bias, dims.norm_eps, tau);
}

// ---- ranking

// Scores of the blocks first … first + blocks - 1. Eight coordinates per pass over a few blocks:
// their sums stay in registers meanwhile, and the blocks' chains of fma overlap.
void ScoreBlocks(const float* packed, int32_t d, const float* query, int64_t first, int64_t blocks,
                 float* __restrict scores) {
  constexpr int64_t kTogether = 8;
  std::memset(scores, 0, sizeof(float) * static_cast<size_t>(blocks * kItemBlock));
  for (int64_t group = 0; group < blocks; group += kTogether) {
    const int64_t group_end = group + kTogether < blocks ? group + kTogether : blocks;
    for (int32_t i = 0; i < d; i += 8) {
      const int64_t coordinates = d - i < 8 ? d - i : 8;
      for (int64_t b = group; b < group_end; ++b) {
        AddProducts(packed + ((first + b) * d + i) * kItemBlock, query + i, coordinates, kItemBlock,
                    scores + b * kItemBlock);
      }
    }
  }
}

float ScoreOne(const float* packed, int32_t d, const float* query, int32_t item) {
  const float* value =
      packed + static_cast<int64_t>(item / kItemBlock) * d * kItemBlock + item % kItemBlock;
  float sum = 0.0f;
  for (int32_t i = 0; i < d; ++i) sum = FusedMultiplyAdd(query[i], value[i * kItemBlock], sum);
  return sum;
}

void OfferCandidates(const float* packed, int32_t d, const TopKQuery& query, ExcludedWalk excluded,
                     BestHeap* heap) {
  for (int64_t i = 0; i < query.candidate_count; ++i) {
    const int32_t item = query.candidates[i];
    if (excluded.Contains(item) || !IsEligible(query, item)) continue;
    heap->Offer({Ranked(query, ScoreOne(packed, d, query.query, item), item), item});
  }
}

void OfferAll(const float* packed, int32_t items, int32_t d, const TopKQuery& query,
              ExcludedWalk excluded, BestHeap* heap) {
  constexpr int64_t kPanel = 32;  // blocks scored before their scores are looked at
  float scores[kPanel * kItemBlock];
  const int64_t blocks = (static_cast<int64_t>(items) + kItemBlock - 1) / kItemBlock;
  for (int64_t first = 0; first < blocks; first += kPanel) {
    const int64_t count = blocks - first < kPanel ? blocks - first : kPanel;
    ScoreBlocks(packed, d, query.query, first, count, scores);
    const int64_t base = first * kItemBlock;
    const int64_t end = items - base < count * kItemBlock ? items - base : count * kItemBlock;
    for (int64_t j = base == 0 ? 1 : 0; j < end; ++j) {
      const auto item = static_cast<int32_t>(base + j);
      const Scored scored = {Ranked(query, scores[j], item), item};
      // Items come in ascending order, so one that ties with the worst of a full heap loses.
      if (heap->size == heap->capacity && !(scored.score > heap->entries[0].score)) continue;
      if (excluded.Contains(scored.item) || !IsEligible(query, scored.item)) continue;
      heap->Offer(scored);
    }
  }
}

}  // namespace

int64_t ScratchFloats(const Dims& dims) {
  Scratch scratch;
  return Carve(dims, nullptr, &scratch);
}

void Scan(const Dims& dims, const Weights& weights, const Event* events, int64_t count,
          StateHeader* state, float* scratch) {
  Scratch parts;
  Carve(dims, scratch, &parts);
  for (int64_t i = 0; i < count; ++i) {
    Step(dims, weights, events[i], /*want_output=*/i + 1 == count, /*write=*/nullptr, state, parts);
  }
}

void Query(const Dims& dims, const Weights& weights, const StateHeader* state, int64_t as_of_ms,
           float* scratch, float* query) {
  const float* output = reinterpret_cast<const float*>(state + 1) + dims.output_offset;
  if (!dims.time_query) {
    std::memcpy(query, output, sizeof(float) * static_cast<size_t>(dims.d));
    return;
  }
  Scratch parts;
  Carve(dims, scratch, &parts);
  const Gap gap = GapBetween(dims, *state, as_of_ms);
  PointwiseTime(dims, weights.query_hidden, weights.query_hidden_bias, weights.query_gate,
                weights.query_gate_bias, gap.feature, 2 * static_cast<int64_t>(dims.d), parts.time,
                parts.gate);
  for (int32_t i = 0; i < dims.d; ++i) {
    query[i] = FusedMultiplyAdd(output[i], 1.0f + parts.gate[i], parts.gate[dims.d + i]);
  }
}

void PushWindow(const Dims& dims, const Event* events, int64_t count, StateHeader* state) {
  int64_t* timestamps = const_cast<int64_t*>(WindowTimestamps(state));
  int32_t* items = const_cast<int32_t*>(WindowItems(dims, state));
  for (int64_t i = 0; i < count; ++i) {
    int64_t at = WindowLength(dims, state);
    if (at == dims.window) {
      at = dims.window - 1;
      std::memmove(timestamps, timestamps + 1, sizeof(int64_t) * static_cast<size_t>(at));
      std::memmove(items, items + 1, sizeof(int32_t) * static_cast<size_t>(at));
    }
    timestamps[at] = events[i].timestamp_ms;
    items[at] = events[i].item;
    state->last_timestamp_ms = events[i].timestamp_ms;
    state->folded_events += 1;
  }
}

int64_t WindowScratchFloats(const Dims& dims) {
  WindowScratch scratch;
  return CarveWindow(dims, nullptr, &scratch);
}

int64_t WindowRecordFloats(const Dims& dims) { return RecordFloats(dims); }

void WindowWrites(const Dims& dims, const Weights& weights, const StateHeader* state,
                  float* scratch, float* writes) {
  WindowScratch parts;
  CarveWindow(dims, scratch, &parts);
  std::memset(parts.raw, 0, sizeof(float) * static_cast<size_t>(dims.k - 1));
  InitialTime(dims, weights, state, parts);
  const int64_t layer_values = static_cast<int64_t>(dims.window) * dims.h;
  for (int32_t layer = 0; layer < dims.layers; ++layer) {
    for (int32_t h = 0; h < dims.h; ++h) {
      ModulateWindow(dims, weights.layers[layer], h, /*want_next=*/layer + 1 < dims.layers, parts,
                     writes + layer * layer_values);
    }
  }
}

int64_t WindowEvents(const Dims& dims, const StateHeader* state, Event* events) {
  const int64_t length = WindowLength(dims, state);
  for (int64_t i = 0; i < length; ++i) {
    events[i] = {WindowItems(dims, state)[i], WindowTimestamps(state)[i]};
  }
  return length;
}

void EncodeWindow(const Dims& dims, const Weights& weights, const StateHeader* state,
                  float* scratch, float* query) {
  WindowScratch parts;
  CarveWindow(dims, scratch, &parts);
  WindowWrites(dims, weights, state, scratch, parts.write);
  Scratch step;
  Carve(dims, parts.step, &step);
  std::memset(parts.record, 0, sizeof(float) * static_cast<size_t>(RecordFloats(dims)));
  auto* folded = reinterpret_cast<StateHeader*>(parts.record);
  const int64_t length = WindowLength(dims, state);
  for (int64_t i = 0; i < length; ++i) {
    const Event event = {WindowItems(dims, state)[i], WindowTimestamps(state)[i]};
    Step(dims, weights, event, /*want_output=*/i + 1 == length, parts.write + i * dims.h, folded,
         step);
  }
  std::memcpy(query, reinterpret_cast<const float*>(folded + 1) + dims.output_offset,
              sizeof(float) * static_cast<size_t>(dims.d));
}

void PackTransposed(const float* matrix, int64_t rows, int64_t columns, float* packed) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) packed[c * rows + r] = matrix[r * columns + c];
  }
}

int64_t PackedItemFloats(int32_t items, int32_t d) {
  return (static_cast<int64_t>(items) + kItemBlock - 1) / kItemBlock * kItemBlock * d;
}

void PackItems(const float* embedding, int32_t items, int32_t d, float* packed) {
  std::memset(packed, 0, sizeof(float) * static_cast<size_t>(PackedItemFloats(items, d)));
  for (int32_t item = 0; item < items; ++item) {
    float* block = packed + static_cast<int64_t>(item / kItemBlock) * d * kItemBlock;
    for (int32_t i = 0; i < d; ++i) {
      block[i * kItemBlock + item % kItemBlock] = embedding[static_cast<int64_t>(item) * d + i];
    }
  }
}

int32_t TopK(const float* packed_items, int32_t items, int32_t d, const TopKQuery& query,
             Scored* best) {
  BestHeap heap = {best, query.k};
  const ExcludedWalk excluded = {query.excluded, query.excluded + query.excluded_count};
  if (query.candidates_only) {
    OfferCandidates(packed_items, d, query, excluded, &heap);
  } else {
    OfferAll(packed_items, items, d, query, excluded, &heap);
  }
  heap.Sort();
  return heap.size;
}

}  // namespace tim4rec::kernels
