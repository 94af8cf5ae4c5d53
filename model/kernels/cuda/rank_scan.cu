// From queries to survivors: quantizing, guessing thresholds, and the pass over the table.
#include "model/kernels/cuda/mma.h"
#include "model/kernels/cuda/rank_parts.h"

namespace tim4rec::cuda::ranking {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int32_t kUnitItems = 16;  // rows of a matrix instruction
constexpr int32_t kSampleUnits = kSampleItems / kUnitItems;

__device__ int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }

// ---- prepare

struct PrepareParts {
  uint8_t* codes;    // [pairs][32][16]
  uint32_t* sample;  // [kGroup][kSampleItems], Ordered
  float* scales;     // [kGroup]
};

__host__ __device__ size_t CarvePrepare(int32_t d, uint8_t* base, PrepareParts* parts) {
  const size_t codes = static_cast<size_t>(Pairs(d)) * 512;
  parts->codes = base;
  parts->sample = reinterpret_cast<uint32_t*>(base + codes);
  parts->scales = reinterpret_cast<float*>(parts->sample + kGroup * kSampleItems);
  return codes + sizeof(uint32_t) * kGroup * kSampleItems + sizeof(float) * kGroup;
}

__device__ double SumOfLanes(double x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

// One warp quantizes one query into its column of the group's codes, as simd_rank-inl.h does.
__device__ void QuantizeQuery(const ItemTable& table, const float* x, int32_t column,
                              uint8_t* codes, PlaceState* state) {
  const int32_t lane = Thread() % 32;
  double squares = 0;
  float largest = 0;
  for (int32_t i = lane; i < table.d; i += 32) {
    const double value = static_cast<double>(x[i]);
    squares += value * value;
    const float magnitude = kernels::Magnitude(x[i]);
    if (magnitude > largest) largest = magnitude;
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, largest, lanes);
    if (other > largest) largest = other;
  }
  const double norm = sqrt(SumOfLanes(squares)) * (1 + 1e-6);
  const double spread = static_cast<double>(table.residual) + static_cast<double>(table.code_norm);
  const double scale_limit =
      table.largest_scale > 1.0f ? static_cast<double>(table.largest_scale) : 1.0;
  state->scale = 1.0f;
  state->slack = kInfinity;
  if (!(norm * spread * scale_limit < 1e36)) return;  // overflow is possible, or x is not finite
  const int32_t most = MostQueryCode(table.d);
  float scale = kernels::Divide(largest, static_cast<float>(most));
  if (scale < 0x1p-80f) scale = 0x1p-80f;
  double difference_squares = 0;
  for (int32_t i = lane; i < table.d; i += 32) {
    const double exact = static_cast<double>(x[i]) / static_cast<double>(scale);
    int32_t code = static_cast<int32_t>(exact < 0 ? exact - 0.5 : exact + 0.5);
    if (code > most) code = most;
    if (code < -most) code = -most;
    const double difference = static_cast<double>(x[i]) - static_cast<double>(scale) * code;
    difference_squares += difference * difference;
    const int32_t step = i / 32, k = i % 32;
    codes[(step / 2 * 32 + column * 4 + k % 16 / 4) * 16 + step % 2 * 8 + k / 16 * 4 + k % 4] =
        static_cast<uint8_t>(code);
  }
  state->scale = scale;
  state->slack = kernels::RankSlack(norm, sqrt(SumOfLanes(difference_squares)) * (1 + 1e-6),
                                    table.residual, table.code_norm, table.d);
}

// The sums of 16 items with the group's queries: unit u is rows 16 (u % 4) … of tile u / 4.
__device__ void SumUnit(const ItemTable& table, int32_t unit, const uint8_t* codes,
                        int (&sums)[4]) {
  const int32_t lane = Thread() % 32, steps = Steps(table.d);
  const uint4* items =
      reinterpret_cast<const uint4*>(table.codes) + static_cast<int64_t>(unit) * steps * 32 + lane;
  for (int32_t step = 0; step < steps; ++step) {
    const uint2 columns =
        *reinterpret_cast<const uint2*>(codes + (step / 2 * 32 + lane) * 16 + step % 2 * 8);
    MmaInt8(sums, __ldg(items + step * 32), columns, sums);
  }
}

