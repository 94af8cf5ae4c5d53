// A Linear of all rows of a chunk, spread over blocks by rows and outputs: rule 1 of kernels.h, and
// rule 3 of its input.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_LAYER_PRODUCT_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_LAYER_PRODUCT_INL_H_

#include "model/kernels/cuda/linear-inl.h"

namespace tim4rec::cuda {

// Rows have strides that are multiples of 4 and are 16-byte aligned.
struct Product {
  Linear linear;
  const float* x;
  int32_t x_stride;
  const int32_t* rows;  // how many there are
  // The input is LayerNorm(x), which is written to `normalized` (stride of x) too; null: it is x.
  const float *norm, *norm_bias;
  float eps;
  float* normalized;
  // The result is Hardswish(sum), or sum + residual[row], or where residual_rows is given sum +
  // residual[residual_rows[row]], or sum.
  bool hardswish;
  const float* residual;
  int32_t residual_stride;
  const int32_t* residual_rows;
  float* out;
  int32_t out_stride;
  int32_t row_tiles;
};

// A block of four warps takes kRows rows by kColumns outputs, in slices of its inputs that are
// copied to shared memory kStages - 1 slices ahead. A warp has 4 kRowsEach rows by 32 outputs, a
// lane kRowsEach by four: four sums at least, since each must wait for itself, and with eight rows
// every value that is read from shared memory is used four or eight times.
template <int kRowsEach>
struct ProductTile {
  static constexpr int kThreads = 128;
  static constexpr int kColumnWarps = kRowsEach == 1 ? 1 : 2;
  static constexpr int kWarpRows = 4 * kRowsEach;
  static constexpr int kRows = kWarpRows * 4 / kColumnWarps;
  static constexpr int kColumns = kColumnWarps * kBlockOutputs;
  static constexpr int kQuads = kRowsEach == 1 ? 16 : 8;  // of a slice
  static constexpr int kStages = kRowsEach == 1 ? 4 : 3;
  static constexpr int kRowStride = 4 * kQuads + 4;  // four rows next to each other: all banks
  static constexpr int kWeights = kQuads * kBlockOutputs * 4;  // of a warp's outputs
  static constexpr int kStageFloats = kColumnWarps * kWeights + kRows * kRowStride;
  static constexpr size_t kSharedBytes =
      sizeof(float) * kStages * kStageFloats + sizeof(RowScale) * kRows;
};

template <int kRowsEach>
struct ProductBlock {
  using Tile = ProductTile<kRowsEach>;

  const Product& p;
  int32_t first_row, first_block, rows;
  float* stages;
  RowScale* scales;

  __device__ int32_t quads() const { return Quads(p.linear.inputs); }
  __device__ float* weights(int32_t slice) const {
    return stages + slice % Tile::kStages * Tile::kStageFloats;
  }
  __device__ float* x(int32_t slice) const {
    return weights(slice) + Tile::kColumnWarps * Tile::kWeights;
  }

  // Calls visit(row, quad of the slice) for this thread's share of the slice's inputs.
  template <typename Visit>
  __device__ void ForInputs(int32_t slice, Visit visit) const {
    constexpr int kStep = Tile::kThreads / Tile::kQuads;
    const int32_t quad = static_cast<int32_t>(threadIdx.x) % Tile::kQuads;
    if (slice * Tile::kQuads + quad >= quads()) return;
#pragma unroll
    for (int i = 0; i < Tile::kRows / kStep; ++i) {
      const int32_t row = static_cast<int32_t>(threadIdx.x) / Tile::kQuads + i * kStep;
      if (row < rows) visit(row, quad);
    }
  }

