// Many who write, or one who knows that nobody does.
#ifndef TIM4REC_STORE_WRITE_GATE_H_
#define TIM4REC_STORE_WRITE_GATE_H_

#include <condition_variable>
#include <mutex>

namespace tim4rec {

// Unlike with std::shared_mutex, whoever closes the gate waits for the writes that are under way
// and for no others. Thread-safe.
class WriteGate {
 public:
  // A write that is under way; waits while the gate is closed.
  class Writing {
   public:
    explicit Writing(WriteGate& gate) : gate_(gate) {
      std::unique_lock lock(gate_.mutex_);
      gate_.changed_.wait(lock, [this] { return !gate_.closed_; });
      ++gate_.writing_;
    }
    ~Writing() {
      const std::lock_guard lock(gate_.mutex_);
      if (--gate_.writing_ == 0 && gate_.closed_) gate_.changed_.notify_all();
    }
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;

   private:
    WriteGate& gate_;
  };

  // Closed for its life time: no write is under way. Not by a thread that writes.
  class Closed {
   public:
    explicit Closed(WriteGate& gate) : gate_(gate) {
      std::unique_lock lock(gate_.mutex_);
      gate_.changed_.wait(lock, [this] { return !gate_.closed_; });
      gate_.closed_ = true;
      gate_.changed_.wait(lock, [this] { return gate_.writing_ == 0; });
    }
    ~Closed() {
      const std::lock_guard lock(gate_.mutex_);
      gate_.closed_ = false;
      gate_.changed_.notify_all();
    }
    Closed(const Closed&) = delete;
    Closed& operator=(const Closed&) = delete;

   private:
    WriteGate& gate_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int writing_ = 0;      // guarded by mutex_
  bool closed_ = false;  // guarded by mutex_
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_WRITE_GATE_H_