// Estimates of a sample of the table, spread over it, for the group's queries; what a query's
// filter leaves out is at the end. Returns the number of items.
__device__ int32_t TakeSample(const Batch& batch, const Place* places, const PrepareParts& parts) {
  const ItemTable& table = batch.table;
  const int32_t units = 4 * Tiles(table.items);
  const int32_t taken = units < kSampleUnits ? units : kSampleUnits;
  const int32_t lane = Thread() % 32;
  for (int32_t i = Thread() / 32; i < taken; i += kWarps) {
    const auto unit = static_cast<int32_t>(static_cast<int64_t>(i) * units / taken);
    int sums[4] = {};
    SumUnit(table, unit, parts.codes, sums);
    for (int32_t j = 0; j < 4; ++j) {
      const int32_t row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
      const int32_t item =
          unit / 4 * kItemTile + lane / 4 * 8 + unit % 4 * 2 + j / 2;  // see ItemTable::codes
      const Place& place = places[column];
      uint32_t value = 0;
      const uint64_t* eligible = place.query.eligible;
      if (place.index >= 0 && item >= 1 && item < table.items &&
          (eligible == nullptr || (eligible[item / 64] >> (item % 64) & 1) != 0)) {
        const float* boost = place.query.boost;
        value =
            Ordered(Estimate(static_cast<float>(sums[j]), parts.scales[column],
                             table.inverse_scales[item], boost == nullptr ? 0.0f : boost[item]) +
                    0.0f);
      }
      parts.sample[column * kSampleItems + i * kUnitItems + row] = value;
    }
  }
  return taken * kUnitItems;
}

// SelectByBlock by a warp.
__device__ uint32_t SelectByWarp(const uint32_t* values, int32_t n, int32_t rank) {
  uint32_t result = 0;
  for (int32_t bit = 0; bit < 20; ++bit) {
    const uint32_t trial = result | 0x80000000u >> bit;
    int32_t reached = 0;
    for (int32_t i = Thread() % 32; i < n; i += 32) {  // n is a multiple of 32
      reached += __popc(__ballot_sync(kAllLanes, values[i] >= trial));
    }
    if (reached >= rank) result = trial;
  }
  return result;
}

__device__ void SetLimits(const Batch& batch, int32_t place, const Limits& limits) {
  auto* bounds = reinterpret_cast<float2*>(batch.limits);
  bounds[place] = make_float2(limits.a, limits.b);
  reinterpret_cast<float*>(batch.steps)[place] = limits.u;
}

// A block per group: its codes, and for each place a threshold for the items that are scanned next:
// all, or `sampled` of them.
__global__ void __launch_bounds__(kThreads, 2) PrepareGroups(Batch batch, int32_t sampled) {
  PrepareParts parts;
  CarvePrepare(batch.table.d, SharedMemory<uint8_t>(), &parts);
  const auto group = static_cast<int32_t>(blockIdx.x);
  const Place* places = batch.places + static_cast<int64_t>(group) * kGroup;
  const int32_t column = Thread() / 32, lane = Thread() % 32;
  const Place& place = places[column];
  static_assert(kWarps == kGroup);

  const int32_t words = Pairs(batch.table.d) * 128;
  for (int32_t i = Thread(); i < words; i += kThreads) {
    reinterpret_cast<uint32_t*>(parts.codes)[i] = 0;
  }
  __syncthreads();
  PlaceState state = {};
  state.scale = 1.0f;
  if (place.index >= 0) {
    QuantizeQuery(batch.table, place.query.query, column, parts.codes, &state);
  }
  if (lane == 0) parts.scales[column] = state.scale;
  __syncthreads();
  auto* codes = reinterpret_cast<uint32_t*>(batch.codes) + static_cast<int64_t>(group) * words;
  for (int32_t i = Thread(); i < words; i += kThreads) {
    codes[i] = reinterpret_cast<uint32_t*>(parts.codes)[i];
  }

  const int32_t taken = TakeSample(batch, places, parts);
  __syncthreads();
  const int32_t at = group * kGroup + column;
  Limits limits = NoneReach();
  const bool scanned = place.index >= 0 && state.slack <= kLargest;
  if (scanned) {
    const auto items = static_cast<float>(batch.table.items);
    const float next = sampled > 0 ? static_cast<float>(sampled) : items;
    const auto k = static_cast<float>(place.query.k);
    // The sample knows the filter; of excluded items it may hold as many as there are in
    // proportion.
    const float wanted = (sampled > 0 ? static_cast<float>(SampleRank(k, next, items)) : k) +
                         static_cast<float>(place.query.excluded_count) * (next / items);
    const int32_t rank = SampleRank(wanted, static_cast<float>(taken), next);
    const float threshold =
        FloatOfOrdered(SelectByWarp(parts.sample + column * kSampleItems, taken, rank));
    state.threshold = threshold < kLargest ? threshold : kLargest;
    limits = LimitsOf(state.threshold, state.scale, state.slack, place.query.boost != nullptr);
  }
  if (lane != 0) return;
  SetLimits(batch, at, limits);
  batch.states[at] = state;
  if (place.index >= 0 && !scanned) batch.redo[atomicAdd(batch.redo_count, 1)] = at;
}

