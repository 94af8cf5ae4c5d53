// Product sums and norms of a tile's rows by the threads of a block: rules 1 to 3 of kernels.h.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_LINEAR_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_LINEAR_INL_H_

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold_layout.h"

namespace tim4rec::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int32_t WarpIndex() { return static_cast<int32_t>(threadIdx.x / 32); }
__device__ __forceinline__ int32_t Warps() { return static_cast<int32_t>(blockDim.x / 32); }
__device__ __forceinline__ int32_t LaneIndex() { return static_cast<int32_t>(threadIdx.x % 32); }

// ---- rule 1

struct Linear {
  const float* weights;  // in blocks, see fold_layout.h
  const float* bias;
  int32_t inputs, outputs;
};

__device__ __forceinline__ float Component(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Four inputs (`count` of them, at the end) into the sums of kRows rows and kBlocks blocks.
template <int kRows, int kBlocks>
__device__ __forceinline__ void AddQuad(const float4 (&w)[kBlocks], const float* x, int32_t stride,
                                        int32_t count, float (&sum)[kRows][kBlocks]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float4 value = *reinterpret_cast<const float4*>(x + r * stride);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k < count) {
          sum[r][b] = kernels::FusedMultiplyAdd(Component(w[b], k), Component(value, k), sum[r][b]);
        }
      }
    }
  }
}

// One warp's part: kRows rows of x from `row`, kBlocks blocks of outputs from `block`; a lane owns
// an output of each. The weights are read kAhead quads before they are used. Rows up to kRows are
// computed and only those below `rows` stored: store(row, output, sum).
template <int kRows, int kBlocks, int kAhead, typename Store>
__device__ __forceinline__ void SumUnit(const Linear& linear, const float* x, int32_t stride,
                                        int32_t row, int32_t block, int32_t rows, Store store) {
  const int32_t quads = Quads(linear.inputs);
  const auto* w = reinterpret_cast<const float4*>(linear.weights) +
                  static_cast<int64_t>(block) * quads * kBlockOutputs + LaneIndex();
  float sum[kRows][kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t output = (block + b) * kBlockOutputs + LaneIndex();
    const float bias = output < linear.outputs ? linear.bias[output] : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r][b] = bias;
  }
  float4 ring[kAhead][kBlocks];
#pragma unroll
  for (int s = 0; s < kAhead; ++s) {
    if (s >= quads) break;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) ring[s][b] = w[(b * quads + s) * kBlockOutputs];
  }
  x += row * stride;
  for (int32_t first = 0; first < quads; first += kAhead) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int32_t q = first + s;
      if (q >= quads) break;
      float4 now[kBlocks];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        now[b] = ring[s][b];
        if (q + kAhead < quads) ring[s][b] = w[(b * quads + q + kAhead) * kBlockOutputs];
      }
      const int32_t left = linear.inputs - 4 * q;
      if (left >= 4) {
        AddQuad<kRows, kBlocks>(now, x + 4 * q, stride, 4, sum);
      } else {
        AddQuad<kRows, kBlocks>(now, x + 4 * q, stride, left, sum);
      }
    }
  }
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int32_t output = (block + b) * kBlockOutputs + LaneIndex();
    if (output >= linear.outputs) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r < rows) store(row + r, output, sum[r][b]);
    }
  }
}

// A Linear of `rows` rows of x by the first `warps` warps: units of kRows rows and kBlocks blocks
// of outputs, then the blocks that are left, in units of as many sums.
template <int kRows, int kBlocks, int kAhead, typename Store>
__device__ __forceinline__ void Multiply(const Linear& linear, const float* x, int32_t stride,
                                         int32_t rows, int32_t warps, Store store) {
  constexpr int kNarrowRows = kRows * kBlocks;
  const int32_t blocks = Blocks(linear.outputs);
  const int32_t groups = (rows + kRows - 1) / kRows;
  const int32_t wide_blocks = blocks / kBlocks * kBlocks;
  const int32_t wide = wide_blocks / kBlocks * groups;
  for (int32_t unit = WarpIndex(); unit < wide; unit += warps) {
    SumUnit<kRows, kBlocks, kAhead>(linear, x, stride, unit % groups * kRows,
                                    unit / groups * kBlocks, rows, store);
  }
  if constexpr (kBlocks > 1) {
    const int32_t narrow_groups = (rows + kNarrowRows - 1) / kNarrowRows;
    const int32_t all = wide + (blocks - wide_blocks) * narrow_groups;
    // The first of them goes to the warp after the one with the last wide unit.
    int32_t unit = wide / warps * warps + WarpIndex();
    if (unit < wide) unit += warps;
    for (; unit < all; unit += warps) {
      const int32_t narrow = unit - wide;
      SumUnit<kNarrowRows, 1, kAhead>(linear, x, stride, narrow % narrow_groups * kNarrowRows,
                                      wide_blocks + narrow / narrow_groups, rows, store);
    }
  }
}

