// The canonical arithmetic: what every implementation (scalar, SIMD, CUDA) computes, operation by
// operation, so that all of them give the same float32 bits. scalar.cc is the truth.
//
// Shape legend: D model width, E inner width, H heads, P = E / H head width, N state width,
// C = E + 2N convolved channels, K convolution width, M hidden width of the time functions,
// F feed-forward width, V items including index 0 (padding), L the window of a published model.
//
// THE ORDER OF OPERATIONS. All values are float32, rounded to nearest even, denormals kept. fma is
// one rounding; every other product, sum, division and square root is rounded by itself. The
// elementary functions are those of math.h.
//
//  1. Product sums (every Linear): y_o = b_o, then for k = 0, 1, …: y_o = fma(w[o,k], x_k, y_o).
//  2. Sum16(v_0 … v_{n-1}): p_j = 0 for j < 16; for i = 0, 1, …: p_{i mod 16} += v_i; then for
//     s = 8, 4, 2, 1: p_j += p_{j+s} for j < s; the sum is p_0. SumSquares16 is the same with
//     p_{i mod 16} = fma(v_i, v_i, p_{i mod 16}).
//  3. LayerNorm(v; w, b, eps): mean = Sum16(v) / n; c_i = v_i - mean; var = SumSquares16(c) / n;
//     r = 1 / sqrt(var + eps); result fma(c_i * r, w_i, b_i).
//     RMSNorm(v; w, eps): r = 1 / sqrt(SumSquares16(v) / n + eps); result (v_i * r) * w_i.
//  4. Causal depthwise convolution of width K: acc = bias; taps oldest first,
//     acc = fma(w[c,k], v_{t-K+1+k}, acc); values before the first event are 0.
//  5. Gap: g = 0 for the first event, else clamp(t - last_t, 0, max_gap) in int64 ms; gf =
//  float(g);
//     u = (Log1p(gf * inv_tau0) - mean) * inv_stddev.
//
//  An event (item, t) on a state, for each layer, x being [D]:
//  6. x = LayerNorm(embedding[item]) before the first layer.
//  7. [z(E) | xBC(C) | dt(H)] = in_proj(x). xBC = act(conv(xBC) + bias), by rule 4, the raw xBC
//     entering the state's tail. It splits into x(E), B(N), C(N).
//  8. With time_write: hid_m = Silu(fma(w1_m, u, b1_m)); s = product sum over m with w2, b2;
//     q_h = u * s_h; r1 = act(conv1(q)); r = act(conv2(r1)), by rule 4, q and r1 entering the two
//     tails; dt_h = fma(dt_h, r_h, dt_h).
//  9. Delta_h = Softplus(dt_h + dt_bias_h). lambda_h = gf * rate_h with time_decay, else 0.
//     a_h = Exp(fma(A_h, Delta_h, -lambda_h)).
// 10. dx = Delta_h * x_hp; for n = 0, 1, …: S[h,n,p] = fma(dx, B_n, a_h * S[h,n,p]).
//     y = 0; for n = 0, 1, …: y = fma(S[h,n,p], C_n, y); then y = fma(D_h, x_hp, y).
// 11. y_e = y_e * Silu(z_e); y = RMSNorm(y; norm_eps); out = out_proj(y).
// 12. u = LayerNorm(out + x; norm_eps), without "+ x" if there is one layer only.
//     With ffn: f = Hardswish(fc1(u)); u = LayerNorm(fc2(f) + u; 1e-12).
// 13. u is the next layer's x; the last layer's is the state's output.
//
//  A query at as_of: the gap by rule 5 from the state's last event (0 if it has none). With
//  time_query: hid as in 8 with the gate's weights; [scale(D) | shift(D)] = product sum over m;
//  query_d = fma(output_d, 1 + scale_d, shift_d). Else query = output.
//
//  A published model with time keeps no recurrent state: its record holds the last L events, and a
//  query encodes them. Without time it is 6 to 13 with no use of time.
// 14. sec_i = float(double(ms_i) / 1000.0) for the n events of the window, 0 for the positions
// after
//     them; g_0 = 0, g_i = sec_i - sec_{i-1}; tau_h = LayerNorm(g; norm_eps) over L, for every
//     head.
// 15. For each layer and head: hid = Silu(scale1(tau)), s = scale2(hid), both Linear over L;
//     q_i = tau_i * s_i; r1 = act(conv1(q)), r = act(conv2(r1)), by rule 4 along the window.
// 16. gamma = Sigmoid(gate(tau)), one value or L; next tau_i = gamma_i * tau_i +
//     (1 - gamma_i) * r_i as t = 1 - gamma_i, t = t * r_i, fma(gamma_i, tau_i, t); then LayerNorm
//     over L. It is the next layer's tau.
// 17. The n events are folded into an empty state by 6 to 13, with dt_h = dt_h * r_{h,i} as 8. The
//     output after the last one is the query.
//
//  A score: s = 0; for d = 0, 1, …: s = fma(query_d, embedding[v,d], s). NaN counts as -inf. Ranked
//  by score descending, equal scores by index ascending.
#ifndef TIM4REC_MODEL_KERNELS_KERNELS_H_
#define TIM4REC_MODEL_KERNELS_KERNELS_H_

#include <cstdint>

namespace tim4rec::kernels {

// Sizes and constants. Offsets are in floats from the end of the record's header; with a window, of
// the scratch record into which it is folded.
struct Dims {
  int32_t d, e, h, p, n, k, m, f;
  int32_t layers;
  int32_t items;  // V
  bool ffn, time_write, time_decay, time_query;
  bool conv_silu;              // the convolutions' act: Silu, else Hardswish
  int32_t window;              // L of a published model with time, else 0
  bool window_gate_per_event;  // its gate has L values, else one
  float norm_eps;

