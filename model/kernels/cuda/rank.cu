#include "model/kernels/cuda/rank.h"

#include <algorithm>
#include <functional>

#include "model/kernels/cuda/rank_parts.h"

namespace tim4rec::cuda {
namespace {

using ranking::Batch;
using ranking::Place;
using ranking::PlaceState;
using ranking::Slab;
using ranking::Survivor;

constexpr int32_t kGroup = ranking::kGroup;
constexpr int64_t kAligned = 256;
// Tables of more tiles have a sample of every 32nd tile scanned first.
constexpr int32_t kDirectTiles = 2048;
constexpr int32_t kTileStep = 32;

int64_t Aligned(int64_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

// ---- the table

struct TableStats {
  unsigned long long residual,
      code_norm;  // largest sums of squares: bits of doubles, none negative
  unsigned largest_scale;
};

struct TableParts {
  int64_t codes, inverse_scales, stats, bytes;
};

TableParts PartsOf(int32_t items, int32_t d) {
  const int64_t padded = static_cast<int64_t>(ranking::Tiles(items)) * kItemTile;
  TableParts parts;
  parts.codes = 0;
  parts.inverse_scales = Aligned(padded * ranking::Steps(d) * 32);
  parts.stats = parts.inverse_scales + Aligned(padded * 4);
  parts.bytes = parts.stats + Aligned(sizeof(TableStats));
  return parts;
}

__device__ void RaiseTo(unsigned long long* at, double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof(bits));
  atomicMax(at, bits);
}

// A thread per item, those after the last included; as kernels::QuantizeItems.
__global__ void __launch_bounds__(ranking::kThreads)
    QuantizeTable(ItemTable table, uint8_t* codes, float* inverse_scales, TableStats* stats) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * ranking::kThreads + threadIdx.x;
  if (item >= static_cast<int64_t>(ranking::Tiles(table.items)) * kItemTile) return;
  const bool exists = item < table.items;
  const float* row = table.embedding + item * table.d;
  float largest = 0.0f;
  for (int32_t i = 0; exists && i < table.d; ++i) {
    const float magnitude = kernels::Magnitude(row[i]);
    if (magnitude > largest) largest = magnitude;
  }
  float scale = kernels::Divide(largest, 127.0f);
  if (scale < 0x1p-80f) scale = 0x1p-80f;
  inverse_scales[item] = exists ? kernels::Divide(1.0f, scale) : 0.0f;