// ---- rules 2 and 3: 16 lanes hold the partial sums of a row

__device__ __forceinline__ int32_t HalfLane() { return static_cast<int32_t>(threadIdx.x % 16); }

// The two halves of a warp may have rows of their own, but both call.
__device__ __forceinline__ float FoldPartials(float partial) {
#pragma unroll
  for (int s = 8; s > 0; s /= 2) partial = partial + __shfl_down_sync(kAllLanes, partial, s, 16);
  return __shfl_sync(kAllLanes, partial, 0, 16);
}

// A row's mean, and 1 / sqrt(variance + eps).
struct RowScale {
  float mean, r;
};

__device__ __forceinline__ RowScale ScaleOfRow(bool valid, const float* v, int32_t n, float eps) {
  const int32_t end = valid ? n : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int32_t i = HalfLane(); i < end; i += 16) sum = sum + v[i];
  const float mean = kernels::Divide(FoldPartials(sum), static_cast<float>(n));
  float squares = 0.0f;
#pragma unroll 4
  for (int32_t i = HalfLane(); i < end; i += 16) {
    const float centred = v[i] - mean;
    squares = kernels::FusedMultiplyAdd(centred, centred, squares);
  }
  const float variance = kernels::Divide(FoldPartials(squares), static_cast<float>(n));
  return {mean, kernels::Divide(1.0f, kernels::SquareRoot(variance + eps))};
}

// A value of LayerNorm.
__device__ __forceinline__ float Scaled(float v, const RowScale& scale, float w, float bias) {
  return kernels::FusedMultiplyAdd((v - scale.mean) * scale.r, w, bias);
}

// Changes v; a lane reads and writes the values i ≡ its index (mod 16) of v and result only. With
// `valid` false there is no row and nothing is read or written.
__device__ __forceinline__ void NormalizeLayer(bool valid, float* v, int32_t n, const float* w,
                                               const float* bias, float eps, float* result) {
  const int32_t end = valid ? n : 0;
  float sum = 0.0f;
  for (int32_t i = HalfLane(); i < end; i += 16) sum = sum + v[i];
  const float mean = kernels::Divide(FoldPartials(sum), static_cast<float>(n));
  float squares = 0.0f;
  for (int32_t i = HalfLane(); i < end; i += 16) {
    const float centred = v[i] - mean;
    v[i] = centred;
    squares = kernels::FusedMultiplyAdd(centred, centred, squares);
  }
  const float variance = kernels::Divide(FoldPartials(squares), static_cast<float>(n));
  const float r = kernels::Divide(1.0f, kernels::SquareRoot(variance + eps));
  for (int32_t i = HalfLane(); i < end; i += 16) {
    result[i] = kernels::FusedMultiplyAdd(v[i] * r, w[i], bias[i]);
  }
}

// v and result as above.
__device__ __forceinline__ void NormalizeRoot(bool valid, const float* v, int32_t n, const float* w,
                                              float eps, float* result) {
  const int32_t end = valid ? n : 0;
  float squares = 0.0f;
  for (int32_t i = HalfLane(); i < end; i += 16) {
    squares = kernels::FusedMultiplyAdd(v[i], v[i], squares);
  }
  const float mean_square = kernels::Divide(FoldPartials(squares), static_cast<float>(n));
  const float r = kernels::Divide(1.0f, kernels::SquareRoot(mean_square + eps));
  for (int32_t i = HalfLane(); i < end; i += 16) result[i] = (v[i] * r) * w[i];
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_LINEAR_INL_H_
