// The streams that are open, so that a drain can end them.
#ifndef TIM4REC_SERVER_SERVICE_OPEN_STREAMS_H_
#define TIM4REC_SERVER_SERVICE_OPEN_STREAMS_H_

#include <cstdint>
#include <mutex>
#include <unordered_set>

namespace tim4rec {

// Either call may be the last thing that happens to the stream.
class OpenStream {
 public:
  // Begins to read.
  virtual void Start() = 0;
  // Takes nothing further, and ends with UNAVAILABLE once what was taken is answered.
  virtual void Drain() = 0;

 protected:
  ~OpenStream() = default;
};

// Thread-safe; outlives the streams.
class OpenStreams {
 public:
  // Starts the stream, or drains it.
  void Add(OpenStream* stream) {
    std::lock_guard lock(mutex_);
    streams_.insert(stream);
    if (draining_) {
      stream->Drain();
    } else {
      stream->Start();
    }
  }
  void Remove(OpenStream* stream) {
    std::lock_guard lock(mutex_);
    streams_.erase(stream);
  }

  // Drains all, also those to come.
  void Drain() {
    std::lock_guard lock(mutex_);
    draining_ = true;
    for (OpenStream* stream : streams_) stream->Drain();
  }

  int64_t open() const {
    std::lock_guard lock(mutex_);
    return static_cast<int64_t>(streams_.size());
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_set<OpenStream*> streams_;
  bool draining_ = false;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_OPEN_STREAMS_H_
