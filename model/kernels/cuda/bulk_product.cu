// Rule 1 for many rows: tf32 matrix products.
#include "model/kernels/cuda/bulk_parts.h"
#include "model/kernels/cuda/mma.h"
#include "model/kernels/math.h"

namespace tim4rec::cuda::bulk {
namespace {

// A block makes 64 rows of 64 outputs, 32 inputs at a time; each of its four warps 32 by 32.
constexpr int32_t kThreads = 128;
constexpr int32_t kTile = 64;
constexpr int32_t kDepth = 32;
// Strides at which the lanes of an operand meet different banks.
constexpr int32_t kLeftStride = kDepth + 4;
constexpr int32_t kRightStride = kTile + 8;
constexpr int32_t kLoads = kTile * kDepth / 4 / kThreads;  // of four floats, per thread and operand

__device__ int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }

// Four floats of a row, zeros outside it; in one load where all rows are aligned.
__device__ float4 LoadFour(const float* row, int32_t at, int32_t width, bool exists, bool aligned) {
  if (!exists || at >= width) return make_float4(0, 0, 0, 0);
  if (aligned) return __ldg(reinterpret_cast<const float4*>(row + at));
  return make_float4(row[at], at + 1 < width ? row[at + 1] : 0, at + 2 < width ? row[at + 2] : 0,
                     at + 3 < width ? row[at + 3] : 0);
}

__device__ float4 Rounded(const float4& v) {
  return make_float4(RoundToTf32(v.x), RoundToTf32(v.y), RoundToTf32(v.z), RoundToTf32(v.w));
}

__global__ void __launch_bounds__(kThreads, 3) MultiplyTiles(const __grid_constant__ Product a) {
  auto* left = SharedMemory<float>();         // [kTile][kLeftStride]
  float* right = left + kTile * kLeftStride;  // [kDepth][kRightStride]
  const int32_t across = (a.outputs + kTile - 1) / kTile;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t first_row = block / across * kTile, first_output = block % across * kTile;
  const bool left_aligned = a.x_stride % 4 == 0 && a.inputs % 4 == 0;
  const bool right_aligned = a.outputs % 4 == 0;
  const int32_t warp = Thread() / 32, lane = Thread() % 32, g = lane / 4, t = lane % 4;
  const int32_t row = warp / 2 * 32, output = warp % 2 * 32;
  float4 next_left[kLoads], next_right[kLoads];
  const auto load = [&](int32_t depth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t at = Thread() + i * kThreads;
      const int32_t r = first_row + at / (kDepth / 4), k = depth + at / (kTile / 4);
      next_left[i] = LoadFour(a.x + r * a.x_stride, depth + at % (kDepth / 4) * 4, a.inputs,
                              r < a.rows, left_aligned);
      next_right[i] =
          LoadFour(a.w + static_cast<int64_t>(k) * a.outputs, first_output + at % (kTile / 4) * 4,
                   a.outputs, k < a.inputs, right_aligned);
    }
  };
  float sums[2][4][4] = {};
  load(0);
  for (int32_t depth = 0; depth < a.inputs; depth += kDepth) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t at = Thread() + i * kThreads;
      *reinterpret_cast<float4*>(left + at / (kDepth / 4) * kLeftStride + at % (kDepth / 4) * 4) =
          Rounded(next_left[i]);
      *reinterpret_cast<float4*>(right + at / (kTile / 4) * kRightStride + at % (kTile / 4) * 4) =
          Rounded(next_right[i]);
    }
    __syncthreads();
    if (depth + kDepth < a.inputs) load(depth + kDepth);
#pragma unroll
    for (int k = 0; k < kDepth; k += 8) {
      float x[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float* at = left + (row + m * 16 + g) * kLeftStride + k + t;
        x[m][0] = at[0];
        x[m][1] = at[8 * kLeftStride];
        x[m][2] = at[4];
        x[m][3] = at[8 * kLeftStride + 4];
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float* at = right + (k + t) * kRightStride + output + n * 8 + g;
        const float w[2] = {at[0], at[4 * kRightStride]};
#pragma unroll
        for (int m = 0; m < 2; ++m) MmaTf32(sums[m][n], x[m], w);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t r = first_row + row + m * 16 + g + i / 2 * 8;
        const int32_t o = first_output + output + n * 8 + 2 * t + i % 2;
        if (r >= a.rows || o >= a.outputs) continue;
        float value = sums[m][n][i] + a.bias[o];
        if (a.hardswish) value = kernels::Hardswish(value);
        const int64_t to = r * a.y_stride + o;
        if (a.residual != nullptr) value += a.residual[to];
        a.y[to] = value;
      }
    }
  }
}

}  // namespace

Fault Multiply(const Product& product, Stream stream) {
  if (product.rows == 0) return nullptr;
  Grid grid;
  grid.blocks = static_cast<unsigned>((product.rows + kTile - 1) / kTile) *
                static_cast<unsigned>((product.outputs + kTile - 1) / kTile);
  grid.threads = kThreads;
  grid.shared_bytes = sizeof(float) * (kTile * kLeftStride + kDepth * kRightStride);
  return Launch(MultiplyTiles, grid, stream, product);
}

}  // namespace tim4rec::cuda::bulk
