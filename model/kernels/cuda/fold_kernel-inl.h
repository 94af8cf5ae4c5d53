// The fold of a batch: every block takes its share of the runs, in tiles of rows.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_KERNEL_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_KERNEL_INL_H_

#include "model/kernels/cuda/fold_tile-inl.h"

namespace tim4rec::cuda {

// One warp for each 32 outputs of ServedShape's input projection, and one for what goes on beside.
inline constexpr int kFoldThreads = 384;

template <int kRows>
TIM4REC_KERNEL_FUNCTION size_t IndexBytes() {
  return (sizeof(TileIndex<kRows>) + 127) / 128 * 128;
}

// ---- which runs are this block's

// The first run that begins at `event` or later, found by a warp.
__device__ inline int32_t FirstRunFrom(const DeviceRun* runs, int32_t count, uint32_t event) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t step = (high - low + 31) / 32;
    const int32_t probe = low + LaneIndex() * step + step - 1;
    const bool before = probe < high && static_cast<uint32_t>(runs[probe].first_event) < event;
    const int32_t skipped = __popc(__ballot_sync(kAllLanes, before));
    low += skipped * step;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  return low < count ? low : count;
}

// The events that the block folds, in tiles of nearly equal sizes.
struct Share {
  int32_t begin, end, tiles, most_rows;
};

// Runs whose first event lies in the block's part of all events.
template <int kRows>
__device__ Share FindShare(const FoldArguments& a, TileIndex<kRows>* index) {
  const DeviceRun last = a.runs[a.run_count - 1];
  const uint32_t total = static_cast<uint32_t>(last.first_event + last.count);
  const uint32_t part = (total + gridDim.x - 1) / gridDim.x;
  if (WarpIndex() < 2) {
    const uint32_t index_of_block = blockIdx.x + static_cast<uint32_t>(WarpIndex());
    const int32_t run = FirstRunFrom(a.runs, a.run_count, index_of_block * part);
    const int32_t event = run < a.run_count ? a.runs[run].first_event : static_cast<int32_t>(total);
    if (LaneIndex() == 0) {
      (WarpIndex() == 0 ? index->next_run : index->run_end) = run;
      (WarpIndex() == 0 ? index->begin : index->end) = event;
    }
  }
  __syncthreads();
  Share share;
  share.begin = index->begin;
  share.end = index->end;
  const int32_t events = share.end - share.begin;
  share.tiles = (events + kRows - 1) / kRows;
  share.most_rows = share.tiles == 0 ? 0 : (events + share.tiles - 1) / share.tiles;
  return share;
}

// By one warp: the tile of the events [begin, end). index->next_run is the first run that may have
// some of them, and moves on.
template <int kRows>
__device__ void IndexTile(const FoldArguments& a, int32_t begin, int32_t end,
                          TileIndex<kRows>* index) {
  int32_t run = index->next_run;
  __syncwarp();
  int32_t segments = 0, kept = 0;
  const uint32_t lower_lanes = (1u << LaneIndex()) - 1;
  for (bool more = true; more;) {
    const int32_t i = run + LaneIndex();
    DeviceRun candidate = {nullptr, end, 1};
    if (i < index->run_end) candidate = a.runs[i];
    const int32_t run_end = candidate.first_event + candidate.count;
    const int32_t first = candidate.first_event > begin ? candidate.first_event : begin;
    const int32_t last = run_end < end ? run_end : end;
    const uint32_t overlapping = __ballot_sync(kAllLanes, first < last);
    const uint32_t ending = __ballot_sync(kAllLanes, first < last && run_end <= end);
    const uint32_t past = __ballot_sync(kAllLanes, run_end <= end);
    if (first < last) {
      const int32_t place = segments + __popc(overlapping & lower_lanes);
      Segment& segment = index->segments[place];
      segment.state = candidate.state;
      segment.first_row = first - begin;
      segment.rows = last - first;
      segment.first_event = first;
      segment.ends = run_end <= end;
      segment.writes = nullptr;
      if (a.writes != nullptr) {
        const int64_t run_writes = static_cast<int64_t>(a.dims.layers) * a.dims.window * a.dims.h;
        segment.writes =
            a.writes + i * run_writes + (first - candidate.first_event) * int64_t{a.dims.h};
      }
      for (int32_t row = first - begin; row < last - begin; ++row) index->segment_of[row] = place;
      if (segment.ends) {
        index->keep[kept + __popc(ending & lower_lanes)] = last - begin - 1;
      }
    }
    segments += __popc(overlapping);
    kept += __popc(ending);
    run += __popc(past);
    more = past == kAllLanes;
  }
  if (LaneIndex() == 0) {
    index->count = segments;
    index->rows = end - begin;
    index->kept = kept;
    index->next_run = run;
  }
}

