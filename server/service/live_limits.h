// Limits of requests that may change while the server runs.
#ifndef TIM4REC_SERVER_SERVICE_LIVE_LIMITS_H_
#define TIM4REC_SERVER_SERVICE_LIVE_LIMITS_H_

#include <atomic>
#include <list>
#include <utility>

#include "server/service/codec.h"

namespace tim4rec {

// Thread-safe but for Set, which one thread calls.
class LiveLimits {
 public:
  explicit LiveLimits(RequestLimits limits) { Set(std::move(limits)); }

  // Those of now, which stay readable as long as this lives.
  const RequestLimits& now() const { return *now_.load(std::memory_order_acquire); }

  void Set(RequestLimits limits) {
    now_.store(&all_.emplace_back(std::move(limits)), std::memory_order_release);
  }

 private:
  // Calls may still read the old ones, which are few and small.
  std::list<RequestLimits> all_;
  std::atomic<const RequestLimits*> now_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_LIVE_LIMITS_H_
