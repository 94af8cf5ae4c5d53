// The RAM that all streams together hold for what they have read and not yet answered.
#ifndef TIM4REC_SERVER_SERVICE_STREAM_MEMORY_H_
#define TIM4REC_SERVER_SERVICE_STREAM_MEMORY_H_

#include <prometheus/gauge.h>

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace tim4rec {

// Thread-safe; outlives what is held.
class StreamMemory {
 public:
  // `gauge` shows the bytes held.
  explicit StreamMemory(prometheus::Gauge* gauge) : gauge_(gauge) {}

  // Given back when it ends.
  class Held {
   public:
    Held() = default;
    Held(Held&& other) noexcept { *this = std::move(other); }
    Held& operator=(Held&& other) noexcept {
      std::swap(memory_, other.memory_);
      std::swap(client_, other.client_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Held() {
      if (memory_ != nullptr) memory_->Add(client_, -bytes_);
    }

   private:
    friend class StreamMemory;
    Held(StreamMemory* memory, uint64_t client, int64_t bytes)
        : memory_(memory), client_(client), bytes_(bytes) {}

    StreamMemory* memory_ = nullptr;
    uint64_t client_ = 0;
    int64_t bytes_ = 0;
  };

  // Whether a client may take more of `most` bytes: while it holds less than is left free, so that
  // one alone gets half, two a third each, and who comes new finds room. What it takes then may be
  // more than was left, by as much as a message holds.
  bool HasRoom(uint64_t client, int64_t most) const {
    std::lock_guard lock(mutex_);
    const auto held = by_client_.find(client);
    return (held == by_client_.end() ? 0 : held->second) < most - total_;
  }

  Held Hold(uint64_t client, int64_t bytes) {
    Add(client, bytes);
    return {this, client, bytes};
  }

 private:
  void Add(uint64_t client, int64_t bytes) {
    std::lock_guard lock(mutex_);
    total_ += bytes;
    int64_t& held = by_client_[client];
    held += bytes;
    if (held == 0) by_client_.erase(client);
    gauge_->Set(static_cast<double>(total_));
  }

  prometheus::Gauge* const gauge_;
  mutable std::mutex mutex_;
  int64_t total_ = 0;
  std::unordered_map<uint64_t, int64_t> by_client_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_STREAM_MEMORY_H_