  // Begins a slice's copies, as a group of its own; empty after the last slice, so that none is
  // under way when all slices are awaited.
  __device__ void Begin(int32_t slice) const {
    const int32_t first_quad = slice * Tile::kQuads;
    const int32_t left = quads() - first_quad;
    const int32_t here = left < Tile::kQuads ? left : Tile::kQuads;
    const int32_t blocks = Blocks(p.linear.outputs);
#pragma unroll
    for (int b = 0; b < Tile::kColumnWarps; ++b) {
      if (first_block + b >= blocks) break;
      const float* from =
          p.linear.weights +
          (static_cast<int64_t>(first_block + b) * quads() + first_quad) * kBlockOutputs * 4;
      float* to = weights(slice) + b * Tile::kWeights;
      for (int32_t i = static_cast<int32_t>(threadIdx.x); i < here * kBlockOutputs;
           i += Tile::kThreads) {
        CopyAsync16(to + 4 * i, from + 4 * i);
      }
    }
    ForInputs(slice, [&](int32_t row, int32_t quad) {
      CopyAsync16(
          x(slice) + row * Tile::kRowStride + 4 * quad,
          p.x + static_cast<int64_t>(first_row + row) * p.x_stride + 4 * (first_quad + quad));
    });
    CommitCopies();
  }

  __device__ void FindScales() const {
    constexpr int kHalves = Tile::kThreads / 16;
#pragma unroll 2
    for (int32_t first = 0; first < Tile::kRows; first += kHalves) {
      const int32_t row = first + static_cast<int32_t>(threadIdx.x / 16);
      const float* v = p.x + static_cast<int64_t>(first_row + row) * p.x_stride;
      const RowScale scale = ScaleOfRow(row < rows, v, p.linear.inputs, p.eps);
      if (HalfLane() == 0) scales[row] = scale;
    }
  }

  // The norm's weights for the inputs of this thread in a slice.
  struct NormQuad {
    float4 w, bias;
  };
  __device__ NormQuad LoadNorm(int32_t slice) const {
    const int32_t quad = slice * Tile::kQuads + static_cast<int32_t>(threadIdx.x) % Tile::kQuads;
    NormQuad norm = {};
    if (quad < quads()) {
      norm.w = __ldg(reinterpret_cast<const float4*>(p.norm) + quad);
      norm.bias = __ldg(reinterpret_cast<const float4*>(p.norm_bias) + quad);
    }
    return norm;
  }

  // What this thread copied, once it is here.
  __device__ void Normalize(int32_t slice, const NormQuad& norm) const {
    ForInputs(slice, [&](int32_t row, int32_t quad) {
      auto* at = reinterpret_cast<float4*>(x(slice) + row * Tile::kRowStride + 4 * quad);
      const RowScale scale = scales[row];
      float4 v = *at;
      v.x = Scaled(v.x, scale, norm.w.x, norm.bias.x);
      v.y = Scaled(v.y, scale, norm.w.y, norm.bias.y);
      v.z = Scaled(v.z, scale, norm.w.z, norm.bias.z);
      v.w = Scaled(v.w, scale, norm.w.w, norm.bias.w);
      *at = v;
      if (first_block == 0) {
        float* whole = p.normalized + static_cast<int64_t>(first_row + row) * p.x_stride;
        reinterpret_cast<float4*>(whole)[slice * Tile::kQuads + quad] = v;
      }
    });
  }

  // ---- sums: a lane's rows are LaneRow() + 4 i, its outputs LaneColumn() + 8 j of the warp's

  // Lanes whose index differs in the lowest bit read the same weights, those that differ in the
  // next one the same inputs: so vectors of 16 bytes are read at full speed.
  __device__ static int32_t LaneRow() { return (LaneIndex() & 1) | (LaneIndex() >> 4 << 1); }
  __device__ static int32_t LaneColumn() { return LaneIndex() >> 1 & 7; }
  __device__ static int32_t WarpColumn() { return WarpIndex() % Tile::kColumnWarps; }
  __device__ static int32_t WarpRow() {
    return WarpIndex() / Tile::kColumnWarps * Tile::kWarpRows + LaneRow();
  }

  using Sums = float[kRowsEach][4];

