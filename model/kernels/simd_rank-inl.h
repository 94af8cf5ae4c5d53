// Rank: the bounds of rank_table.h for all items, float32 scores for those that they keep.
#ifndef TIM4REC_MODEL_KERNELS_SIMD_RANK_INL_H_
#define TIM4REC_MODEL_KERNELS_SIMD_RANK_INL_H_

#include <cstring>

#include "model/kernels/best_heap-inl.h"
#include "model/kernels/kernel_set.h"
#include "model/kernels/left_out.h"
#include "model/kernels/math.h"
#include "model/kernels/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tim4rec::kernels {
namespace {

constexpr int64_t kPanelBlocks = 32;  // scored before thresholds move; they stay in the first cache
constexpr int64_t kPanelItems = kPanelBlocks * 16;
constexpr int32_t kMostWaiting = 48;  // survivors of a query that are on their way from memory

// Queries that share a pass over a panel, and the blocks whose sums are in registers with them.
#if HWY_TARGET == HWY_AVX2
constexpr int kMostQueries = 4;
constexpr int BlocksTogether(int queries) { return queries == 1 ? 2 : 1; }
// A query's codes are at most this: the products of four of them fit into 16 bits, see AddProducts.
constexpr int kMostQueryCode = 31;
#else
constexpr int kMostQueries = 8;
constexpr int BlocksTogether(int queries) { return queries <= 4 ? 4 : 2; }
constexpr int kMostQueryCode = 127;
#endif

// A query as its bounds are computed: bound = s (scale * (codes . item codes) + slack).
struct RankedQuery {
  const TopKQuery* query;
  BestHeap heap;
  float scale, slack;
  float threshold;  // the k-th best score; items with a bound below it are out
  int32_t base;  // what the sum of products begins with: it takes the 128 of the items' codes out
  int32_t kept;  // number of
  int32_t* survivors;  // [kPanelItems]
  int32_t waiting;     // number of
  int32_t* waiters;    // [kMostWaiting], eligible survivors of earlier panels, not yet scored
};

// Four codes to a word; `stride` words from group to group.
void PackQueryCodes(const int8_t* codes, int64_t groups, int64_t stride, int32_t* words) {
  for (int64_t g = 0; g < groups; ++g) std::memcpy(words + g * stride, codes + 4 * g, 4);
}

// Quantizes a query and makes its slack; see rank_table.h.
void PrepareQuery(const RankTable& table, const float* x, int64_t groups, int64_t stride,
                  int8_t* codes, int32_t* words, RankedQuery* ranked) {
  double squares = 0, difference_squares = 0;
  float largest = 0;
  for (int32_t i = 0; i < table.d; ++i) {
    const double value = static_cast<double>(x[i]);
    squares += value * value;
    const float magnitude = Magnitude(x[i]);
    if (magnitude > largest) largest = magnitude;
  }
  const double norm = __builtin_sqrt(squares) * (1 + 1e-6);
  const double spread = static_cast<double>(table.residual) + static_cast<double>(table.code_norm);
  const double scale_limit =
      table.largest_scale > 1.0f ? static_cast<double>(table.largest_scale) : 1.0;
  std::memset(codes, 0, static_cast<size_t>(4 * groups));
  ranked->base = 0;
  if (!(norm * spread * scale_limit < 1e36)) {  // overflow is possible, or x is not finite
    ranked->scale = 0.0f;
    ranked->slack = __builtin_inff();
    PackQueryCodes(codes, groups, stride, words);
    return;
  }
  float scale = largest / static_cast<float>(kMostQueryCode);
  if (scale < 0x1p-80f) scale = 0x1p-80f;
  for (int32_t i = 0; i < table.d; ++i) {
    const double exact = static_cast<double>(x[i]) / static_cast<double>(scale);
    int code = static_cast<int>(exact < 0 ? exact - 0.5 : exact + 0.5);
    if (code > kMostQueryCode) code = kMostQueryCode;
    if (code < -kMostQueryCode) code = -kMostQueryCode;
    codes[i] = static_cast<int8_t>(code);
    ranked->base -= 128 * code;
    const double difference = static_cast<double>(x[i]) - static_cast<double>(scale) * code;
    difference_squares += difference * difference;
  }
  PackQueryCodes(codes, groups, stride, words);
  ranked->scale = scale;
  ranked->slack = RankSlack(norm, __builtin_sqrt(difference_squares) * (1 + 1e-6), table.residual,
                            table.code_norm, table.d);
}

// ---- bounds of kBlocks blocks for kQueries queries

using IntVector = hn::Vec<Ints>;

using CodeVector = hn::Vec<hn::Repartition<uint8_t, Floats>>;

#if HWY_TARGET == HWY_AVX2
// sum + the products of two groups of four codes for each of kLanes items. |pairs| <= 4 255 31.
HWY_INLINE IntVector AddProducts(IntVector sum, CodeVector items, int32_t word, CodeVector next,
                                 int32_t next_word) {
  static_assert(4 * 255 * kMostQueryCode <= 32767);
  const __m256i pairs =
      _mm256_add_epi16(_mm256_maddubs_epi16(items.raw, _mm256_set1_epi32(word)),
                       _mm256_maddubs_epi16(next.raw, _mm256_set1_epi32(next_word)));
  return IntVector{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
#else
// sum + the products of four codes for each of kLanes items.
HWY_INLINE IntVector AddProducts(IntVector sum, CodeVector items, int32_t word) {
  // Not _mm512_dpbusd_epi32: gcc 12 moves its sums between registers.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(items.raw), "v"(_mm512_set1_epi32(word)));
  return sum;
}
#endif

// Appends the items of a vector whose bound is not below the threshold.
HWY_INLINE void KeepSurvivors(IntVector sum, V scales, int32_t first_item, RankedQuery* q) {
  V bound =
      hn::Mul(scales, hn::MulAdd(Constant(q->scale), hn::ConvertTo(kF, sum), Constant(q->slack)));
  if (q->query->boost != nullptr) {
    bound = hn::Add(bound, hn::LoadU(kF, q->query->boost + first_item));
  }
  const auto kept = hn::Not(hn::Lt(bound, Constant(q->threshold)));
  if (HWY_LIKELY(hn::AllFalse(kF, kept))) return;
  const auto items = hn::Add(hn::Iota(kI, 0), hn::Set(kI, first_item));
  q->kept += static_cast<int32_t>(
      hn::CompressBlendedStore(items, hn::RebindMask(kI, kept), kI, q->survivors + q->kept));
}

// `words` is [groups][kQueries]. What lies `ahead_bytes` after the codes is fetched
// meanwhile.
template <int kQueries, int kBlocks>
HWY_INLINE void BoundBlocks(const RankTable& table, int64_t groups, int64_t block,
                            int64_t ahead_bytes, const int32_t* words, RankedQuery* queries) {
  const hn::Repartition<uint8_t, Floats> u8;
  constexpr int kVectors = kBlocks * static_cast<int>(kParts);
  IntVector sum[kQueries][kVectors];
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[q][v] = hn::Set(kI, queries[q].base);
  }
  const uint8_t* codes = table.codes + block * groups * 64;
  const auto load = [&](int v) HWY_ATTR {
    return hn::Load(u8, codes + v / kParts * groups * 64 + v % kParts * 4 * kLanes);
  };
#if HWY_TARGET == HWY_AVX2
  int64_t g = 0;
  for (; g + 2 <= groups; g += 2, codes += 128, words += 2 * kQueries) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(codes + v / kParts * groups * 64 + v % kParts * 64 + ahead_bytes, 0, 2);
      const auto items = load(v);
      const auto next =
          hn::Load(u8, codes + 64 + v / kParts * groups * 64 + v % kParts * 4 * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
        sum[q][v] = AddProducts(sum[q][v], items, words[q], next, words[kQueries + q]);
      }
    }
  }
  if (g < groups) {
    for (int v = 0; v < kVectors; ++v) {
      for (int q = 0; q < kQueries; ++q) {
        sum[q][v] = AddProducts(sum[q][v], load(v), words[q], hn::Zero(u8), 0);
      }
    }
  }
#else
  for (int64_t g = 0; g < groups; ++g, codes += 64, words += kQueries) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(codes + v / kParts * groups * 64 + ahead_bytes, 0, 2);
      const auto items = load(v);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) sum[q][v] = AddProducts(sum[q][v], items, words[q]);
    }
  }
