// A chunk of a batch's events on its way through a model by several kernels per layer: what they
// share. A row is an event; the rows of a chunk are in the order of the events.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_LAYER_CHUNK_H_
#define TIM4REC_MODEL_KERNELS_CUDA_LAYER_CHUNK_H_

#include <cstddef>

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/fold_layout.h"

namespace tim4rec::cuda {

// The rows of one run. In the last layer the last of them goes on alone, also where the run goes on
// in the next chunk, as if two calls folded it: so many rows are then left as there are segments.
struct ChunkSegment {
  kernels::StateHeader* state;
  const float* writes;  // the first row's of the first layer, or null
  int32_t first_row, rows;
};

struct ChunkCounts {
  int32_t segments, rows;
};

// ---- a tile of a segment's rows, in floats from its beginning: what a block has of a layer's
// state update

TIM4REC_KERNEL_FUNCTION int32_t Padded(int32_t width) { return (width + 3) / 4 * 4; }

struct StateTilePlaces {
  int32_t mixed;                // [rows][Padded(C)]: x, B and C after the convolution
  int32_t y;                    // [rows][Padded(E)]
  int32_t hidden;               // [rows][M]
  int32_t scale, first;         // [K-1 + rows][H]: what the time convolutions read
  int32_t delta, carry;         // [rows][H]
  int32_t gap_ms, gap_feature;  // [rows]
  int32_t floats;
};

TIM4REC_KERNEL_FUNCTION StateTilePlaces PlaceStateTile(const kernels::Dims& dims, int32_t rows) {
  StateTilePlaces at = {};
  const int32_t times = dims.time_write ? dims.k - 1 + rows : 0;
  at.y = at.mixed + rows * Padded(Channels(dims));
  at.hidden = at.y + rows * Padded(dims.e);
  at.scale = at.hidden + (dims.time_write ? rows * dims.m : 0);
  at.first = at.scale + times * dims.h;
  at.delta = at.first + times * dims.h;
  at.carry = at.delta + rows * dims.h;
  at.gap_ms = at.carry + rows * dims.h;
  at.gap_feature = at.gap_ms + rows;
  at.floats = Padded(at.gap_feature + rows);
  return at;
}

inline constexpr int32_t kTileRows = 16;
// So that two blocks share a multiprocessor of 164 KiB, three one of 228.
inline constexpr size_t kTileSharedBytes = 72 << 10;

// Rows of a tile in shared memory; 0 where it holds none: tiles of one row are in the workspace.
inline int32_t StateTileRows(const kernels::Dims& dims) {
  int32_t rows = kTileRows;
  const auto bytes = [&] {
    return sizeof(float) * static_cast<size_t>(PlaceStateTile(dims, rows).floats);
  };
  while (rows > 0 && bytes() > kTileSharedBytes) --rows;
  return rows;
}

// ---- the workspace

// Floats of a row.
struct ChunkStrides {
  int32_t x, wide, y, tile;
};

inline ChunkStrides StridesOf(const kernels::Dims& dims) {
  const int32_t widest = dims.ffn && dims.f > dims.projections() ? dims.f : dims.projections();
  return {Padded(dims.d), Padded(widest), Padded(dims.e),
          StateTileRows(dims) > 0 ? 0 : PlaceStateTile(dims, 1).floats};
}

struct ChunkArguments {
  kernels::Dims dims;
  ModelPlaces at;
  const float *weights, *embedding;
  const DeviceRun* runs;  // these two may be host memory: only the chunk's first kernel reads them
  int32_t run_count;
  const kernels::Event* events;
  const float* writes;  // of windows, [run][layers][L][H] from WindowWrites; else null
  int32_t begin;        // the chunk's first event
  int32_t most_rows;
  ChunkStrides strides;
  int32_t tile_rows;
  StateTilePlaces tile;
  // In the workspace.
  ChunkCounts* counts;
  kernels::Event* row_events;
  ChunkSegment* segments;  // without gaps, in order
  int32_t* last_rows;      // [segments]
  float* x;                // [rows][D]: a normalised input, until it is added again
  float* v;                // [rows][D]: the sum that is normalised next
  float* wide;             // [rows][2E+2N+H]: z, raw xBC, dt; later [rows][F]
  float* y;                // [rows][E]: normalised
  float* tiles;            // [rows], see StateTileRows

  __host__ __device__ const float* layer(int32_t l) const {
    return weights + at.layers + l * at.layer_floats;
  }
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_LAYER_CHUNK_H_
