// The best k of what is offered. Internal linkage: each file has its own, see simd_math-inl.h.
#ifndef TIM4REC_MODEL_KERNELS_BEST_HEAP_INL_H_
#define TIM4REC_MODEL_KERNELS_BEST_HEAP_INL_H_

#include "model/kernels/kernels.h"

namespace tim4rec::kernels {
namespace {

inline bool Better(const Scored& a, const Scored& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// The best k seen so far as a binary heap, the worst of them at the root.
struct BestHeap {
  Scored* entries;
  int32_t capacity;
  int32_t size = 0;

  void SiftDown(int32_t at, int32_t end) {
    const Scored moved = entries[at];
    for (;;) {
      int32_t child = 2 * at + 1;
      if (child >= end) break;
      if (child + 1 < end && Better(entries[child], entries[child + 1])) ++child;
      if (!Better(moved, entries[child])) break;
      entries[at] = entries[child];
      at = child;
    }
    entries[at] = moved;
  }

  void Offer(const Scored& scored) {
    if (size == capacity) {
      if (!Better(scored, entries[0])) return;
      entries[0] = scored;
      SiftDown(0, size);
      return;
    }
    int32_t at = size++;
    for (int32_t parent; at > 0 && Better(entries[parent = (at - 1) / 2], scored); at = parent) {
      entries[at] = entries[parent];
    }
    entries[at] = scored;
  }

  // Orders the entries best first.
  void Sort() {
    for (int32_t end = size - 1; end > 0; --end) {
      const Scored worst = entries[0];
      entries[0] = entries[end];
      entries[end] = worst;
      SiftDown(0, end);
    }
  }
};

constexpr float kMinusInfinity = -__builtin_inff();

// What an item is ranked by: its score and what the query adds to it.
inline float Ranked(const TopKQuery& query, float score, int32_t item) {
  if (query.boost != nullptr) score += query.boost[item];
  return score == score ? score : kMinusInfinity;
}

// Walks an ascending list beside ascending items.
struct ExcludedWalk {
  const int32_t* next;
  const int32_t* end;

  bool Contains(int32_t item) {
    while (next != end && *next < item) ++next;
    return next != end && *next == item;
  }
};

}  // namespace
}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_BEST_HEAP_INL_H_
