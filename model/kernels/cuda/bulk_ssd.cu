#include "model/kernels/cuda/bulk_ssd.h"

#include "model/kernels/cuda/mma.h"
#include "model/kernels/math.h"

namespace tim4rec::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int32_t kThreads = 128;
constexpr int32_t kWarps = kThreads / 32;
constexpr int kFractionBits = 17;
constexpr double kLeastLog2 = -160;  // 2^-160 is 0 in float32

__device__ int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }

__host__ __device__ int32_t RoundUp(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

// A chunk in shared memory. Rows are padded with zeros to whole matrices; strides are chosen so
// that the lanes of an operand meet different banks.
struct Chunk {
  int32_t q, n, p;  // events, N and the block's part of P, in whole matrices
  int32_t n_stride, p_stride;
  float *b, *c;   // [q][n_stride], tf32
  float* x;       // [q][p_stride], tf32
  float* state;   // [n][p_stride]
  int32_t* sums;  // [q + 1]: cumulative logs from the chunk's beginning; sums[0] is 0
  float* delta;   // [q]
};

__host__ __device__ size_t CarveChunk(int32_t q, int32_t n, int32_t p, float* base, Chunk* chunk) {
  chunk->q = q;
  chunk->n = RoundUp(n, 16);
  chunk->p = p;
  chunk->n_stride = chunk->n + 4;
  chunk->p_stride = p == 8 ? 8 : p + 8;  // the narrow one is for states that hardly fit
  chunk->b = base;
  chunk->c = chunk->b + q * chunk->n_stride;
  chunk->x = chunk->c + q * chunk->n_stride;
  chunk->state = chunk->x + q * chunk->p_stride;
  chunk->delta = chunk->state + chunk->n * chunk->p_stride;
  chunk->sums = reinterpret_cast<int32_t*>(chunk->delta + q);
  const size_t floats = static_cast<size_t>(2 * q * chunk->n_stride) +
                        static_cast<size_t>(q + chunk->n) * chunk->p_stride + 2 * q + 1;
  return floats * sizeof(float);
}

// 2 to the difference of two cumulative logs.
__device__ float Carried(int32_t to, int32_t from) {
  return exp2f(static_cast<float>(to - from) * (1.0f / (1 << kFractionBits)));
}

// Events at … at + length - 1 of the sequence's head, zeros behind them.
__device__ void LoadChunk(const BulkSsd& a, int32_t head, int32_t first_p, int64_t at,
                          int32_t length, const Chunk& chunk) {
  for (int32_t i = Thread(); i < chunk.q * chunk.n; i += kThreads) {
    const int32_t row = i / chunk.n, n = i % chunk.n;
    const bool there = row < length && n < a.n;
    const int64_t from = (at + row) * a.stride + n;
    chunk.b[row * chunk.n_stride + n] = there ? RoundToTf32(a.b[from]) : 0.0f;
    chunk.c[row * chunk.n_stride + n] = there ? RoundToTf32(a.c[from]) : 0.0f;
  }
  for (int32_t i = Thread(); i < chunk.q * chunk.p; i += kThreads) {
    const int32_t row = i / chunk.p, p = i % chunk.p;
    const bool there = row < length && first_p + p < a.p;
    const int64_t from = (at + row) * a.stride + head * a.p + first_p + p;
    chunk.x[row * chunk.p_stride + p] = there ? RoundToTf32(a.x[from]) : 0.0f;
  }
  if (Thread() >= 32) return;
  int64_t before = 0;  // 32 bits after the point
  for (int32_t row = Thread(); row < RoundUp(chunk.q, 32); row += 32) {
    int64_t sum = 0;
    if (row < length) {
      const int64_t from = (at + row) * a.h + head;
      double log2 = static_cast<double>(a.log_carry[from]) * 1.4426950408889634;
      if (!(log2 > kLeastLog2)) log2 = kLeastLog2;
      sum = static_cast<int64_t>(log2 * 4294967296.0);
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, sum, lanes);
      if (Thread() >= lanes) sum += other;
    }
    sum += before;
    before = __shfl_sync(kAllLanes, sum, 31);
    if (row >= chunk.q) continue;
    chunk.sums[row + 1] = static_cast<int32_t>(sum >> (32 - kFractionBits));
    chunk.delta[row] = row < length ? a.delta[(at + row) * a.h + head] : 0.0f;
  }
  if (Thread() == 0) chunk.sums[0] = 0;
}