// ---- scan

// Of a warp: it is flushed from 64 survivors on, and four matrices can add all of their 512 sums.
constexpr int32_t kQueueFlushed = 64;
constexpr int32_t kQueue = kQueueFlushed + 512;
constexpr int32_t kMostSlabGroups = 32;
constexpr int32_t kSlabCodeBytes = 32 << 10;

struct ScanParts {
  uint8_t* codes;  // [groups][pairs][32][16]
  float4* limits;  // [groups][4]
  float2* steps;   // [groups][4]
  int2* queue;     // [kQueue], the warp's survivors: item, and 256 sum + column of the slab
};

__host__ __device__ size_t CarveScan(int32_t d, int32_t groups, int32_t warp, uint8_t* base,
                                     ScanParts* parts) {
  const size_t codes = static_cast<size_t>(Pairs(d)) * 512 * static_cast<size_t>(groups);
  const size_t limits = static_cast<size_t>(groups) * 4;
  parts->codes = base;
  parts->limits = reinterpret_cast<float4*>(base + codes);
  parts->steps = reinterpret_cast<float2*>(parts->limits + limits);
  parts->queue = reinterpret_cast<int2*>(parts->steps + limits) + warp * kQueue;
  return codes + limits * 24 + static_cast<size_t>(kWarps) * kQueue * sizeof(int2);
}

// Values of the lane's items, two of each matrix.
template <int kMatrices>
__device__ void LoadFloats(const float* at, float (&values)[kMatrices][2]) {
  if constexpr (kMatrices % 2 == 0) {
#pragma unroll
    for (int m = 0; m < kMatrices; m += 2) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(at + 2 * m));
      values[m][0] = four.x;
      values[m][1] = four.y;
      values[m + 1][0] = four.z;
      values[m + 1][1] = four.w;
    }
  } else {
    const float2 two = __ldg(reinterpret_cast<const float2*>(at));
    values[0][0] = two.x;
    values[0][1] = two.y;
  }
}

// Gives the queued survivors to their queries' buffers.
__device__ __noinline__ void FlushQueue(const Batch& batch, const int2* queue, int32_t first_place,
                                        int32_t queued) {
  __syncwarp();
  for (int32_t i = Thread() % 32; i < queued; i += 32) {
    const int32_t item = queue[i].x;
    const int32_t at = first_place + (queue[i].y & 255);
    const Place& place = batch.places[at];
    if (place.index < 0 || item < 1 || item >= batch.table.items) continue;
    if (IsLeftOut(place.query, item)) continue;
    const int32_t kept = atomicAdd(&batch.states[at].kept, 1);
    if (kept >= batch.capacity) continue;
    Survivor survivor;
    survivor.item = item;
    survivor.sum = queue[i].y >> 8;
    batch.survivors[place.index * batch.buffer + kept] = survivor;
  }
  __syncwarp();
}