#endif
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const V scales = hn::LoadU(kF, table.scales + block * 16 + v * kLanes);
    const auto first_item = static_cast<int32_t>(block * 16 + v * kLanes);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) KeepSurvivors(sum[q][v], scales, first_item, &queries[q]);
  }
}

template <int kQueries>
HWY_NOINLINE void BoundPanel(const RankTable& table, int64_t groups, int64_t first, int64_t end,
                             int64_t ahead_bytes, const int32_t* words, RankedQuery* queries) {
  constexpr int kBlocks = BlocksTogether(kQueries);
  int64_t block = first;
  for (; block + kBlocks <= end; block += kBlocks) {
    BoundBlocks<kQueries, kBlocks>(table, groups, block, ahead_bytes, words, queries);
  }
  for (; block < end; ++block)
    BoundBlocks<kQueries, 1>(table, groups, block, ahead_bytes, words, queries);
}

void BoundPanel(const RankTable& table, int64_t groups, int64_t first, int64_t end,
                int64_t ahead_bytes, const int32_t* words, RankedQuery* queries, int64_t count) {
  switch (count) {
    case 1:
      return BoundPanel<1>(table, groups, first, end, ahead_bytes, words, queries);
    case 2:
      return BoundPanel<2>(table, groups, first, end, ahead_bytes, words, queries);
    case 3:
      return BoundPanel<3>(table, groups, first, end, ahead_bytes, words, queries);
    case 4:
      return BoundPanel<4>(table, groups, first, end, ahead_bytes, words, queries);
#if HWY_TARGET != HWY_AVX2
    case 5:
      return BoundPanel<5>(table, groups, first, end, ahead_bytes, words, queries);
    case 6:
      return BoundPanel<6>(table, groups, first, end, ahead_bytes, words, queries);
    case 7:
      return BoundPanel<7>(table, groups, first, end, ahead_bytes, words, queries);
    case 8:
      return BoundPanel<8>(table, groups, first, end, ahead_bytes, words, queries);
#endif
    default:
      return;
  }
}