// The outputs of 16 events from `row` on, by one warp; kTiles matrices of 8 along P.
template <int kTiles>
__device__ void MixRows(const Chunk& chunk, int32_t row, float (&y)[kTiles][4]) {
  const int32_t lane = Thread() % 32, g = lane / 4, t = lane % 4;
  const float* c = chunk.c + (row + g) * chunk.n_stride + t;
  const int32_t below = 8 * chunk.n_stride;
  const int32_t to[2] = {chunk.sums[row + g + 1], chunk.sums[row + g + 9]};
  // What the state before the chunk brings.
  const float decay[2] = {Carried(to[0], 0), Carried(to[1], 0)};
  for (int32_t n = 0; n < chunk.n; n += 8) {
    const float left[4] = {RoundToTf32(c[n] * decay[0]), RoundToTf32(c[n + below] * decay[1]),
                           RoundToTf32(c[n + 4] * decay[0]),
                           RoundToTf32(c[n + 4 + below] * decay[1])};
    const float* state = chunk.state + (n + t) * chunk.p_stride + g;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float right[2] = {RoundToTf32(state[tile * 8]),
                              RoundToTf32(state[tile * 8 + 4 * chunk.p_stride])};
      MmaTf32(y[tile], left, right);
    }
  }
  for (int32_t column = 0; column < row + 16; column += 8) {
    float products[4] = {};
    const float* b = chunk.b + (column + g) * chunk.n_stride + t;
    for (int32_t n = 0; n < chunk.n; n += 8) {
      const float left[4] = {c[n], c[n + below], c[n + 4], c[n + 4 + below]};
      const float right[2] = {b[n], b[n + 4]};
      MmaTf32(products, left, right);
    }
    // The mask, in registers: this lane's columns are 2 t and 2 t + 1, its rows g and g + 8.
    float masked[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t j = column + 2 * t + i % 2;
      const bool sees = j <= row + g + i / 2 * 8;
      const float weight = sees ? Carried(to[i / 2], chunk.sums[j + 1]) * chunk.delta[j] : 0.0f;
      masked[i / 2][i % 2] = RoundToTf32(products[i] * weight);
    }
    // As the left operand, its inner indices t and t + 4 standing for columns 2 t and 2 t + 1.
    const float left[4] = {masked[0][0], masked[1][0], masked[0][1], masked[1][1]};
    const float* x = chunk.x + (column + 2 * t) * chunk.p_stride + g;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float right[2] = {x[tile * 8], x[tile * 8 + chunk.p_stride]};
      MmaTf32(y[tile], left, right);
    }
  }
}

// The state after the chunk: a warp takes 16 rows of it at a time.
template <int kTiles>
__device__ void CarryState(const Chunk& chunk) {
  const int32_t lane = Thread() % 32, g = lane / 4, t = lane % 4;
  const int32_t end = chunk.sums[chunk.q];
  const float decay = Carried(end, 0);
  for (int32_t n = Thread() / 32 * 16; n < chunk.n; n += kWarps * 16) {
    float sums[kTiles][4] = {};
    for (int32_t row = 0; row < chunk.q; row += 8) {
      const int32_t j[2] = {row + t, row + t + 4};
      float left[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float weight = Carried(end, chunk.sums[j[i] + 1]) * chunk.delta[j[i]];
        const float* b = chunk.b + j[i] * chunk.n_stride + n + g;
        left[2 * i] = RoundToTf32(b[0] * weight);
        left[2 * i + 1] = RoundToTf32(b[8] * weight);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float* x = chunk.x + j[0] * chunk.p_stride + tile * 8 + g;
        const float right[2] = {x[0], x[4 * chunk.p_stride]};
        MmaTf32(sums[tile], left, right);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* state =
            chunk.state + (n + g + i / 2 * 8) * chunk.p_stride + tile * 8 + 2 * t + i % 2;
        *state = decay * *state + sums[tile][i];
      }
    }
  }
}

