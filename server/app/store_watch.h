// Tells when the store stops and starts to take writes.
#ifndef TIM4REC_SERVER_APP_STORE_WATCH_H_
#define TIM4REC_SERVER_APP_STORE_WATCH_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

// What one probe after the other means. A fault counts at once. That writes wait for compaction
// counts once they have done so for kPatience: it ends by itself, mostly within a second, and to
// send away all clients for that costs more than it spares them. Not thread-safe.
class StoreVerdict {
 public:
  static constexpr absl::Duration kPatience = absl::Seconds(5);

  // OK, or why the store counts as taking no writes, after a probe with that outcome.
  absl::Status Note(const absl::Status& probed, absl::Time now);
  // Whether writes wait, though that does not count yet.
  bool patient() const { return waiting_since_ != absl::InfiniteFuture() && writable_; }

 private:
  bool writable_ = true;
  absl::Time waiting_since_ = absl::InfiniteFuture();
};

// Probes the store (RocksDbStore::CheckWritable, which also brings it back) from a thread of its
// own: every 5 s while it takes writes, each second while it does not, and within 0.1 s of a failed
// append.
class StoreWatch {
 public:
  // `on_change` is called from the thread with each StoreVerdict that, OK or not, is not the one
  // before; the first one counts as preceded by an OK. The store outlives the watch.
  StoreWatch(RocksDbStore* store, std::function<void(const absl::Status&)> on_change);
  // Ends the thread; no call of `on_change` follows.
  ~StoreWatch();

 private:
  void Run();

  RocksDbStore* const store_;
  const std::function<void(const absl::Status&)> on_change_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_

  std::thread thread_;  // last: starts when all else is built
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_APP_STORE_WATCH_H_
