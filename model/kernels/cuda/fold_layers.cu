// The fold of models of any sizes, by kernels per layer that spread a chunk's rows and a layer's
// outputs over all multiprocessors.
#include <type_traits>

#include "model/kernels/cuda/fold_batch.h"
#include "model/kernels/cuda/layer_product-inl.h"
#include "model/kernels/cuda/layer_state-inl.h"

namespace tim4rec::cuda {
namespace {

constexpr unsigned kRowThreads = 256;
constexpr int32_t kRowHalves = kRowThreads / 16;
constexpr float kFfnNormEps = 1e-12f;

// Enough rows for the largest step and for runs to share a chunk, in not more memory than this.
constexpr int64_t kMostChunkRows = 8192;
constexpr size_t kChunkBytes = size_t{64} << 20;

// ---- the first kernel: which rows there are, and rule 6

// The first run that ends after `event`; the count if none does.
__device__ int32_t FirstRunBeyond(const DeviceRun* runs, int32_t count, int32_t event) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (runs[middle].first_event + runs[middle].count > event) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The chunk's rows, if the batch has so many events.
__device__ int32_t ChunkRows(const ChunkArguments& a) {
  const DeviceRun last = a.runs[a.run_count - 1];
  const int32_t left = last.first_event + last.count - a.begin;
  return left < 0 ? 0 : left < a.most_rows ? left : a.most_rows;
}

// By one block: the segments, in order.
__device__ void PlanSegments(const ChunkArguments& a, int32_t rows) {
  constexpr int32_t kThreads = kRowThreads, kWarps = kThreads / 32;
  constexpr int kAhead = 4;  // runs that a thread reads at once, as they may be far away
  auto* shared = SharedMemory<int32_t>();  // [kWarps] segments of a warp, and where the runs begin
  const int32_t t = static_cast<int32_t>(threadIdx.x), end = a.begin + rows;
  int32_t segments = 0;
  int32_t first = a.begin == 0 ? 0 : FirstRunBeyond(a.runs, a.run_count, a.begin);
  for (bool more = true; more && first < a.run_count; first += kAhead * kThreads) {
    DeviceRun run[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t index = first + i * kThreads + t;
      run[i] = index < a.run_count ? a.runs[index] : DeviceRun{nullptr, end, 0};
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int32_t run_end = run[i].first_event + run[i].count;
      const int32_t from = run[i].first_event > a.begin ? run[i].first_event : a.begin;
      const int32_t to = run_end < end ? run_end : end;
      const uint32_t here = __ballot_sync(kAllLanes, from < to);
      if (LaneIndex() == 0) shared[WarpIndex()] = __popc(here);
      if (t + 1 == kThreads) shared[kWarps] = run[i].first_event;
      __syncthreads();
      int32_t place = segments + __popc(here & ((1u << LaneIndex()) - 1));
      for (int32_t warp = 0; warp < kWarps; ++warp) {
        if (warp < WarpIndex()) place += shared[warp];
        segments += shared[warp];
      }
      more = shared[kWarps] < end;
      if (from < to) {
        const float* writes = nullptr;
        if (a.writes != nullptr) {
          const int64_t run_writes = static_cast<int64_t>(a.dims.layers) * a.dims.window * a.dims.h;
          writes = a.writes + (first + i * kThreads + t) * run_writes +
                   (from - run[i].first_event) * static_cast<int64_t>(a.dims.h);
        }
        a.segments[place] = {run[i].state, writes, from - a.begin, to - from};
        a.last_rows[place] = to - a.begin - 1;
      }
      __syncthreads();
    }
  }
  if (t == 0) *a.counts = {segments, rows};
}

// Block 0 plans, the others have a row per half warp.
__global__ void __launch_bounds__(kRowThreads) BeginRows(const __grid_constant__ ChunkArguments a) {
  const int32_t rows = ChunkRows(a);
  if (blockIdx.x == 0) return PlanSegments(a, rows);
  const int32_t row =
      (static_cast<int32_t>(blockIdx.x) - 1) * kRowHalves + static_cast<int32_t>(threadIdx.x / 16);
  const bool valid = row < rows;
  kernels::Event event = {0, 0};
  if (valid) event = a.events[a.begin + row];
  const float* embedding = a.embedding + static_cast<int64_t>(event.item) * a.dims.d;
  const float *w = a.weights + a.at.in_norm, *bias = a.weights + a.at.in_norm_bias;
  const RowScale scale = ScaleOfRow(valid, embedding, a.dims.d, a.dims.norm_eps);
  if (!valid) return;
  if (HalfLane() == 0) a.row_events[row] = event;
  float* x = a.x + static_cast<int64_t>(row) * a.strides.x;
  for (int32_t i = HalfLane(); i < a.dims.d; i += 16) {
    x[i] = Scaled(embedding[i], scale, w[i], bias[i]);
  }
}

// ---- the last kernel: rule 13, and the headers

// A segment per half warp.
__global__ void __launch_bounds__(kRowThreads) EndRows(const __grid_constant__ ChunkArguments a) {
  const int32_t i =
      static_cast<int32_t>(blockIdx.x) * kRowHalves + static_cast<int32_t>(threadIdx.x / 16);
  const bool valid = i < a.counts->segments;
  const float* v = a.v + static_cast<int64_t>(valid ? i : 0) * a.strides.x;
  const float* layer = a.layer(a.dims.layers - 1);
  const float *w = layer + a.at.layer.layer_norm, *bias = layer + a.at.layer.layer_norm_bias;
  float eps = a.dims.norm_eps;
  if (a.dims.ffn) {
    w = layer + a.at.layer.ffn_norm;
    bias = layer + a.at.layer.ffn_norm_bias;
    eps = kFfnNormEps;
  }
  const RowScale scale = ScaleOfRow(valid, v, a.dims.d, eps);
  if (!valid) return;
  const ChunkSegment segment = a.segments[i];
  float* output = reinterpret_cast<float*>(segment.state + 1) + a.dims.output_offset;
  for (int32_t d = HalfLane(); d < a.dims.d; d += 16) {
    output[d] = Scaled(v[d], scale, w[d], bias[d]);
  }
  if (HalfLane() == 0) {
    segment.state->last_timestamp_ms =
        a.row_events[segment.first_row + segment.rows - 1].timestamp_ms;
    segment.state->folded_events += segment.rows;
  }
}

// ---- the workspace

int64_t RowBytes(const kernels::Dims& dims) {
  const ChunkStrides s = StridesOf(dims);
  const int64_t floats = int64_t{2} * s.x + s.wide + s.y + s.tile + 1;
  return static_cast<int64_t>(sizeof(float)) * floats +
         static_cast<int64_t>(sizeof(kernels::Event) + sizeof(ChunkSegment));
}

int32_t MostRows(const kernels::Dims& dims) {
  const int64_t fit = static_cast<int64_t>(kChunkBytes) / RowBytes(dims);
  const int64_t rows = fit < kMostChunkRows ? fit : kMostChunkRows;
  return static_cast<int32_t>(rows < 64 ? 64 : rows / 64 * 64);
}

// Every part begins at a multiple of 256 bytes, as rows are multiples of 64.
void PlaceWorkspace(void* workspace, ChunkArguments* a) {
  auto* next = static_cast<char*>(workspace);
  const auto take = [&](auto** part, size_t each, int64_t count) {
    *part = reinterpret_cast<std::remove_reference_t<decltype(*part)>>(next);
    next += each * static_cast<size_t>(count);
  };
  const int64_t rows = a->most_rows;
  take(&a->row_events, sizeof(kernels::Event), rows);
  take(&a->segments, sizeof(ChunkSegment), rows);
  take(&a->last_rows, sizeof(int32_t), rows);
  take(&a->x, sizeof(float), rows * a->strides.x);
  take(&a->v, sizeof(float), rows * a->strides.x);
  take(&a->wide, sizeof(float), rows * a->strides.wide);
  take(&a->y, sizeof(float), rows * a->strides.y);
  if (a->strides.tile > 0) take(&a->tiles, sizeof(float), rows * a->strides.tile);
  take(&a->counts, sizeof(ChunkCounts), 1);
}

// ---- the launches of a chunk

class ChunkLauncher {
 public:
  ChunkLauncher(const FoldModel& model, const FoldBatch& batch, Stream stream)
      : multiprocessors_(model.multiprocessors), stream_(stream) {
    a_.dims = model.dims;
    a_.at = model.places;
    a_.weights = model.weights;
    a_.embedding = model.embedding;
    a_.runs = batch.runs;
    a_.run_count = batch.run_count;
    a_.events = batch.events;
    a_.writes = batch.writes;
    a_.most_rows = MostRows(model.dims);
    a_.strides = StridesOf(model.dims);
    const int32_t tile_rows = StateTileRows(model.dims);
    a_.tile_rows = tile_rows > 0 ? tile_rows : 1;
    a_.tile = PlaceStateTile(a_.dims, a_.tile_rows);
    PlaceWorkspace(batch.workspace, &a_);
    if (a_.tiles == nullptr) tile_bytes_ = sizeof(float) * static_cast<size_t>(a_.tile.floats);
  }