// ---- staged weights: the Linears' blocks, brought to shared memory two Linears ahead

TIM4REC_KERNEL_FUNCTION int64_t Larger(int64_t x, int64_t y) { return x > y ? x : y; }

// Floats of the two halves: of in_proj and fc1, of out_proj and fc2.
TIM4REC_KERNEL_FUNCTION int64_t StageFloats(const ServedShape& s, bool ffn, int half) {
  if (half == 0) {
    const int64_t in = LinearFloats(s.d, Projections(s));
    return ffn ? Larger(in, LinearFloats(s.d, s.f)) : in;
  }
  const int64_t out = LinearFloats(s.e, s.d);
  return ffn ? Larger(out, LinearFloats(s.f, s.d)) : out;
}

// Gives each Linear's weights in the order of their use: where they are in device memory, or
// staged.
template <bool kStaged>
class WeightStream {
 public:
  // `stage` is shared memory for both halves. Begins with the first layer's.
  __device__ WeightStream(const FoldArguments& a, float* stage)
      : a_(a), stage_(stage), parts_(a.dims.ffn ? 4 : 2), all_(parts_) {
    if constexpr (kStaged) {
      Begin(0);
      Begin(1);
    }
  }
  __device__ void SetTiles(int32_t tiles) { all_ = tiles * a_.dims.layers * parts_; }

  // Before the barrier in front of a Linear, the one before it released; or, where that is not yet
  // so, with AwaitAll.
  __device__ void Await() const {
    if constexpr (kStaged) AwaitCopies<1>();
  }
  __device__ void AwaitAll() const {
    if constexpr (kStaged) AwaitCopies<0>();
  }

  // After that barrier: those of a layer's part, which is the next one in order.
  __device__ const float* Weights(int32_t l, int32_t part) const {
    if constexpr (kStaged) return Staged(next_);
    return In(l, part);
  }

  // After the barrier behind it.
  __device__ void Release() {
    if constexpr (kStaged) {
      Begin(next_ + 2);
      ++next_;
    }
  }

 private:
  __device__ const float* In(int32_t l, int32_t part) const {
    const LayerPlaces& at = a_.at.layer;
    return a_.weights + a_.at.layers + l * a_.at.layer_floats +
           (part == 0   ? at.in_proj
            : part == 1 ? at.out_proj
            : part == 2 ? at.fc1
                        : at.fc2);
  }

  __device__ int32_t Floats(int32_t part) const {
    const ServedShape& s = a_.shape;
    return static_cast<int32_t>(part == 0   ? LinearFloats(s.d, Projections(s))
                                : part == 1 ? LinearFloats(s.e, s.d)
                                : part == 2 ? LinearFloats(s.d, s.f)
                                            : LinearFloats(s.f, s.d));
  }

  __device__ float* Staged(int32_t i) const {
    return i % 2 == 0 ? stage_ : stage_ + StageFloats(a_.shape, a_.dims.ffn, 0);
  }