// The hits of one matrix: four sums of each lane. Returns how many are queued then.
template <bool boosted>
__device__ int32_t QueueHits(const ScanParts& parts, int32_t group, int32_t first_item,
                             const int (&sums)[4], const float (&inverse_scales)[2],
                             const float (&terms)[2], int32_t queued) {
  const int32_t lane = Thread() % 32;
  const float4 limits = parts.limits[group * 4 + lane % 4];
  const float2 steps = boosted ? parts.steps[group * 4 + lane % 4] : make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool second = i % 2 != 0;
    const bool hit = MayReach<boosted>(second ? limits.z : limits.x, second ? limits.w : limits.y,
                                       second ? steps.y : steps.x, __int_as_float(sums[i]),
                                       inverse_scales[i / 2], terms[i / 2]);
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    if (hit) {
      const int32_t column = group * kGroup + lane % 4 * 2 + i % 2;
      parts.queue[queued + __popc(hits & ((1u << lane) - 1))] =
          make_int2(first_item + i / 2, (sums[i] - kBiasBits) * 256 + column);
    }
    queued += __popc(hits);
  }
  return queued;
}

// A warp's share of the table, kMatrices matrices of 16 rows at a time: their codes stay in
// registers for all groups of the slab, while the next ones come. kSteps 0: any number of steps,
// with the codes read anew for every group.
template <int kSteps, int kMatrices, bool boosted>
__device__ void ScanSlab(const Batch& batch, const Slab& slab, const ScanParts& parts,
                         int32_t tile_step, int32_t first, int32_t stride) {
  constexpr int kParts = 4 / kMatrices;  // units of a tile
  constexpr int kHeld = kSteps > 0 ? kSteps : 1;
  const ItemTable& table = batch.table;
  const int32_t steps = kSteps > 0 ? kSteps : Steps(table.d), pairs = Pairs(table.d);
  const int32_t lane = Thread() % 32;
  const int32_t units = (Tiles(table.items) + tile_step - 1) / tile_step * kParts;
  const auto codes_of = [&](int32_t unit) {
    const int64_t matrix =
        (static_cast<int64_t>(unit / kParts) * tile_step * kParts + unit % kParts) * kMatrices;
    return reinterpret_cast<const uint4*>(table.codes) + matrix * steps * 32 + lane;
  };
  const auto first_item_of = [&](int32_t unit) {
    return unit / kParts * tile_step * kItemTile + lane / 4 * 8 + unit % kParts * 2 * kMatrices;
  };
  uint4 next_codes[kMatrices][kHeld];
  const auto load = [&](int32_t unit) {
    if constexpr (kSteps > 0) {
      const uint4* codes = codes_of(unit);
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) next_codes[m][s] = __ldg(codes + (m * kSteps + s) * 32);
      }
    }
  };

  int32_t queued = 0;
  if (first < units) load(first);
  for (int32_t unit = first; unit < units; unit += stride) {
    uint4 codes[kMatrices][kHeld];
    float inverse_scales[kMatrices][2], terms[kMatrices][2] = {};
    LoadFloats(table.inverse_scales + first_item_of(unit), inverse_scales);
    if (boosted) LoadFloats(slab.boost + first_item_of(unit), terms);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) codes[m][s] = next_codes[m][s];
    }
    if (unit + stride < units) load(unit + stride);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (boosted) terms[m][i] = BoostTerm(terms[m][i], inverse_scales[m][i]);
      }
    }