  const int32_t steps = ranking::Steps(table.d);
  const auto in_tile = static_cast<int32_t>(item % kItemTile);
  auto* words = reinterpret_cast<uint32_t*>(codes) +
                ((item / kItemTile * 4 + in_tile % 8 / 2) * steps * 32 + in_tile / 8 * 4) * 4 +
                in_tile % 2;
  double difference_squares = 0, code_squares = 0;
  for (int32_t first = 0; first < steps * 32; first += 4) {
    uint32_t word = 0;
    for (int32_t i = first; exists && i < first + 4 && i < table.d; ++i) {
      const double exact = static_cast<double>(row[i]) / static_cast<double>(scale);
      double code = rint(exact);
      if (code > 127) code = 127;
      if (code < -127) code = -127;
      difference_squares += (exact - code) * (exact - code);
      code_squares += code * code;
      word |= (static_cast<uint32_t>(static_cast<int32_t>(code)) & 255) << (8 * (i - first));
    }
    const int32_t k = first % 32;
    words[(first / 32 * 32 + k % 16 / 4) * 4 + k / 16 * 2] = word;
  }
  if (!exists) return;
  RaiseTo(&stats->residual, difference_squares);
  RaiseTo(&stats->code_norm, code_squares);
  atomicMax(&stats->largest_scale, kernels::BitsOf(scale));
}

// ---- a batch's memory

int32_t CapacityFor(int32_t most_k) { return most_k <= 256 ? 4096 : 8192; }

// Few queries get room for many exact parts, so that all multiprocessors work for each.
int64_t BufferFor(int32_t count, int32_t most_k) {
  const int64_t capacity = CapacityFor(most_k);
  return count <= 64 ? std::max<int64_t>(capacity, int64_t{64} * most_k) : capacity;
}

// Offsets of what is copied to the device, and behind it of what is only there.
struct MemoryParts {
  int64_t redo, slabs, places, host_bytes;
  int64_t states, codes, limits, steps, survivors, device_bytes;
};

MemoryParts Carve(int32_t d, int32_t count, int32_t most_k) {
  const int64_t places = int64_t{kGroup} * count;  // every query in a group of its own
  MemoryParts parts;
  int64_t used = 0;
  const auto take = [&used](int64_t bytes) {
    const int64_t at = used;
    used += Aligned(bytes);
    return at;
  };
  parts.redo = take(4 * (int64_t{count} + 1));  // their number first
  parts.slabs = take(count * int64_t{sizeof(Slab)});
  parts.places = take(places * int64_t{sizeof(Place)});
  parts.host_bytes = used;
  parts.states = take(places * int64_t{sizeof(PlaceState)});
  parts.codes = take(count * int64_t{512} * ranking::Pairs(d));
  parts.limits = take(places * 8);
  parts.steps = take(places * 4);
  parts.survivors = take(count * BufferFor(count, most_k) * int64_t{sizeof(Survivor)});
  parts.device_bytes = used;
  return parts;
}

// ---- a batch's plan, in host memory

struct Plan {
  int32_t groups = 0, slabs = 0, places = 0, redo = 0;
};

// Orders the queries into groups of one boost each, and the groups into slabs; those with
// candidates come behind the groups and are ranked exactly. Writes redo, slabs and places.
Plan PlanBatch(const kernels::TopKQuery* queries, int32_t count, int32_t most_groups,
               int32_t* redo_and_count, Slab* slabs, Place* places) {
  int32_t* order = redo_and_count + 1;  // as long as it is needed
  for (int32_t i = 0; i < count; ++i) order[i] = i;
  std::sort(order, order + count, [queries](int32_t i, int32_t j) {
    const kernels::TopKQuery &a = queries[i], &b = queries[j];
    if (a.candidates_only != b.candidates_only) return b.candidates_only;
    if (a.boost != b.boost) return std::less<const float*>()(a.boost, b.boost);
    return i < j;
  });
  Plan plan;
  const auto fill_group = [&] {
    while (plan.places % kGroup != 0) places[plan.places++] = Place{{}, -1};
  };
  int32_t next = 0;
  for (; next < count && !queries[order[next]].candidates_only; ++next) {
    const kernels::TopKQuery& query = queries[order[next]];
    const bool same = plan.slabs > 0 && slabs[plan.slabs - 1].boost == query.boost;
    if (!same) fill_group();
    if (plan.places % kGroup == 0) {
      if (!same || slabs[plan.slabs - 1].groups == most_groups) {
        slabs[plan.slabs++] = Slab{query.boost, plan.groups, 0};
      }
      ++slabs[plan.slabs - 1].groups;
      ++plan.groups;
    }
    places[plan.places++] = Place{query, order[next]};
  }
  fill_group();
  const int32_t scanned = next;
  for (; next < count; ++next) places[plan.places++] = Place{queries[order[next]], order[next]};
  plan.redo = count - scanned;
  redo_and_count[0] = plan.redo;
  for (int32_t i = 0; i < plan.redo; ++i) redo_and_count[1 + i] = plan.places - plan.redo + i;
  return plan;
}

}  // namespace

int64_t ItemTableBytes(int32_t items, int32_t d) { return PartsOf(items, d).bytes; }

int64_t RankBoostFloats(int32_t items) {
  return static_cast<int64_t>(ranking::Tiles(items)) * kItemTile;
}

Fault BuildItemTable(const float* embedding, int32_t items, int32_t d, void* memory, Stream stream,
                     ItemTable* table) {
  const TableParts parts = PartsOf(items, d);
  auto* base = static_cast<uint8_t*>(memory);
  auto* inverse_scales = reinterpret_cast<float*>(base + parts.inverse_scales);
  auto* device_stats = reinterpret_cast<TableStats*>(base + parts.stats);
  *table = ItemTable{items, d, embedding, base + parts.codes, inverse_scales, 0, 0, 0};
  const cudaError_t cleared = cudaMemsetAsync(device_stats, 0, sizeof(TableStats), stream);
  if (cleared != cudaSuccess) return Describe(cleared);
  Grid grid;
  grid.blocks =
      static_cast<unsigned>((RankBoostFloats(items) + ranking::kThreads - 1) / ranking::kThreads);
  grid.threads = ranking::kThreads;
  const Fault launched =
      Launch(QuantizeTable, grid, stream, *table, base + parts.codes, inverse_scales, device_stats);
  if (launched != nullptr) return launched;
  TableStats stats;
  const cudaError_t copied =
      cudaMemcpyAsync(&stats, device_stats, sizeof(stats), cudaMemcpyDeviceToHost, stream);
  if (copied != cudaSuccess) return Describe(copied);
  const cudaError_t done = cudaStreamSynchronize(stream);
  if (done != cudaSuccess) return Describe(done);
  const auto norm = [](unsigned long long bits) {
    double squares;
    memcpy(&squares, &bits, sizeof(squares));
    return sqrt(squares) * (1 + 1e-6);
  };
  table->residual = static_cast<float>(norm(stats.residual) + 1e-6);
  table->code_norm = static_cast<float>(norm(stats.code_norm));
  table->largest_scale = kernels::FloatOf(stats.largest_scale);
  return nullptr;
}