// ---- float32 scores

// Eight items at a time: their chains of fma overlap.
HWY_NOINLINE void OfferItems(const RankTable& table, const int32_t* items, int64_t count,
                             RankedQuery* ranked) {
  constexpr int64_t kTogether = 8;
  const float* HWY_RESTRICT query = ranked->query->query;
  for (int64_t i = 0; i < count; i += kTogether) {
    const int64_t now = count - i < kTogether ? count - i : kTogether;
    const float* rows[kTogether];
    float sums[kTogether] = {};
    for (int64_t j = 0; j < kTogether; ++j) {
      rows[j] = table.embedding + static_cast<int64_t>(items[i + (j < now ? j : 0)]) * table.d;
    }
    for (int32_t d = 0; d < table.d; ++d) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kTogether; ++j) {
        sums[j] = FusedMultiplyAdd(query[d], rows[j][d], sums[j]);
      }
    }
    for (int64_t j = 0; j < now; ++j) {
      ranked->heap.Offer({Ranked(*ranked->query, sums[j], items[i + j]), items[i + j]});
    }
  }
  if (ranked->heap.size == ranked->heap.capacity) ranked->threshold = ranked->heap.entries[0].score;
}

void OfferWaiters(const RankTable& table, RankedQuery* ranked) {
  OfferItems(table, ranked->waiters, ranked->waiting, ranked);
  ranked->waiting = 0;
}

// Takes the survivors of a panel, without padding, items left out and items after the last. Their
// rows come from memory while the next panels are scanned, and survivors are scored many at a time;
// `now`: before the next panel, for the sake of its threshold.
void TakeSurvivors(const RankTable& table, bool now, RankedQuery* ranked) {
  for (int32_t i = 0; i < ranked->kept; ++i) {
    const int32_t item = ranked->survivors[i];
    if (item < 1 || item >= table.items || IsLeftOut(*ranked->query, item)) continue;
    const float* row = table.embedding + static_cast<int64_t>(item) * table.d;
    for (int32_t d = 0; d < table.d; d += 16) __builtin_prefetch(row + d);
    ranked->waiters[ranked->waiting++] = item;
    if (ranked->waiting == kMostWaiting) OfferWaiters(table, ranked);
  }
  ranked->kept = 0;
  if ((now || ranked->heap.size < ranked->heap.capacity) && ranked->waiting > 0) {
    OfferWaiters(table, ranked);
  }
}

void OfferCandidates(const RankTable& table, RankedQuery* ranked) {
  const TopKQuery& query = *ranked->query;
  for (int64_t i = 0; i < query.candidate_count;) {
    int64_t eligible = 0;
    for (; i < query.candidate_count && eligible < kPanelItems; ++i) {
      if (IsLeftOut(query, query.candidates[i])) continue;
      ranked->survivors[eligible++] = query.candidates[i];
    }
    if (eligible > 0) OfferItems(table, ranked->survivors, eligible, ranked);
  }
}

// ---- all queries over the table

struct RankScratch {
  RankedQuery* queries;  // [count]
  int32_t* words;        // [count][groups], interleaved within a group of queries
  int8_t* codes;         // [4 groups]
  int32_t* survivors;    // [kPanelItems + kLanes], used by one query after the other
  int32_t* waiters;      // [count][kMostWaiting]
};

int64_t CarveRank(int32_t d, int64_t count, float* base, RankScratch* scratch) {
  const int64_t groups = (static_cast<int64_t>(d) + 3) / 4;
  int64_t used = 0;
  const auto take = [&](int64_t bytes) -> void* {
    void* at = base == nullptr ? nullptr : base + used;
    used += (bytes + 63) / 64 * 16;
    return at;
  };
  scratch->queries = static_cast<RankedQuery*>(take(count * int64_t{sizeof(RankedQuery)}));
  scratch->words = static_cast<int32_t*>(take(count * groups * 4));
  scratch->codes = static_cast<int8_t*>(take(4 * groups));
  scratch->survivors =
      static_cast<int32_t*>(take(kMostQueries * (kPanelItems + kLanes) * int64_t{4}));
  scratch->waiters = static_cast<int32_t*>(take(count * kMostWaiting * int64_t{4}));
  return used;
}