#pragma unroll 1
    for (int32_t group = 0; group < slab.groups; ++group) {
      int sums[kMatrices][4];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][i] = kBiasBits;
      }
      const uint8_t* columns = parts.codes + (group * pairs * 32 + lane) * 16;
      if constexpr (kSteps > 0) {
#pragma unroll
        for (int pair = 0; pair < (kSteps + 1) / 2; ++pair) {
          const uint4 both = *reinterpret_cast<const uint4*>(columns + pair * 512);
#pragma unroll
          for (int m = 0; m < kMatrices; ++m) {
            MmaInt8(sums[m], codes[m][2 * pair], make_uint2(both.x, both.y), sums[m]);
            if (2 * pair + 1 < kSteps) {
              MmaInt8(sums[m], codes[m][(2 * pair + 1) % kHeld], make_uint2(both.z, both.w),
                      sums[m]);
            }
          }
        }
      } else {
        const uint4* items = codes_of(unit);
        for (int32_t s = 0; s < steps; ++s) {
          const uint2 half = *reinterpret_cast<const uint2*>(columns + s / 2 * 512 + s % 2 * 8);
          for (int m = 0; m < kMatrices; ++m) {
            MmaInt8(sums[m], __ldg(items + (m * steps + s) * 32), half, sums[m]);
          }
        }
      }

      const float4 limits = parts.limits[group * 4 + lane % 4];
      const float2 u = boosted ? parts.steps[group * 4 + lane % 4] : make_float2(0, 0);
      bool hit[kMatrices], any = false;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        hit[m] = false;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const bool second = i % 2 != 0;
          hit[m] |= MayReach<boosted>(second ? limits.z : limits.x, second ? limits.w : limits.y,
                                      second ? u.y : u.x, __int_as_float(sums[m][i]),
                                      inverse_scales[m][i / 2], terms[m][i / 2]);
        }
        any |= hit[m];
      }
      if (!__any_sync(kAllLanes, any)) continue;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        if (!__any_sync(kAllLanes, hit[m])) continue;
        queued = QueueHits<boosted>(parts, group, first_item_of(unit) + 2 * m, sums[m],
                                    inverse_scales[m], terms[m], queued);
      }
      if (queued < kQueueFlushed) continue;
      FlushQueue(batch, parts.queue, slab.first_group * kGroup, queued);
      queued = 0;
    }
  }
  if (queued > 0) FlushQueue(batch, parts.queue, slab.first_group * kGroup, queued);
}

// Every tile_step-th tile for all groups. Block b takes its share of the tiles for slab
// b % slab_count: blocks that run together share the tiles in the second-level cache.
template <int kSteps, int kMatrices>
__global__ void __launch_bounds__(kThreads, 2)
    ScanTable(const __grid_constant__ Batch batch, int32_t tile_step) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  const Slab slab = batch.slabs[block % batch.slab_count];
  const int32_t warp = Thread() / 32;
  ScanParts parts;
  CarveScan(batch.table.d, slab.groups, warp, SharedMemory<uint8_t>(), &parts);
  const int32_t pairs = Pairs(batch.table.d);
  const auto* codes = reinterpret_cast<const uint4*>(batch.codes) +
                      static_cast<int64_t>(slab.first_group) * pairs * 32;
  for (int32_t i = Thread(); i < slab.groups * pairs * 32; i += kThreads) {
    reinterpret_cast<uint4*>(parts.codes)[i] = codes[i];
  }
  for (int32_t i = Thread(); i < slab.groups * 4; i += kThreads) {
    parts.limits[i] = batch.limits[slab.first_group * 4 + i];
    parts.steps[i] = batch.steps[slab.first_group * 4 + i];
  }
  __syncthreads();
  const int32_t chunks = static_cast<int32_t>(gridDim.x) / batch.slab_count;
  const int32_t first = block / batch.slab_count + chunks * warp, stride = chunks * kWarps;
  if (slab.boost == nullptr) {
    ScanSlab<kSteps, kMatrices, false>(batch, slab, parts, tile_step, first, stride);
  } else {
    constexpr int kFewer = kMatrices * kSteps == 8 && kMatrices > 1 ? kMatrices / 2 : kMatrices;
    ScanSlab<kSteps, kFewer, true>(batch, slab, parts, tile_step, first, stride);
  }
}

// ---- tighten

