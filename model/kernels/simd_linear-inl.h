// Rule 1 for tiles of rows: the register-blocked product sums that take most of the time.
#ifndef TIM4REC_MODEL_KERNELS_SIMD_LINEAR_INL_H_
#define TIM4REC_MODEL_KERNELS_SIMD_LINEAR_INL_H_

#include "model/kernels/kernel_set.h"
#include "model/kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tim4rec::kernels {
namespace {

constexpr int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

struct LinearTile {
  const float* weights;  // of the first block
  int64_t block_stride;  // inputs * 16
  int64_t inputs;        // of this pass
  const float* x;        // first row
  int64_t x_stride;
  const float* start;  // what the sums begin with: the bias (stride 0), or y
  int64_t start_stride;
  float* y;
  int64_t y_stride;
};

// kRows x (16 kBlocks) sums in registers, one chain of fma each.
template <int kRows, int kBlocks>
HWY_NOINLINE void MultiplyTile(const LinearTile& tile) {
  constexpr int kVectors = kBlocks * static_cast<int>(kParts);
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = hn::LoadU(kF, tile.start + r * tile.start_stride + v * kLanes);
    }
  }
  const float* HWY_RESTRICT x = tile.x;
  const float* HWY_RESTRICT w = tile.weights;
  const int64_t x_stride = tile.x_stride;
  const int64_t block_stride = tile.block_stride;
  for (int64_t k = 0; k < tile.inputs; ++k, w += 16, ++x) {
    V weight[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      weight[v] = hn::Load(kF, w + v / kParts * block_stride + v % kParts * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V value = hn::Set(kF, x[r * x_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(weight[v], value, sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[r][v], kF, tile.y + r * tile.y_stride + v * kLanes);
    }
  }
}

// Rows and blocks that fit the registers together. One row alone takes more blocks: its own path,
// where enough chains must be in flight and each weight is used once.
constexpr int kMostRows = 6;
constexpr int MostBlocks(int64_t rows) {
  if (kLanes == 16) return rows == 1 ? 8 : 4;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

template <int kRows, int kBlocks>
HWY_INLINE void MultiplyBlocks(const LinearTile& tile, int64_t blocks) {
  if (blocks == kBlocks) return MultiplyTile<kRows, kBlocks>(tile);
  if constexpr (kBlocks > 1) MultiplyBlocks<kRows, kBlocks - 1>(tile, blocks);
}

HWY_INLINE void MultiplyRows(const LinearTile& tile, int64_t rows, int64_t blocks) {
  switch (rows) {
    case 1:
      return MultiplyBlocks<1, MostBlocks(1)>(tile, blocks);
    case 2:
      return MultiplyBlocks<2, MostBlocks(2)>(tile, blocks);
    case 3:
      return MultiplyBlocks<3, MostBlocks(3)>(tile, blocks);
    case 4:
      return MultiplyBlocks<4, MostBlocks(4)>(tile, blocks);
    case 5:
      return MultiplyBlocks<5, MostBlocks(5)>(tile, blocks);
    default:
      return MultiplyBlocks<6, MostBlocks(6)>(tile, blocks);
  }
}

// y[r][o] = bias[o], then fma over the inputs in order, for whole blocks of outputs.
void LinearRows(const BlockedLinear& linear, int64_t inputs, int64_t outputs, const float* x,
                int64_t x_stride, int64_t rows, float* y, int64_t y_stride) {
  constexpr int64_t kInputsPerPass = 128;  // their weights stay in the first-level cache
  const int64_t blocks = (outputs + 15) / 16;
  const int64_t groups = (rows + kMostRows - 1) / kMostRows;
  const int64_t most = MostBlocks((rows + groups - 1) / groups);
  const int64_t panels = (blocks + most - 1) / most;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * blocks / panels;
    const int64_t count = (panel + 1) * blocks / panels - first;
    for (int64_t k = 0; k < inputs; k += kInputsPerPass) {
      LinearTile tile;
      tile.weights = linear.weights + (first * inputs + k) * 16;
      tile.block_stride = inputs * 16;
      tile.inputs = inputs - k < kInputsPerPass ? inputs - k : kInputsPerPass;
      tile.x_stride = x_stride;
      tile.y_stride = y_stride;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t row = g * rows / groups;
        tile.x = x + row * x_stride + k;
        tile.y = y + row * y_stride + first * 16;
        tile.start = k == 0 ? linear.bias + first * 16 : tile.y;
        tile.start_stride = k == 0 ? 0 : y_stride;
        MultiplyRows(tile, (g + 1) * rows / groups - row, count);
      }
    }
  }
}

}  // namespace
}  // namespace tim4rec::kernels
HWY_AFTER_NAMESPACE();

#endif  // TIM4REC_MODEL_KERNELS_SIMD_LINEAR_INL_H_
