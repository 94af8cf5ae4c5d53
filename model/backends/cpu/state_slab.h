// Memory for state records of one size, by slot.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_STATE_SLAB_H_
#define TIM4REC_MODEL_BACKENDS_CPU_STATE_SLAB_H_

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace tim4rec {

// Records lie in chunks of about 2 MiB that never move and are kept until the end. A thread keeps a
// chunk ahead of what is asked for: the first touch of a huge page takes a good part of a
// millisecond, which callers do not wait for unless they outrun it. Thread-safe; only Allocate and
// Release take the mutex.
class StateSlab {
 public:
  explicit StateSlab(int64_t record_bytes);  // a multiple of 16
  ~StateSlab();
  StateSlab(const StateSlab&) = delete;
  StateSlab& operator=(const StateSlab&) = delete;

  // A slot whose record is all zero. RESOURCE_EXHAUSTED if the system gives no memory.
  absl::StatusOr<int32_t> Allocate();
  // `slot` is allocated and no longer used.
  void Release(int32_t slot);

  // Whether there is a record for `slot`, given out or not.
  bool Contains(int32_t slot) const {
    return slot >= 0 && slot < slots_.load(std::memory_order_acquire);
  }
  // The record, 16-byte aligned. Needs Contains(slot).
  std::byte* record(int32_t slot) const;

 private:
  // Chunk c is entry c + 1 - 2^i of table i = floor(log2(c + 1)): tables never move or grow.
  static constexpr int kTables = 31;
  std::atomic<std::byte*>& ChunkEntry(int64_t chunk) const;
  void KeepAhead();
  bool Grow();                      // holding mutex_
  bool AddChunk(std::byte* chunk);  // holding mutex_; takes the chunk, which may be null

  const int64_t record_bytes_;
  const int64_t records_per_chunk_;
  std::atomic<int32_t> slots_ = 0;
  std::array<std::atomic<std::atomic<std::byte*>*>, kTables> tables_ = {};

  // Not absl::Mutex: the system's abseil is built without what the thread sanitizer needs to see
  // it.
  std::mutex mutex_;
  std::condition_variable low_;
  std::vector<int32_t> free_;  // guarded by mutex_
  bool stopped_ = false;       // guarded by mutex_
  std::thread ahead_;          // runs KeepAhead
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_STATE_SLAB_H_