// A block per place: its threshold for the whole table, from the survivors of `sampled` items.
__global__ void __launch_bounds__(kThreads, 2) TightenPlaces(Batch batch, int32_t sampled) {
  const auto at = static_cast<int32_t>(blockIdx.x);
  const Place& place = batch.places[at];
  auto* counts = SharedMemory<int32_t>();
  auto* estimates = reinterpret_cast<uint32_t*>(counts + 32);
  PlaceState* state = &batch.states[at];
  if (place.index < 0 || !(state->slack <= kLargest)) return;
  const int32_t kept = state->kept;
  const int32_t n = kept < batch.capacity ? kept : batch.capacity;
  const Survivor* survivors = batch.survivors + place.index * batch.buffer;
  for (int32_t i = Thread(); i < n; i += kThreads) {
    const Survivor survivor = survivors[i];
    const float boost = place.query.boost == nullptr ? 0.0f : place.query.boost[survivor.item];
    estimates[i] = Ordered(Estimate(static_cast<float>(survivor.sum), state->scale,
                                    batch.table.inverse_scales[survivor.item], boost) +
                           0.0f);
  }
  __syncthreads();
  int32_t rank = SampleRank(static_cast<float>(place.query.k), static_cast<float>(sampled),
                            static_cast<float>(batch.table.items));
  // What did not fit is taken to be like what did.
  if (kept > n) rank = static_cast<int32_t>(static_cast<int64_t>(rank) * n / kept) + 1;
  const uint32_t cut = n < rank ? 0 : SelectByBlock(estimates, n, rank, counts);
  if (Thread() != 0) return;
  const float found = FloatOfOrdered(cut);
  if (found > state->threshold) state->threshold = found < kLargest ? found : kLargest;
  state->kept = 0;
  SetLimits(batch, at,
            LimitsOf(state->threshold, state->scale, state->slack, place.query.boost != nullptr));
}

template <int kSteps, int kMatrices>
Fault LaunchScan(const Batch& batch, int32_t tile_step, int32_t blocks, Stream stream) {
  ScanParts parts;
  Grid grid;
  grid.blocks = static_cast<unsigned>(blocks);
  grid.threads = kThreads;
  grid.shared_bytes = CarveScan(batch.table.d, MostSlabGroups(batch.table.d), 0, nullptr, &parts);
  return Launch(ScanTable<kSteps, kMatrices>, grid, stream, batch, tile_step);
}

}  // namespace

int32_t MostSlabGroups(int32_t d) {
  const int32_t groups = kSlabCodeBytes / (Pairs(d) * 512);
  return groups < 1 ? 1 : groups < kMostSlabGroups ? groups : kMostSlabGroups;
}

int32_t ScanUnits(const ItemTable& table, int32_t tile_step) {
  const int32_t parts = table.d <= 64 ? 1 : table.d <= 128 ? 2 : 4;
  return (Tiles(table.items) + tile_step - 1) / tile_step * parts;
}

Fault Prepare(const Batch& batch, int32_t sampled, Stream stream) {
  PrepareParts parts;
  Grid grid;
  grid.blocks = static_cast<unsigned>(batch.group_count);
  grid.threads = kThreads;
  grid.shared_bytes = CarvePrepare(batch.table.d, nullptr, &parts);
  return Launch(PrepareGroups, grid, stream, batch, sampled);
}

Fault Scan(const Batch& batch, int32_t tile_step, int32_t blocks, Stream stream) {
  switch (Steps(batch.table.d)) {
    case 1:
      return LaunchScan<1, 4>(batch, tile_step, blocks, stream);
    case 2:
      return LaunchScan<2, 4>(batch, tile_step, blocks, stream);
    case 3:
      return LaunchScan<3, 2>(batch, tile_step, blocks, stream);
    case 4:
      return LaunchScan<4, 2>(batch, tile_step, blocks, stream);
    case 8:
      return LaunchScan<8, 1>(batch, tile_step, blocks, stream);
    default:
      return LaunchScan<0, 1>(batch, tile_step, blocks, stream);
  }
}

Fault Tighten(const Batch& batch, int32_t sampled, Stream stream) {
  Grid grid;
  grid.blocks = static_cast<unsigned>(batch.group_count * kGroup);
  grid.threads = kThreads;
  grid.shared_bytes = sizeof(int32_t) * (32 + static_cast<size_t>(batch.capacity));
  return Launch(TightenPlaces, grid, stream, batch, sampled);
}

}  // namespace tim4rec::cuda::ranking