  int32_t most_rows() const { return a_.most_rows; }

  // Of the events from `begin` on, at most `rows`.
  Fault Fold(int32_t begin, int32_t rows) {
    a_.begin = begin;
    rows_ = rows < a_.most_rows ? rows : a_.most_rows;
    segments_ = rows_ < a_.run_count ? rows_ : a_.run_count;
    constexpr size_t kPlanBytes = (kRowThreads / 32 + 1) * sizeof(int32_t);
    Start(BeginRows, {1 + Blocks16(rows_), kRowThreads, kPlanBytes}, a_);
    for (int32_t l = 0; l < a_.dims.layers; ++l) FoldLayer(l);
    Start(EndRows, {Blocks16(segments_), kRowThreads, 0}, a_);
    return fault_;
  }

 private:
  static unsigned Blocks16(int32_t count) {
    return static_cast<unsigned>((count + kRowHalves - 1) / kRowHalves);
  }

  // Nothing more is started after a fault.
  template <typename... Parameters, typename... Arguments>
  void Start(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
    if (fault_ == nullptr) fault_ = Launch(kernel, grid, stream_, arguments...);
  }

  void FoldLayer(int32_t l) {
    const kernels::Dims& s = a_.dims;
    const LayerPlaces& at = a_.at.layer;
    const ChunkStrides& strides = a_.strides;
    const bool last = l + 1 == s.layers;
    const int32_t kept = last ? segments_ : rows_;
    const int32_t* kept_count = last ? &a_.counts->segments : &a_.counts->rows;
    const float* w = a_.layer(l);

    Product in = {};
    in.linear = {w + at.in_proj, w + at.in_proj_bias, s.d, Projections(s)};
    SetInput(l > 0 ? a_.v : a_.x, strides.x, &a_.counts->rows, &in);
    if (l > 0) SetNorm(l - 1, s.ffn, &in);
    SetOutput(a_.wide, strides.wide, &in);
    Multiply(in, rows_);

    Start(UpdateLayer, {static_cast<unsigned>(segments_), kStateThreads, tile_bytes_}, a_, l);

    Product out = {};
    out.linear = {w + at.out_proj, w + at.out_proj_bias, s.e, s.d};
    SetInput(a_.y, strides.y, kept_count, &out);
    if (s.layers > 1) SetResidual(last ? a_.last_rows : nullptr, &out);
    SetOutput(a_.v, strides.x, &out);
    Multiply(out, kept);
    if (!s.ffn) return;

    Product widen = {};
    widen.linear = {w + at.fc1, w + at.fc1_bias, s.d, s.f};
    SetInput(a_.v, strides.x, kept_count, &widen);
    SetNorm(l, /*ffn=*/false, &widen);
    widen.hardswish = true;
    SetOutput(a_.wide, strides.wide, &widen);
    Multiply(widen, kept);

    Product narrow = {};
    narrow.linear = {w + at.fc2, w + at.fc2_bias, s.f, s.d};
    SetInput(a_.wide, strides.wide, kept_count, &narrow);
    SetResidual(nullptr, &narrow);
    SetOutput(a_.v, strides.x, &narrow);
    Multiply(narrow, kept);
  }