// Panels are visited in a scattered order: a table sorted by popularity or length would else raise
// the thresholds last.
int64_t ScatterStep(int64_t panels) {
  int64_t step = panels * 618 / 1000 + 1;
  for (;; ++step) {
    int64_t a = panels, b = step;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    if (a == 1) return step;
  }
}

// Blocks first … end of the table for all queries.
void RankPanel(const RankTable& table, int64_t groups, int64_t first, int64_t end,
               int64_t ahead_bytes, bool now, RankedQuery* queries, int64_t count,
               const int32_t* words) {
  for (int64_t q = 0; q < count; q += kMostQueries) {
    const int64_t together = count - q < kMostQueries ? count - q : kMostQueries;
    BoundPanel(table, groups, first, end, q == 0 ? ahead_bytes : 0, words + q * groups, queries + q,
               together);
    for (int64_t j = q; j < q + together; ++j) {
      if (queries[j].kept > 0) TakeSurvivors(table, now, &queries[j]);
    }
  }
}

void RankTogether(const RankTable& table, int64_t groups, RankedQuery* queries, int64_t count,
                  const int32_t* words) {
  constexpr int64_t kEarlyPanels = 16;  // the thresholds still rise fast
  const int64_t blocks = (static_cast<int64_t>(table.items) + 15) / 16;
  const int64_t panels = (blocks + kPanelBlocks - 1) / kPanelBlocks;
  const int64_t step = ScatterStep(panels);
  for (int64_t i = 0, panel = 0; i < panels; ++i, panel = (panel + step) % panels) {
    const int64_t first = panel * kPanelBlocks;
    const int64_t end = first + kPanelBlocks < blocks ? first + kPanelBlocks : blocks;
    const int64_t next = (panel + step) % panels;
    const int64_t ahead_bytes = (next - panel) * kPanelBlocks * groups * 64;
    // Nothing of the first panel is below a threshold of -inf: it is taken in parts, each as long
    // as those before it.
    int64_t at = first;
    for (int64_t part = 1; i == 0 && at + part < end; at += part, part = at - first) {
      RankPanel(table, groups, at, at + part, ahead_bytes, true, queries, count, words);
    }
    RankPanel(table, groups, at, end, ahead_bytes, i < kEarlyPanels, queries, count, words);
  }
}

void Rank(const RankTable& table, const TopKQuery* queries, int64_t count, Scored* const* best,
          int32_t* found, float* scratch) {
  RankScratch parts;
  CarveRank(table.d, count, scratch, &parts);
  const int64_t groups = (static_cast<int64_t>(table.d) + 3) / 4;
  int64_t scanning = 0;  // queries over the whole table, in front
  for (int64_t i = 0; i < count; ++i) scanning += queries[i].candidates_only ? 0 : 1;
  int64_t next_scan = 0, next_other = scanning;
  for (int64_t i = 0; i < count; ++i) {
    RankedQuery& ranked = parts.queries[queries[i].candidates_only ? next_other++ : next_scan++];
    ranked.query = &queries[i];
    ranked.heap = {best[i], queries[i].k};
    ranked.threshold = kMinusInfinity;
    ranked.kept = 0;
    ranked.survivors = parts.survivors;
    ranked.waiting = 0;
    ranked.waiters = parts.waiters + i * kMostWaiting;
    if (queries[i].candidates_only) {
      OfferCandidates(table, &ranked);
      continue;
    }
    const int64_t at = next_scan - 1;
    const int64_t first = at / kMostQueries * kMostQueries;
    const int64_t together = scanning - first < kMostQueries ? scanning - first : kMostQueries;
    ranked.survivors = parts.survivors + (at - first) * (kPanelItems + kLanes);
    PrepareQuery(table, queries[i].query, groups, together, parts.codes,
                 parts.words + (first * groups + (at - first)), &ranked);
  }
  RankTogether(table, groups, parts.queries, scanning, parts.words);
  for (int64_t i = 0; i < count; ++i) {
    RankedQuery& ranked = parts.queries[i];
    if (ranked.waiting > 0) OfferWaiters(table, &ranked);
    ranked.heap.Sort();
    found[ranked.query - queries] = ranked.heap.size;
  }
}

int64_t RankScratchFloats(int32_t d, int64_t count) {
  RankScratch scratch;
  return CarveRank(d, count, nullptr, &scratch);
}

}  // namespace
}  // namespace tim4rec::kernels
HWY_AFTER_NAMESPACE();

#endif  // TIM4REC_MODEL_KERNELS_SIMD_RANK_INL_H_