  // Four inputs, or at the end fewer.
  __device__ static void AddInputs(const float* w, const float* x, int32_t count, Sums& sum) {
    float4 weight[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) weight[j] = *reinterpret_cast<const float4*>(w + j * 8 * 4);
    float4 value[kRowsEach];
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      value[i] = *reinterpret_cast<const float4*>(x + i * 4 * Tile::kRowStride);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k >= count) break;
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j] =
              kernels::FusedMultiplyAdd(Component(weight[j], k), Component(value[i], k), sum[i][j]);
        }
      }
    }
  }

  __device__ void AddSlice(int32_t slice, Sums& sum) const {
    const float* w = weights(slice) + WarpColumn() * Tile::kWeights + LaneColumn() * 4;
    const float* in = x(slice) + WarpRow() * Tile::kRowStride;
    const int32_t inputs = p.linear.inputs - slice * Tile::kQuads * 4;
    const int32_t whole = inputs / 4 < Tile::kQuads ? inputs / 4 : Tile::kQuads;
#pragma unroll(kRowsEach == 1 ? 4 : 2)
    for (int32_t q = 0; q < whole; ++q) {
      AddInputs(w + q * kBlockOutputs * 4, in + 4 * q, 4, sum);
    }
    if (whole < Tile::kQuads && inputs % 4 != 0) {
      AddInputs(w + whole * kBlockOutputs * 4, in + 4 * whole, inputs % 4, sum);
    }
  }

  __device__ void Store(const Sums& sum) const {
#pragma unroll
    for (int i = 0; i < kRowsEach; ++i) {
      const int32_t row = WarpRow() + 4 * i;
      if (row >= rows) continue;
      const int32_t at = first_row + row;
      const float* residual = nullptr;
      if (p.residual != nullptr) {
        const int32_t from = p.residual_rows == nullptr ? at : p.residual_rows[at];
        residual = p.residual + static_cast<int64_t>(from) * p.residual_stride;
      }
      float* out = p.out + static_cast<int64_t>(at) * p.out_stride;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int32_t o = (first_block + WarpColumn()) * kBlockOutputs + LaneColumn() + 8 * j;
        if (o >= p.linear.outputs) continue;
        float result = sum[i][j];
        if (p.hardswish) result = kernels::Hardswish(result);
        if (residual != nullptr) result = result + residual[o];
        out[o] = result;
      }
    }
  }

  __device__ void Run() const {
    const int32_t slices = (quads() + Tile::kQuads - 1) / Tile::kQuads;
#pragma unroll
    for (int s = 0; s + 1 < Tile::kStages; ++s) Begin(s);
    NormQuad norm = {};
    if (p.norm != nullptr) {
      norm = LoadNorm(0);
      FindScales();
      __syncthreads();
    }
    Sums sum;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int32_t o = (first_block + WarpColumn()) * kBlockOutputs + LaneColumn() + 8 * j;
      const float bias = o < p.linear.outputs ? __ldg(p.linear.bias + o) : 0.0f;
#pragma unroll
      for (int i = 0; i < kRowsEach; ++i) sum[i][j] = bias;
    }
    for (int32_t slice = 0; slice < slices; ++slice) {
      AwaitCopies<Tile::kStages - 2>();
      if (p.norm != nullptr) Normalize(slice, norm);
      __syncthreads();  // the slice is here, and everybody is done with the one before
      Begin(slice + Tile::kStages - 1);
      if (p.norm != nullptr) norm = LoadNorm(slice + 1);
      AddSlice(slice, sum);
    }
    Store(sum);
  }
};

template <int kRowsEach>
__global__ void __launch_bounds__(ProductTile<kRowsEach>::kThreads, 4)
    MultiplyRows(const __grid_constant__ Product p) {
  using Tile = ProductTile<kRowsEach>;
  const int32_t tile = static_cast<int32_t>(blockIdx.x);
  const int32_t first_row = tile % p.row_tiles * Tile::kRows;
  const int32_t rows = *p.rows - first_row;
  if (rows <= 0) return;
  auto* stages = SharedMemory<float>();
  const ProductBlock<kRowsEach> block = {
      p,
      first_row,
      tile / p.row_tiles * Tile::kColumnWarps,
      rows < Tile::kRows ? rows : Tile::kRows,
      stages,
      reinterpret_cast<RowScale*>(stages + Tile::kStages * Tile::kStageFloats)};
  block.Run();
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_LAYER_PRODUCT_INL_H_