  static void SetInput(const float* x, int32_t stride, const int32_t* rows, Product* product) {
    product->x = x;
    product->x_stride = stride;
    product->rows = rows;
  }
  static void SetOutput(float* out, int32_t stride, Product* product) {
    product->out = out;
    product->out_stride = stride;
  }
  // The norm after a layer's mixing, or after its feed-forward part.
  void SetNorm(int32_t l, bool ffn, Product* product) const {
    const LayerPlaces& at = a_.at.layer;
    product->norm = a_.layer(l) + (ffn ? at.ffn_norm : at.layer_norm);
    product->norm_bias = a_.layer(l) + (ffn ? at.ffn_norm_bias : at.layer_norm_bias);
    product->eps = ffn ? kFfnNormEps : a_.dims.norm_eps;
    product->normalized = a_.x;
  }
  void SetResidual(const int32_t* rows, Product* product) const {
    product->residual = a_.x;
    product->residual_stride = a_.strides.x;
    product->residual_rows = rows;
  }

  template <int kRowsEach>
  static int32_t SetTiles(int32_t most, Product* product) {
    using Tile = ProductTile<kRowsEach>;
    product->row_tiles = (most + Tile::kRows - 1) / Tile::kRows;
    return product->row_tiles * ((product->linear.outputs + Tile::kColumns - 1) / Tile::kColumns);
  }

