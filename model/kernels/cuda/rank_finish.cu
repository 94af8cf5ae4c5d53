// From survivors to results: float32 scores in the canonical order, and the queries that are ranked
// without a guess.
#include "model/kernels/cuda/rank_parts.h"

namespace tim4rec::cuda::ranking {
namespace {

__device__ int32_t Thread() { return static_cast<int32_t>(threadIdx.x); }

// What both kernels have in shared memory.
struct BlockParts {
  uint64_t* keys;   // [kKeys]
  int32_t* counts;  // [20], then held, listed, and what one thread tells the others
  float* x;         // [D], the query
};
constexpr int32_t kHeld = 20, kListed = 21, kTold = 22, kCounts = 24;

__host__ __device__ size_t CarveBlock(int32_t d, uint8_t* base, BlockParts* parts) {
  constexpr size_t kBefore = sizeof(uint64_t) * kKeys + sizeof(int32_t) * kCounts;
  parts->keys = reinterpret_cast<uint64_t*>(base);
  parts->counts = reinterpret_cast<int32_t*>(base + sizeof(uint64_t) * kKeys);
  parts->x = reinterpret_cast<float*>(base + kBefore);
  return kBefore + sizeof(float) * ((static_cast<size_t>(d) + 3) / 4 * 4);
}

__device__ BlockBest BestOf(const BlockParts& parts, int32_t k, uint64_t floor) {
  BlockBest best;
  best.keys = parts.keys;
  best.held = parts.counts + kHeld;
  best.k = k;
  best.Start(floor);
  return best;
}

__device__ void LoadQuery(const Batch& batch, const Place& place, float* x) {
  for (int32_t i = Thread(); i < batch.table.d; i += kThreads) x[i] = place.query.query[i];
}

__device__ float BoostOf(const kernels::TopKQuery& query, int32_t item) {
  return query.boost == nullptr ? 0.0f : query.boost[item];
}

__device__ bool Reaches(const Limits& limits, const ItemTable& table,
                        const kernels::TopKQuery& query, int32_t item, int32_t sum) {
  const float inverse_scale = table.inverse_scales[item];
  const float biased = kBias + static_cast<float>(sum);
  if (query.boost == nullptr) {
    return MayReach<false>(limits.a, limits.b, limits.u, biased, inverse_scale, 0.0f);
  }
  return MayReach<true>(limits.a, limits.b, limits.u, biased, inverse_scale,
                        BoostTerm(query.boost[item], inverse_scale));
}

// ---- finish

// A block per place. Those that promise most are scored first; what the k-th of them leaves out is
// not scored.
__global__ void __launch_bounds__(kThreads, 2) FinishPlaces(Batch batch) {
  const auto at = static_cast<int32_t>(blockIdx.x);
  const Place& place = batch.places[at];
  PlaceState* state = &batch.states[at];
  if (place.index < 0 || !(state->slack <= kLargest)) return;
  BlockParts parts;
  auto* base = SharedMemory<uint8_t>();
  auto* estimates = reinterpret_cast<uint32_t*>(base + CarveBlock(batch.table.d, base, &parts));
  auto* list = reinterpret_cast<uint16_t*>(estimates + batch.capacity);
  const int32_t kept = state->kept, n = kept < batch.capacity ? kept : batch.capacity;
  const Survivor* survivors = batch.survivors + place.index * batch.buffer;
  const int32_t k = place.query.k;
  LoadQuery(batch, place, parts.x);
  for (int32_t i = Thread(); i < n; i += kThreads) {
    const Survivor survivor = survivors[i];
    estimates[i] = Ordered(Estimate(static_cast<float>(survivor.sum), state->scale,
                                    batch.table.inverse_scales[survivor.item],
                                    BoostOf(place.query, survivor.item)) +
                           0.0f);
  }
  BlockBest best = BestOf(parts, k, 0);
  const uint32_t cut = n > k ? SelectByBlock(estimates, n, k, parts.counts) : 0;
  for (int32_t pass = 0; pass < 2; ++pass) {
    if (pass == 1 && cut == 0) break;
    // After the first pass the floor is the k-th best of at least k.
    const Limits limits = pass == 0 ? NoneReach()
                                    : LimitsOf(ScoreOf(best.floor), state->scale, state->slack,
                                               place.query.boost != nullptr);
    if (Thread() == 0) parts.counts[kListed] = 0;
    __syncthreads();
    for (int32_t i = Thread(); i < n; i += kThreads) {
      const bool promises = estimates[i] >= cut;
      const bool taken = pass == 0 ? promises
                                   : !promises && Reaches(limits, batch.table, place.query,
                                                          survivors[i].item, survivors[i].sum);
      if (taken) list[atomicAdd(&parts.counts[kListed], 1)] = static_cast<uint16_t>(i);
    }
    __syncthreads();
    const int32_t listed = parts.counts[kListed];
    for (int32_t first = 0; first < listed; first += kThreads) {
      uint64_t key = 0;
      if (first + Thread() < listed) {
        const int32_t item = survivors[list[first + Thread()]].item;
        key = KeyOf(RankedScore(batch.table, place.query, parts.x, item), item);
      }
      best.Offer(key);
    }
    best.Sort();
  }
  const bool complete = *best.held == k;
  // A guess stands if nothing below it could be among the best.
  const bool stands =
      kept <= batch.capacity && (!(state->threshold >= -kLargest) ||
                                 (complete && ScoreOf(best.keys[k - 1]) >= state->threshold));
  if (stands) {
    best.Write(batch, place, parts.x);
  } else if (Thread() == 0) {
    state->floor = complete ? best.keys[k - 1] - 1 : 0;
    batch.redo[atomicAdd(batch.redo_count, 1)] = at;
  }
}

// ---- exact

constexpr int32_t kRound = 2048;  // items looked at between two selections
constexpr int32_t kRoundTiles = kRound / kItemTile;

// Four signed bytes of each.
__device__ int32_t AddProducts4(uint32_t a, uint32_t b, int32_t sum) {
#ifdef __CUDA_ARCH__
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#else
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  }
  return sum;
#endif
}

// p.q of one item; see ItemTable::codes and Batch::codes for the order of both.
__device__ int32_t SumOfItem(const Batch& batch, int32_t at, int32_t item) {
  const int32_t steps = Steps(batch.table.d);
  const int32_t row = item % kItemTile;  // 8 g + 2 m + h
  const int64_t matrix = static_cast<int64_t>(item / kItemTile) * 4 + row % 8 / 2;
  const auto* codes = reinterpret_cast<const uint32_t*>(batch.table.codes) +
                      (matrix * steps * 32 + row / 8 * 4) * 4 + row % 2;
  const auto* columns =
      reinterpret_cast<const uint32_t*>(batch.codes) +
      (static_cast<int64_t>(at / kGroup) * Pairs(batch.table.d) * 32 + at % kGroup * 4) * 4;
  int32_t sum = 0;
  for (int32_t step = 0; step < steps; ++step) {
    for (int32_t t = 0; t < 4; ++t) {
      const uint32_t* four = codes + (step * 32 + t) * 4;
      const uint32_t* column = columns + (step / 2 * 32 + t) * 4 + step % 2 * 2;
      sum = AddProducts4(four[0], column[0], sum);
      sum = AddProducts4(four[2], column[1], sum);
    }
  }
  return sum;
}

__device__ int32_t PartsOf(const Batch& batch, const Place& place) {
  const int64_t rounds = place.query.candidates_only
                             ? (place.query.candidate_count + kRound - 1) / kRound
                             : (Tiles(batch.table.items) + kRoundTiles - 1) / kRoundTiles;
  return rounds < 1 ? 1 : rounds < batch.parts ? static_cast<int32_t>(rounds) : batch.parts;
}

// One part of a place: its rounds of items, or of candidates. A round lists the items that may
// reach the floor, then they are scored.
__device__ void RankPart(const Batch& batch, int32_t at, const Place& place, int32_t part,
                         int32_t parts_of_place, const BlockParts& parts, int32_t* list,
                         BlockBest* best) {
  const bool candidates = place.query.candidates_only;
  PlaceState* state = &batch.states[at];
  const int64_t total = candidates ? place.query.candidate_count
                                   : static_cast<int64_t>(Tiles(batch.table.items)) * kItemTile;
  for (int64_t round = part; round * kRound < total; round += parts_of_place) {
    if (Thread() == 0) {
      parts.counts[kListed] = 0;
      // What other parts found is good here too.
      *reinterpret_cast<uint64_t*>(parts.counts + kTold) =
          atomicMax(reinterpret_cast<unsigned long long*>(&state->floor),
                    static_cast<unsigned long long>(best->floor == 0 ? 0 : best->floor - 1));
    }
    __syncthreads();
    const uint64_t told = *reinterpret_cast<uint64_t*>(parts.counts + kTold);
    if (told > best->floor) best->floor = told;
    const float threshold = best->floor == 0 ? -kInfinity : ScoreOf(best->floor);
    const Limits limits =
        candidates ? NoneReach()
                   : LimitsOf(threshold, state->scale, state->slack, place.query.boost != nullptr);
    for (int64_t i = round * kRound + Thread(); i < (round + 1) * kRound && i < total;
         i += kThreads) {
      const int32_t item = candidates ? place.query.candidates[i] : static_cast<int32_t>(i);
      if (!candidates &&
          (item < 1 || item >= batch.table.items ||
           !Reaches(limits, batch.table, place.query, item, SumOfItem(batch, at, item)))) {
        continue;
      }
      if (IsLeftOut(place.query, item)) continue;
      list[atomicAdd(&parts.counts[kListed], 1)] = item;
    }
    __syncthreads();
    const int32_t listed = parts.counts[kListed];
    for (int32_t first = 0; first < listed; first += kThreads) {
      uint64_t key = 0;
      if (first + Thread() < listed) {
        const int32_t item = list[first + Thread()];
        key = KeyOf(RankedScore(batch.table, place.query, parts.x, item), item);
      }
      best->Offer(key);
    }
    __syncthreads();  // the list is read until here
  }
  best->Sort();
}

// Parts of the places to redo: part i of a place leaves its best in the query's buffer, and the
// last one that is done selects among all.
__global__ void __launch_bounds__(kThreads, 2) RankPlaces(Batch batch) {
  BlockParts parts;
  auto* base = SharedMemory<uint8_t>();
  auto* list = reinterpret_cast<int32_t*>(base + CarveBlock(batch.table.d, base, &parts));
  const int64_t work = static_cast<int64_t>(*batch.redo_count) * batch.parts;
  for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
    const int32_t at = batch.redo[w / batch.parts];
    const auto part = static_cast<int32_t>(w % batch.parts);
    const Place& place = batch.places[at];
    const int32_t parts_of_place = PartsOf(batch, place);
    if (part >= parts_of_place) continue;
    PlaceState* state = &batch.states[at];
    __syncthreads();  // what the last work left in shared memory is not needed any more
    LoadQuery(batch, place, parts.x);
    BlockBest best = BestOf(parts, place.query.k, 0);
    RankPart(batch, at, place, part, parts_of_place, parts, list, &best);
    if (parts_of_place > 1) {
      auto* results = reinterpret_cast<uint64_t*>(batch.survivors + place.index * batch.buffer);
      const int32_t k = place.query.k;
      for (int32_t i = Thread(); i < k; i += kThreads) {
        results[part * k + i] = i < *best.held ? best.keys[i] : 0;
      }
      __threadfence();
      __syncthreads();
      if (Thread() == 0) parts.counts[kTold] = atomicAdd(&state->parts_done, 1);
      __syncthreads();
      if (parts.counts[kTold] != parts_of_place - 1) continue;
      __threadfence();
      best.Start(0);
      for (int32_t first = 0; first < parts_of_place * k; first += kThreads) {
        const int32_t i = first + Thread();
        best.Offer(i < parts_of_place * k ? results[i] : 0);
      }
      best.Sort();
    }
    best.Write(batch, place, parts.x);
  }
}

}  // namespace

Fault Finish(const Batch& batch, Stream stream) {
  BlockParts parts;
  Grid grid;
  grid.blocks = static_cast<unsigned>(batch.group_count * kGroup);
  grid.threads = kThreads;
  grid.shared_bytes =
      CarveBlock(batch.table.d, nullptr, &parts) + 6 * static_cast<size_t>(batch.capacity);
  return Launch(FinishPlaces, grid, stream, batch);
}

Fault RankExactly(const Batch& batch, int32_t blocks, Stream stream) {
  BlockParts parts;
  Grid grid;
  grid.blocks = static_cast<unsigned>(blocks);
  grid.threads = kThreads;
  grid.shared_bytes = CarveBlock(batch.table.d, nullptr, &parts) + 4 * kRound;
  return Launch(RankPlaces, grid, stream, batch);
}

}  // namespace tim4rec::cuda::ranking