  int64_t max_gap_ms;
  float inv_tau0, gap_mean, inv_gap_stddev;  // each rounded once from float64

  int64_t ssm_offset, conv_offset, time_conv1_offset, time_conv2_offset;  // within a layer
  int64_t layer_floats, output_offset;

  int32_t conv_channels() const { return e + 2 * n; }
  int32_t projections() const { return e + conv_channels() + h; }
};

// Weights, packed for vectors that run across outputs: a Linear [outputs, inputs] is held
// transposed, [inputs][outputs]; a convolution [channels, 1, K] as [K][channels]. Pointers of
// parts that the model lacks are null.
struct LayerWeights {
  const float *in_proj, *in_proj_bias;              // [D][2E+2N+H]
  const float *conv, *conv_bias;                    // [K][C]
  const float *time_conv1, *time_conv1_bias;        // [K][H]
  const float *time_conv2, *time_conv2_bias;        // [K][H]
  const float *time_hidden, *time_hidden_bias;      // [M]
  const float *time_scale, *time_scale_bias;        // [M][H]
  const float* a;                                   // [H], -Exp(A_log)
  const float* rate;                                // [H], Exp(-log_memory_ms)
  const float *dt_bias, *skip;                      // [H]; skip is D_h
  const float* norm;                                // [E]
  const float *out_proj, *out_proj_bias;            // [E][D]
  const float *layer_norm, *layer_norm_bias;        // [D]
  const float *fc1, *fc1_bias;                      // [D][F]
  const float *fc2, *fc2_bias;                      // [F][D]
  const float *ffn_norm, *ffn_norm_bias;            // [D]
  const float *window_scale1, *window_scale1_bias;  // [L][L]
  const float *window_scale2, *window_scale2_bias;  // [L][L]
  const float *window_gate, *window_gate_bias;      // [L][L] or [L][1]
  const float *window_norm, *window_norm_bias;      // [L]
};

struct Weights {
  const float* embedding;                         // [V][D]
  const float *in_norm, *in_norm_bias;            // [D]
  const float *query_hidden, *query_hidden_bias;  // [M]
  const float *query_gate, *query_gate_bias;      // [M][2D]
  const float *window_norm, *window_norm_bias;    // [L]
  const LayerWeights* layers;
};

// A state record begins with this; its float32 tensors follow. All zero: no events.
struct StateHeader {
  int64_t last_timestamp_ms;
  int64_t folded_events;
};

struct Event {
  int32_t item;  // 0 … V-1, checked by the caller
  int64_t timestamp_ms;
};

// float32 values that Scan and Query need as scratch.
int64_t ScratchFloats(const Dims& dims);

// Folds `count` events into the record at `state`, in order. Splitting a run into several calls
// gives the same bits. `state` is 16-byte aligned; nothing else is read or written.
void Scan(const Dims& dims, const Weights& weights, const Event* events, int64_t count,
          StateHeader* state, float* scratch);

// Writes the query vector [D] at `as_of_ms`.
void Query(const Dims& dims, const Weights& weights, const StateHeader* state, int64_t as_of_ms,
           float* scratch, float* query);

// For models with a window (Dims::window > 0) instead of Scan and Query.
//
// Appends events to the record's window: int64 timestamps in ms [L], then int32 items [L], oldest
// first; the first min(folded_events, L) are events, the rest zero.
void PushWindow(const Dims& dims, const Event* events, int64_t count, StateHeader* state);
// float32 values that EncodeWindow needs as scratch, which is 16-byte aligned.
int64_t WindowScratchFloats(const Dims& dims);
// Writes the query vector [D] of a window of at least one event. Changes no state.
void EncodeWindow(const Dims& dims, const Weights& weights, const StateHeader* state,
                  float* scratch, float* query);

// EncodeWindow in parts, for another implementation of the fold: its record, whose header and
// tensors begin as zeros, has WindowRecordFloats values.
int64_t WindowRecordFloats(const Dims& dims);
// Rules 14 to 16: r of each event, writes [layers][L][H]. Scratch as EncodeWindow.
void WindowWrites(const Dims& dims, const Weights& weights, const StateHeader* state,
                  float* scratch, float* writes);
// The window's events, to `events` [L]; returns their number.
int64_t WindowEvents(const Dims& dims, const StateHeader* state, Event* events);

// [rows][columns] to [columns][rows].
void PackTransposed(const float* matrix, int64_t rows, int64_t columns, float* packed);

// The item table for scoring: [ceil(V/16)][D][16], zeros after the last item.
inline constexpr int32_t kItemBlock = 16;
int64_t PackedItemFloats(int32_t items, int32_t d);
void PackItems(const float* embedding, int32_t items, int32_t d, float* packed);

struct Scored {
  float score;
  int32_t item;
};

struct TopKQuery {
  const float* query;       // [D]
  int32_t k;                // at least 1
  const int32_t* excluded;  // ascending
  int64_t excluded_count;
  bool candidates_only;       // rank only the candidates
  const int32_t* candidates;  // ascending, each 1 … V-1
  int64_t candidate_count;
  // Bit v % 64 of word v / 64: whether item v may be ranked. Null: all may.
  const uint64_t* eligible = nullptr;
  // Added to the items' scores, [16 ceil(V/16)], finite. Null: nothing is added.
  const float* boost = nullptr;
};

// Ranks the eligible items, 1 … V-1 without the excluded ones, exactly. Writes the best min(k,
// eligible), best first, to `best` [k] and returns their number. Cost: one pass over the table.
int32_t TopK(const float* packed_items, int32_t items, int32_t d, const TopKQuery& query,
             Scored* best);

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_KERNELS_H_