RankMemory RankMemoryFor(const ItemTable& table, int32_t count, int32_t most_k) {
  const MemoryParts parts = Carve(table.d, count, most_k);
  return {parts.host_bytes, parts.device_bytes};
}

Fault Rank(const ItemTable& table, const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
           void* host, void* device, Stream stream, kernels::Scored* best, int32_t* found) {
  if (count < 1 || count > kMostRankQueries) return "Rank takes 1 to 4096 queries";
  if (most_k < 1 || most_k > kMostRanked) return "Rank takes k from 1 to 1000";
  for (int32_t i = 0; i < count; ++i) {
    if (queries[i].k < 1 || queries[i].k > most_k) return "Rank takes no k above most_k";
  }
  int device_index = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device_index);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_index);
  }
  if (error != cudaSuccess) return Describe(error);

  const MemoryParts parts = Carve(table.d, count, most_k);
  auto* from = static_cast<uint8_t*>(host);
  auto* base = static_cast<uint8_t*>(device);
  const Plan plan = PlanBatch(queries, count, ranking::MostSlabGroups(table.d),
                              reinterpret_cast<int32_t*>(from + parts.redo),
                              reinterpret_cast<Slab*>(from + parts.slabs),
                              reinterpret_cast<Place*>(from + parts.places));
  Batch batch;
  batch.table = table;
  batch.places = reinterpret_cast<const Place*>(base + parts.places);
  batch.states = reinterpret_cast<PlaceState*>(base + parts.states);
  batch.slabs = reinterpret_cast<const Slab*>(base + parts.slabs);
  batch.slab_count = plan.slabs;
  batch.group_count = plan.groups;
  batch.codes = base + parts.codes;
  batch.limits = reinterpret_cast<float4*>(base + parts.limits);
  batch.steps = reinterpret_cast<float2*>(base + parts.steps);
  batch.survivors = reinterpret_cast<Survivor*>(base + parts.survivors);
  batch.buffer = BufferFor(count, most_k);
  batch.capacity = CapacityFor(most_k);
  batch.parts = static_cast<int32_t>(std::min<int64_t>(batch.buffer / most_k, 256));
  batch.redo_count = reinterpret_cast<int32_t*>(base + parts.redo);
  batch.redo = batch.redo_count + 1;
  batch.most_k = most_k;
  batch.best = best;
  batch.found = found;

  const int64_t used = parts.places + plan.places * int64_t{sizeof(Place)};
  error = cudaMemcpyAsync(base, from, static_cast<size_t>(used), cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) {
    error = cudaMemsetAsync(batch.states, 0, static_cast<size_t>(plan.places) * sizeof(PlaceState),
                            stream);
  }
  if (error != cudaSuccess) return Describe(error);

  const auto scan = [&](int32_t tile_step) {
    const int32_t shares =
        (ranking::ScanUnits(table, tile_step) + ranking::kWarps - 1) / ranking::kWarps;
    const int32_t chunks = std::max(1, std::min(2 * processors / plan.slabs, shares));
    return ranking::Scan(batch, tile_step, chunks * plan.slabs, stream);
  };
  Fault fault = nullptr;
  if (plan.groups > 0) {
    const int32_t tiles = ranking::Tiles(table.items);
    const int32_t sampled =
        tiles <= kDirectTiles ? 0 : (tiles + kTileStep - 1) / kTileStep * kItemTile;
    fault = ranking::Prepare(batch, sampled, stream);
    if (fault == nullptr && sampled > 0) fault = scan(kTileStep);
    if (fault == nullptr && sampled > 0) fault = ranking::Tighten(batch, sampled, stream);
    if (fault == nullptr) fault = scan(1);
    if (fault == nullptr) fault = ranking::Finish(batch, stream);
  }
  if (fault == nullptr) fault = ranking::RankExactly(batch, 2 * processors, stream);
  return fault;
}

}  // namespace tim4rec::cuda
