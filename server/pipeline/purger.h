// Rewrites the files that held deleted users, beside the workers, since it may take seconds.
#ifndef TIM4REC_SERVER_PIPELINE_PURGER_H_
#define TIM4REC_SERVER_PIPELINE_PURGER_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "server/pipeline/job.h"

namespace tim4rec {

// Thread-safe.
class Purger {
 public:
  explicit Purger(std::function<absl::Status(std::string_view user_id)> purge);
  // Finishes what it has taken.
  ~Purger();

  // Takes a job whose user is deleted, purges, and completes the job.
  void Take(Job* job);

 private:
  void Run();

  const std::function<absl::Status(std::string_view user_id)> purge_;
  std::mutex mutex_;  // guards the two members below
  std::deque<Job*> jobs_;
  bool closed_ = false;
  std::condition_variable wake_;
  std::thread thread_;  // last: starts when all else is built
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_PURGER_H_
