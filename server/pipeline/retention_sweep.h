// Finds the users whose logs retention should cut though nobody asks for them.
#ifndef TIM4REC_SERVER_PIPELINE_RETENTION_SWEEP_H_
#define TIM4REC_SERVER_PIPELINE_RETENTION_SWEEP_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/pipeline/retention.h"
#include "server/telemetry/metrics.h"
#include "store/event_log.h"

namespace tim4rec {

// One thread that reads all logs, again and again, a twentieth of its time. It holds nothing of the
// store for longer than a few users take.
class RetentionSweep {
 public:
  struct Options {
    RetentionPolicy policy;
    absl::Duration interval;  // from the beginning of one round to that of the next
    std::function<absl::Time()> clock;
  };
  // `offer` hands a user to the worker that owns him; false: not now. Any thread. All outlive it.
  RetentionSweep(const Options& options, const EventLog* log, Metrics* metrics,
                 std::function<bool(std::string_view user_id)> offer);
  // Stops.
  ~RetentionSweep();

 private:
  void Run();
  // Looks at the next few users behind `*after`; false if there are none, or the store fails.
  bool SweepSome(std::string* after);
  bool NeedsCut(const std::string& user_id);
  void Offer(const std::string& user_id);
  void Fail(const absl::Status& status);
  // False once it is to stop.
  bool Rest(absl::Duration duration);

  const Options options_;
  const EventLog* const log_;
  Metrics* const metrics_;
  const std::function<bool(std::string_view user_id)> offer_;

  std::mutex mutex_;  // guards stopped_
  std::condition_variable wake_;
  bool stopped_ = false;
  std::thread thread_;  // last: starts when all else is built
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_RETENTION_SWEEP_H_