// A block per sequence, head and 8 kTiles values of P.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 2)
    MixSequences(const __grid_constant__ BulkSsd a, int32_t q) {
  constexpr int32_t kWidth = 8 * kTiles;
  const int32_t parts = (a.p + kWidth - 1) / kWidth;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t first_p = block % parts * kWidth, head = block / parts % a.h;
  const int32_t sequence = block / parts / a.h;
  Chunk chunk;
  CarveChunk(q, a.n, kWidth, SharedMemory<float>(), &chunk);
  const int64_t states = (static_cast<int64_t>(sequence) * a.h + head) * a.n * a.p + first_p;
  for (int32_t i = Thread(); i < chunk.n * kWidth; i += kThreads) {
    const int32_t n = i / kWidth, p = i % kWidth;
    const bool there = a.initial != nullptr && n < a.n && first_p + p < a.p;
    chunk.state[n * chunk.p_stride + p] =
        there ? a.initial[states + static_cast<int64_t>(n) * a.p + p] : 0.0f;
  }
  const int32_t lane = Thread() % 32;
  const float skip = a.skip[head];
  const int32_t end = a.first[sequence + 1];
  for (int32_t at = a.first[sequence]; at < end; at += q) {
    const int32_t length = end - at < q ? end - at : q;
    LoadChunk(a, head, first_p, at, length, chunk);
    __syncthreads();
    for (int32_t row = Thread() / 32 * 16; row < length; row += kWarps * 16) {
      float y[kTiles][4] = {};
      MixRows<kTiles>(chunk, row, y);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int32_t event = row + lane / 4 + i / 2 * 8;
          const int32_t p = first_p + tile * 8 + lane % 4 * 2 + i % 2;
          if (event >= length || p >= a.p) continue;
          const int64_t from = (at + event) * a.stride + head * a.p + p;
          a.y[(at + event) * a.y_stride + head * a.p + p] =
              kernels::FusedMultiplyAdd(skip, a.x[from], y[tile][i]);
        }
      }
    }
    __syncthreads();
    if (at + q < end || a.final != nullptr) CarryState<kTiles>(chunk);
    __syncthreads();
  }
  if (a.final == nullptr) return;
  __syncthreads();
  for (int32_t i = Thread(); i < a.n * kWidth; i += kThreads) {
    const int32_t n = i / kWidth, p = i % kWidth;
    if (first_p + p >= a.p) continue;
    a.final[states + static_cast<int64_t>(n) * a.p + p] = chunk.state[n * chunk.p_stride + p];
  }
}

}  // namespace

Fault RunBulkSsd(const BulkSsd& arguments, Stream stream) {
  if (arguments.count == 0) return nullptr;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return Describe(error);
  const auto run = [&](auto kernel, int32_t width, int32_t q, bool* fits) {
    Chunk chunk;
    Grid grid;
    grid.threads = kThreads;
    grid.shared_bytes = CarveChunk(q, arguments.n, width, nullptr, &chunk);
    *fits = grid.shared_bytes <= static_cast<size_t>(most);
    if (!*fits) return Fault{nullptr};
    const int32_t parts = (arguments.p + width - 1) / width;
    grid.blocks = static_cast<unsigned>(arguments.count * arguments.h * parts);
    return Launch(kernel, grid, stream, arguments, q);
  };
  bool fits = false;
  Fault fault = nullptr;
  for (int32_t q = 64; q >= 16 && !fits; q /= 2) {
    fault = run(MixSequences<4>, 32, q, &fits);
  }
  if (!fits) fault = run(MixSequences<1>, 8, 16, &fits);
  return fits ? fault : "d_state is too large for the shared memory of this device";
}

}  // namespace tim4rec::cuda
