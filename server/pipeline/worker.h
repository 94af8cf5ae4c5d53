// One thread of the pipeline with its queue and its resident users.
#ifndef TIM4REC_SERVER_PIPELINE_WORKER_H_
#define TIM4REC_SERVER_PIPELINE_WORKER_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/pipeline/batch_times.h"
#include "server/pipeline/job.h"
#include "server/pipeline/job_queue.h"
#include "server/pipeline/pipeline.h"
#include "server/pipeline/purger.h"
#include "server/pipeline/refold.h"
#include "server/pipeline/residents.h"
#include "server/pipeline/retention.h"

namespace tim4rec {

// What a worker is to do between batches: fold states of `from` for `to`, or, without models,
// free the states that no longer need to be kept.
struct Order {
  ModelHandle from;
  ModelHandle to;
  std::atomic<bool> stopped = false;  // by whoever posted it
  std::promise<absl::Status> done;
  std::future<absl::Status> result = done.get_future();
};

class Worker {
 public:
  // `purger` outlives the worker's thread.
  Worker(int index, int64_t capacity, const PipelineOptions& options, const PipelineDeps& deps,
         Purger* purger);
  // Closes and joins.
  ~Worker();

  // As Pipeline::Submit. Any thread.
  absl::Status Submit(Job* job);

  // Answered by the thread, with UNAVAILABLE if it ends first. Any thread.
  void Post(std::shared_ptr<Order> order);

  // Has retention look at a user of this worker; false if enough users wait for that. Any thread.
  bool OfferCut(std::string_view user_id);

  // Refuses new jobs; the thread ends once those taken are complete and changed states are written.
  void Close();
  void Join();

 private:
  void Run();
  // When Take must return even if nothing has come.
  absl::Time NextWake() const;
  // Moves waiting jobs of one lane into `batch`, or waits until there are some or an order, `until`
  // has come or the queue is closed. False once closed and empty.
  bool Take(absl::Time until, std::vector<Job*>* batch);
  // How many rows of single calls may wait: as many as make a batch of queue_delay, so that who is
  // taken waits about that long, and for the batch before. A burst after a pause may be done later
  // by as long as the pause lasted, by 100 ms at most: so a moment without calls, as when threads
  // that bring them find no core, excuses no more than a moment of them.
  int64_t RowsForNow(absl::Time now) const;
  // Of single calls such as those that wait.
  int64_t FullBatchRows() const;
  // A recommendation that waits for its min_state_version until then.
  struct Waiting {
    Job* job;
    absl::Time give_up;
  };

  // The jobs taken, and what becomes of the lanes' shares of time.
  void RunTaken(const std::vector<Job*>& batch);
  void RunBatch(const std::vector<Job*>& jobs, bool may_wait);
  // Answers those whose state version is reached, or who have waited enough.
  void RunWaiting();
  bool DropIfLate(Job* job, absl::Time now);
  void DeleteUser(Job* job);
  void CheckpointIfDue();
  void TakeOrders();
  void ReleaseSome();
  void RefoldSome();
  void CutSome();
  // When work between batches that began at `start` and is done may go on.
  absl::Time RestFrom(absl::Time start) const;
  void EndRefold(absl::Status status);
  void EndOrders();

  const PipelineOptions options_;
  const PipelineDeps deps_;
  prometheus::Gauge& depth_;
  Purger* const purger_;

  // Used by the thread only.
  Residents residents_;
  Retention retention_;
  absl::Time next_cut_ = absl::InfinitePast();
  absl::Time next_checkpoint_;
  int64_t checkpoints_left_ = 0;                  // of the periodic round that is under way
  absl::Time next_group_ = absl::InfinitePast();  // of that round
  std::vector<std::shared_ptr<Order>> releases_;
  bool releasing_ = false;                      // states are left to be freed
  std::deque<std::shared_ptr<Order>> refolds_;  // the first is under way
  std::optional<Refold> refold_;
  absl::Time next_refold_ = absl::InfinitePast();
  absl::Time last_batch_ = absl::InfinitePast();  // its end
  std::vector<Waiting> waiting_jobs_;

  // The standard mutex, which the thread sanitizer sees through (Debian's abseil is not built for
  // it). It guards the members below.
  std::mutex mutex_;
  std::condition_variable wake_;
  JobQueue queue_;
  BatchTimes online_times_;   // of single calls
  BatchTimes bulk_times_;     // of jobs of streams
  absl::Duration bulk_owed_;  // what they are to get before single calls go on
  JobSize taken_;             // by the last Take
  bool taken_bulk_ = false;   // which lane that was
  absl::Time last_online_ = absl::InfinitePast();
  bool idle_ = true;       // no single call has come since Take last found none
  absl::Time idle_since_;  // that Take; at first, the start
  absl::Time burst_until_ = absl::InfinitePast();
  std::vector<std::shared_ptr<Order>> orders_;
  std::vector<std::string> offered_;  // for retention_
  size_t to_cut_ = 0;                 // retention_.size() when last looked at
  bool closed_ = false;
  bool waiting_ = false;

  std::thread thread_;  // last: starts when all else is built
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_WORKER_H_