  template <int kRowsEach>
  void StartProduct(int32_t tiles, const Product& product) {
    using Tile = ProductTile<kRowsEach>;
    Start(MultiplyRows<kRowsEach>,
          {static_cast<unsigned>(tiles), Tile::kThreads, Tile::kSharedBytes}, product);
  }

  // Of at most `most` rows. Large tiles read least, where they are enough to give every
  // multiprocessor something to do; small ones spread and wait for nothing but their sums' order.
  void Multiply(Product product, int32_t most) {
    const int32_t large = SetTiles<8>(most, &product);
    if (2 * large >= 3 * multiprocessors_) return StartProduct<8>(large, product);
    const int32_t small = SetTiles<1>(most, &product);
    StartProduct<1>(small, product);
  }

  const int32_t multiprocessors_;
  const Stream stream_;
  ChunkArguments a_ = {};
  size_t tile_bytes_ = 0;
  int32_t rows_ = 0, segments_ = 0;  // at most
  Fault fault_ = nullptr;
};

}  // namespace

Fault FoldLayers(const FoldModel& model, const FoldBatch& batch, Stream stream) {
  ChunkLauncher launcher(model, batch, stream);
  Fault fault = nullptr;
  for (int64_t begin = 0; begin < batch.most_events && fault == nullptr;
       begin += launcher.most_rows()) {
    const auto first = static_cast<int32_t>(begin);
    fault = launcher.Fold(first, batch.most_events - first);
  }
  return fault;
}

size_t FoldLayersWorkspaceBytes(const kernels::Dims& dims) {
  return static_cast<size_t>(MostRows(dims) * RowBytes(dims)) + sizeof(ChunkCounts);
}

}  // namespace tim4rec::cuda