  __device__ void Begin(int32_t i) {
    if (i < all_) {
      const float* from = In(i / parts_ % a_.dims.layers, i % parts_);
      float* to = Staged(i);
      const int32_t floats = Floats(i % parts_);
      for (int32_t at = static_cast<int32_t>(threadIdx.x) * 4; at < floats;
           at += static_cast<int32_t>(blockDim.x) * 4) {
        CopyAsync16(to + at, from + at);
      }
    }
    CommitCopies();
  }

  const FoldArguments& a_;
  float* const stage_;
  const int32_t parts_;
  int32_t all_;
  int32_t next_ = 0;
};

// ---- the kernel

// Rules 7 to 12 for one layer.
template <int kRows, bool kStaged>
__device__ __forceinline__ void FoldLayer(const Tile<kRows>& tile, int32_t l,
                                          WeightStream<kStaged>& weights) {
  const FoldArguments& a = tile.a;
  // The last warp has the time functions meanwhile, which need the gaps alone.
  const int32_t projecting = a.dims.time_write ? Warps() - 1 : Warps();
  if (WarpIndex() < projecting) {
    tile.Project(l, weights.Weights(l, 0), projecting);
  } else {
    tile.ModulateWrites(l);
  }
  __syncthreads();
  weights.Release();
  const int32_t convolving = static_cast<int32_t>(blockDim.x) - 32;
  if (static_cast<int32_t>(threadIdx.x) < convolving) {
    tile.ConvolveSegments(l, convolving);
  } else {
    tile.DecayRows(l);
  }
  __syncthreads();
  tile.UpdateSegments(l);
  __syncthreads();
  tile.PrefetchFirst(l + 1);
  tile.NormalizeMixed(l);
  weights.Await();
  __syncthreads();
  tile.ProjectOut(l, weights.Weights(l, 1));
  __syncthreads();
  weights.Release();
  tile.NormalizeRows(tile.KeptRows(l), tile.layer(l) + a.at.layer.layer_norm,
                     tile.layer(l) + a.at.layer.layer_norm_bias, a.dims.norm_eps);
  weights.Await();
  __syncthreads();
  if (!a.dims.ffn) return;
  tile.Widen(l, weights.Weights(l, 2));
  weights.AwaitAll();
  __syncthreads();
  weights.Release();
  tile.Narrow(l, weights.Weights(l, 3));
  __syncthreads();
  weights.Release();
  constexpr float kFfnNormEps = 1e-12f;
  tile.NormalizeRows(tile.KeptRows(l), tile.layer(l) + a.at.layer.ffn_norm,
                     tile.layer(l) + a.at.layer.ffn_norm_bias, kFfnNormEps);
  weights.Await();
  __syncthreads();
}

// Shared memory: the index, the tile, the stage.
template <int kRows, bool kStaged>
__global__ void __launch_bounds__(kFoldThreads, kRows == 16 ? 2 : 1)
    FoldRuns(const __grid_constant__ FoldArguments a) {
  auto* index = SharedMemory<TileIndex<kRows>>();
  auto* values = reinterpret_cast<float*>(SharedMemory<char>() + IndexBytes<kRows>());
  const TilePlaces places = PlaceTile(a.shape, kRows);
  const Tile<kRows> tile = {a, places, values, index};
  WeightStream<kStaged> weights(a, values + places.floats);
  const Share share = FindShare(a, index);
  weights.SetTiles(share.tiles);
  if (share.tiles == 0) weights.AwaitAll();
  for (int32_t begin = share.begin; begin < share.end; begin += share.most_rows) {
    const int32_t left = share.end - begin;
    const int32_t end = begin + (left < share.most_rows ? left : share.most_rows);
    if (WarpIndex() == 0) IndexTile(a, begin, end, index);
    __syncthreads();
    tile.PrefetchFirst(0);
    tile.Begin();
    weights.Await();
    __syncthreads();
    for (int32_t l = 0; l < a.dims.layers; ++l) FoldLayer<kRows, kStaged>(tile, l, weights);
    tile.End();
    __syncthreads();
  }
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_KERNEL_INL_H_
