// Exact ranking on a device: kernels::TopK for many queries in one pass over a table of bytes. The
// results are those of kernels::TopK, bit for bit, on any data.
//
// A batch goes through these launches, which wait for nothing on the host:
//   prepare  quantizes the queries and guesses a threshold for each from a sample of 2048 items;
//   sample   (large tables) scans 1/32 of the table with that guess, for a better one;
//   scan     computes all bounds of rank_table.h on matrix units and keeps, for each query, the
//            items whose bound reaches the threshold; nothing else of the B x V scores is written;
//   finish   scores what was kept in float32, in the canonical order, and selects;
//   exact    does anew, without a guess, the queries whose guess was too high or whose survivors
//   did
//            not fit, and those that name their candidates. Usually none: it ends at once.
// A guess is never trusted: it stands only if the k-th best score found is not below it.
//
// Plain C++: neither this header nor its sources include anything but the CUDA runtime and the
// standard library. Thread-safe; what is given to one call must not be in use by another.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_RANK_H_
#define TIM4REC_MODEL_KERNELS_CUDA_RANK_H_

#include <cstddef>
#include <cstdint>

#include "model/kernels/cuda/fault.h"
#include "model/kernels/kernels.h"

namespace tim4rec::cuda {

// Limits of one call of Rank.
inline constexpr int32_t kMostRankQueries = 4096;
inline constexpr int32_t kMostRanked = 1000;  // k
// Boosts on the device have room for a whole number of tiles: RankBoostFloats values, of which
// those from V on are never used.
inline constexpr int32_t kItemTile = 64;

// The table in device memory, beside the embedding, which is read for the items that survive.
// Bytes per item: D rounded up to 32, and 4.
struct ItemTable {
  int32_t items, d;        // V >= 2; D 1 … 4096
  const float* embedding;  // [V][D], finite, 16-byte aligned
  // [ceil(V/64)][4][ceil(D/32)][32][16]: codes in the order in which the lanes of a warp take them.
  // Item 8 g + 2 m + h of a tile is row g + 8 h of its matrix m.
  const uint8_t* codes;
  const float* inverse_scales;  // [64 ceil(V/64)]: 1 / scale; zeros after the last item
  float residual, code_norm, largest_scale;  // as kernels::RankTable
};

// Device memory of a table, without its embedding. 256-byte aligned memory is needed.
int64_t ItemTableBytes(int32_t items, int32_t d);
// Makes the table of `embedding`, in device memory, at `memory`, and waits for it. Both stay in use
// by the table.
Fault BuildItemTable(const float* embedding, int32_t items, int32_t d, void* memory, Stream stream,
                     ItemTable* table);

int64_t RankBoostFloats(int32_t items);

// What a call needs besides its queries, for `count` queries and k up to `most_k`: host memory that
// should be pinned, and device memory, 256-byte aligned; neither needs to be cleared. For 4096
// queries and k = 100 about 140 MB on the device; it grows with `count`, and doubles above k = 256.
struct RankMemory {
  int64_t host_bytes, device_bytes;
};
RankMemory RankMemoryFor(const ItemTable& table, int32_t count, int32_t most_k);

// Puts the ranking of `count` queries, 1 … kMostRankQueries, on the stream and returns.
//
// `queries` is read before it returns; what its members point to (query, excluded, candidates,
// eligible, boost) is device memory. excluded: up to 2^31 ids; candidates are read only if
// candidates_only; boost has RankBoostFloats values. k is 1 … most_k <= kMostRanked.
// Queries that share a boost are scanned together: few different ones should be in a batch.
//
// Query i's best are written to best[i * most_k …], best first, and their number to found[i], both
// in device memory, which the stream's next work may read. `host` and `device` are in use until
// then; the first int32 of `device` is then the number of queries that were ranked exactly, for
// want of a guess that stood or because they name candidates. A fault means that nothing is ranked.
Fault Rank(const ItemTable& table, const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
           void* host, void* device, Stream stream, kernels::Scored* best, int32_t* found);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_RANK_H_
