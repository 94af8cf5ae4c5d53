// What the ranking kernels share: a batch as they see it, the test that leaves items out, exact
// scores, and the selection of the best by a block.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_RANK_PARTS_H_
#define TIM4REC_MODEL_KERNELS_CUDA_RANK_PARTS_H_

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/rank.h"
#include "model/kernels/left_out.h"
#include "model/kernels/math.h"
#include "model/kernels/rank_table.h"

namespace tim4rec::cuda::ranking {

inline constexpr int32_t kThreads = 256;  // of every block
inline constexpr int32_t kWarps = kThreads / 32;
inline constexpr int32_t kGroup = 8;  // places that share the columns of a matrix instruction
inline constexpr int32_t kSampleItems = 2048;
inline constexpr int32_t kKeys = 2048;  // of a block's selection

// A query where it is scanned. Places of a group have the same boost; a place may be empty.
struct Place {
  kernels::TopKQuery query;
  int32_t index;  // in the batch; -1: none
};

// See rank_table.h for scale (t) and slack (c).
struct PlaceState {
  uint64_t floor;   // keys up to it are not among the best
  float scale;      // 1 where the slack is infinite
  float slack;      // +inf: nothing may be left out
  float threshold;  // items with a lower score may have been left out
  int32_t kept;     // survivors, those that did not fit included
  int32_t parts_done;
};

// Groups scanned by one block.
struct Slab {
  const float* boost;  // null: none
  int32_t first_group, groups;
};

struct Survivor {
  int32_t item;
  int32_t sum;  // p.q
};

struct Batch {
  ItemTable table;
  const Place* places;
  PlaceState* states;
  const Slab* slabs;
  int32_t slab_count, group_count;
  uint8_t* codes;       // [groups][pairs][32][16]: as the lanes take them
  float4* limits;       // [groups][4]: a and b of columns 2 t and 2 t + 1, see Limits
  float2* steps;        // [groups][4]: u of both
  Survivor* survivors;  // [count][buffer]
  int64_t buffer;       // entries of a query's buffer, which also holds the keys of exact parts
  int32_t capacity;     // survivors that it takes
  int32_t parts;        // most parts of an exact ranking
  int32_t* redo;        // places to rank exactly
  int32_t* redo_count;
  int32_t most_k;
  kernels::Scored* best;  // [count][most_k]
  int32_t* found;         // [count]
};

__host__ __device__ inline int32_t Steps(int32_t d) { return (d + 31) / 32; }  // of 32 codes
__host__ __device__ inline int32_t Pairs(int32_t d) { return (d + 63) / 64; }  // of steps
__host__ __device__ inline int32_t Tiles(int32_t items) {
  return static_cast<int32_t>((static_cast<int64_t>(items) + kItemTile - 1) / kItemTile);
}

// Which of a sample's scores to take as the threshold for `total` items of which `wanted` are asked
// for: fewer than that many above it are then hardly ever found.
__host__ __device__ inline int32_t SampleRank(float wanted, float sample, float total) {
  const float expected = wanted * (sample / total);
  return static_cast<int32_t>(expected + 5.0f * kernels::SquareRoot(expected) + 6.0f);
}

// ---- the test
//
// Sums begin at kBias, whose bits are those of the float 1.5 2^23, so that the sum's bits are those
// of the float kBias + p.q, exactly, since |p.q| < 2^22 (a query has as few levels as that takes).
// By rank_table.h the ranked score of v is at most s (t (p.q) + c) + boost, which is below the
// threshold T if
//
//   kBias + p.q  <  L  =  (T / t) r - u w + kBias - c / t,   r = 1 / s, u = 1 / t, w = boost r.
//
// L is computed as fma(-u, w, fma(a, r, b)), with a, w and b moved towards a smaller L by 2^-20 of
// the size of T / t, 2^-19 of w, and 4 + 2^-20 c / t: more than all roundings can take away where
// it matters. (Of a, r and their product 2^-22; of u, w and theirs 2^-22; of the outer sums 2^-24
// of results which, if they are above 2^25, leave an item out rightly anyway.) So what is left out
// has a real score below T by at least 2^-21 |T|, and no rounded one that ties.
//
// An infinite L is right too: r <= 2^80, so that with a boost |a r| < 2^126 is made sure of, and
// +inf can only come of -u w, which then is the larger; without one, of a r, unless b is -inf.
inline constexpr float kBias = 12582912.0f;
inline constexpr int kBiasBits = 0x4b400000;
inline constexpr float kLargest = 3.40282347e+38f;

__host__ __device__ inline int32_t MostQueryCode(int32_t d) {
  const int32_t levels = ((1 << 22) - 1) / (127 * d);
  return levels < 127 ? levels : 127;
}

struct Limits {
  float a, b, u;
};

inline constexpr float kInfinity = __builtin_inff();

// Leaves out everything.
__device__ inline Limits NoneReach() { return {0.0f, kInfinity, 0.0f}; }

// For scores of at least `threshold`; -inf: none is left out.
__device__ inline Limits LimitsOf(float threshold, float scale, float slack, bool boosted) {
  Limits limits;
  limits.u = kernels::Divide(1.0f, scale);
  const double exact = static_cast<double>(threshold) / static_cast<double>(scale);
  const double magnitude = exact < 0 ? -exact : exact;
  if (!(threshold >= -kLargest) || !(slack <= kLargest) || (boosted && magnitude > 0x1p45)) {
    limits.a = 0.0f;
    limits.b = -kInfinity;
    return limits;
  }
  const double lowered = exact - magnitude * 0x1p-20;
  limits.a = static_cast<float>(lowered < 3.4e38 ? lowered : 3.4e38);
  const double over = static_cast<double>(slack) / static_cast<double>(scale);
  limits.b = static_cast<float>(static_cast<double>(kBias) - over * (1 + 0x1p-20) - 4);
  return limits;
}

__device__ inline float BoostTerm(float boost, float inverse_scale) {
  const float exact = boost * inverse_scale;
  const float raised = kernels::FusedMultiplyAdd(kernels::Magnitude(exact), 0x1p-19f, exact);
  return raised >= -kLargest ? raised : -kLargest;
}

template <bool boosted>
__device__ inline bool MayReach(float a, float b, float u, float biased_sum, float inverse_scale,
                                float boost_term) {
  float limit = kernels::FusedMultiplyAdd(a, inverse_scale, b);
  if (boosted) limit = kernels::FusedMultiplyAdd(-u, boost_term, limit);
  return !(biased_sum < limit);
}

// About what the item will score.
__device__ inline float Estimate(float sum, float scale, float inverse_scale, float boost) {
  return kernels::Divide(sum * scale, inverse_scale) + boost;
}

// ---- keys: larger for better. 0 is below all of them.

// Keeps the order of floats that are not NaN; -0 is to be made 0 before.
__device__ inline uint32_t Ordered(float x) {
  const uint32_t bits = kernels::BitsOf(x);
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

// What lies below -inf is -inf.
__device__ inline float FloatOfOrdered(uint32_t ordered) {
  if (ordered < 0x00800000u) return -kInfinity;
  return kernels::FloatOf(ordered >> 31 != 0 ? ordered ^ 0x80000000u : ~ordered);
}

__device__ inline uint64_t KeyOf(float ranked, int32_t item) {
  return uint64_t{Ordered(ranked + 0.0f)} << 32 | (0xffffffffu - static_cast<uint32_t>(item));
}

__device__ inline int32_t ItemOf(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

__device__ inline float ScoreOf(uint64_t key) {
  return FloatOfOrdered(static_cast<uint32_t>(key >> 32));
}

// ---- items

// What the item is ranked by: the canonical score and the boost. `x` is the query in shared memory,
// 16-byte aligned.
__device__ inline float RankedScore(const ItemTable& table, const kernels::TopKQuery& query,
                                    const float* x, int32_t item) {
  const float* row = table.embedding + static_cast<int64_t>(item) * table.d;
  float sum = 0.0f;
  if (table.d % 4 == 0) {
#pragma unroll 8
    for (int32_t i = 0; i < table.d; i += 4) {
      const float4 values = __ldg(reinterpret_cast<const float4*>(row + i));
      const float4 factors = *reinterpret_cast<const float4*>(x + i);
      sum = kernels::FusedMultiplyAdd(factors.x, values.x, sum);
      sum = kernels::FusedMultiplyAdd(factors.y, values.y, sum);
      sum = kernels::FusedMultiplyAdd(factors.z, values.z, sum);
      sum = kernels::FusedMultiplyAdd(factors.w, values.w, sum);
    }
  } else {
    for (int32_t i = 0; i < table.d; ++i) sum = kernels::FusedMultiplyAdd(x[i], row[i], sum);
  }
  if (query.boost != nullptr) sum += query.boost[item];
  return sum == sum ? sum : -kInfinity;
}

// ---- selection

// The largest value, its low 12 bits zero, that at least `rank` of the `n` values reach; 0 if fewer
// than `rank` are above 0. All threads of the block call it; `counts` [20] is shared memory.
__device__ inline uint32_t SelectByBlock(const uint32_t* values, int32_t n, int32_t rank,
                                         int32_t* counts) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (thread < 20) counts[thread] = 0;
  __syncthreads();
  uint32_t result = 0;
  for (int32_t bit = 0; bit < 20; ++bit) {
    const uint32_t trial = result | 0x80000000u >> bit;
    int32_t reached = 0;
    for (int32_t first = thread / 32 * 32; first < n; first += kThreads) {
      const int32_t i = first + thread % 32;
      reached += __popc(__ballot_sync(0xffffffffu, i < n && values[i] >= trial));
    }
    if (thread % 32 == 0) atomicAdd(&counts[bit], reached);
    __syncthreads();
    if (counts[bit] >= rank) result = trial;
  }
  return result;
}

// The best k keys offered to a block. All threads call its functions together.
struct BlockBest {
  uint64_t* keys;  // [kKeys], shared
  int32_t* held;   // shared
  int32_t k;
  uint64_t floor;  // of every thread the same: keys up to it are not wanted

  __device__ void Start(uint64_t first_floor) {
    floor = first_floor;
    __syncthreads();
    if (threadIdx.x == 0) *held = 0;
    __syncthreads();
  }

  // A key of each thread, 0 for none.
  __device__ void Offer(uint64_t key) {
    if (key > floor) keys[atomicAdd(held, 1)] = key;
    __syncthreads();
    const bool full = *held > kKeys - kThreads;
    __syncthreads();
    if (full) Sort();
  }

  // Leaves the best k, best first; the k-th is the floor.
  __device__ void Sort() {
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t count = *held;
    int32_t size = 2;
    while (size < count) size *= 2;
    for (int32_t i = count + thread; i < size; i += kThreads) keys[i] = 0;
    __syncthreads();
    for (int32_t run = 2; run <= size; run *= 2) {
      for (int32_t stride = run / 2; stride > 0; stride /= 2) {
        for (int32_t i = thread; i < size / 2; i += kThreads) {
          const int32_t low = 2 * i - (i & (stride - 1)), high = low + stride;
          const uint64_t a = keys[low], b = keys[high];
          if ((a < b) == ((low & run) == 0)) {
            keys[low] = b;
            keys[high] = a;
          }
        }
        __syncthreads();
      }
    }
    if (thread == 0 && count > k) *held = k;
    if (count >= k && keys[k - 1] > floor) floor = keys[k - 1];
    __syncthreads();
  }

  // Writes the result, after Sort.
  __device__ void Write(const Batch& batch, const Place& place, const float* x) const {
    const int32_t count = *held;
    kernels::Scored* best = batch.best + static_cast<int64_t>(place.index) * batch.most_k;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
      const int32_t item = ItemOf(keys[i]);
      float score = ScoreOf(keys[i]);
      if (score == 0.0f) score = RankedScore(batch.table, place.query, x, item);  // it may be -0
      best[i].score = score;
      best[i].item = item;
    }
    if (threadIdx.x == 0) batch.found[place.index] = count;
  }
};

// ---- launches

// rank_scan.cu
int32_t MostSlabGroups(int32_t d);                                  // of one slab
int32_t ScanUnits(const ItemTable& table, int32_t tile_step);       // of work, for warps
Fault Prepare(const Batch& batch, int32_t sampled, Stream stream);  // 0: no sample is scanned
Fault Scan(const Batch& batch, int32_t tile_step, int32_t blocks, Stream stream);
Fault Tighten(const Batch& batch, int32_t sampled, Stream stream);
// rank_finish.cu
Fault Finish(const Batch& batch, Stream stream);
Fault RankExactly(const Batch& batch, int32_t blocks, Stream stream);

}  // namespace tim4rec::cuda::ranking

#endif  // TIM4REC_MODEL_KERNELS_CUDA_RANK_PARTS_H_
