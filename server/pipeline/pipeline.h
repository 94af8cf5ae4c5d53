// Orders requests per user and answers them in micro-batches.
//
// A user belongs to one of kPartitions partitions, a partition to one worker thread, so a user's
// events are folded in order without locks. A worker takes whatever is waiting (up to max_batch)
// and never waits for more. Jobs of single calls come first; those of streams get a tenth of its
// time, and all that is left. In a batch: all Records (one append to the log, synced if one of them
// asks for it), one fold over all users, then all reads, then the answers; a DeleteUser is a
// barrier. A recommendation whose min_state_version is not reached waits, as long
// as its deadline allows, while others go on.
#ifndef TIM4REC_SERVER_PIPELINE_PIPELINE_H_
#define TIM4REC_SERVER_PIPELINE_PIPELINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/job.h"
#include "server/pipeline/models.h"
#include "server/pipeline/retention.h"
#include "server/telemetry/metrics.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

// What becomes of an event that lies before the last one in its user's log.
enum class LatePolicy {
  kRefold,  // it is stored, and the state folded again from the log
  kAppend,  // it is stored and folded as the newest, at the time of the last one
  kReject,  // it is not stored
};

struct PipelineOptions {
  int workers = 1;                                       // at least 1
  int64_t queue_rows = 16384;                            // waiting per worker, see JobQueue
  int64_t queue_bytes = 64 << 20;                        // likewise
  absl::Duration queue_delay = absl::Milliseconds(250);  // see Worker::RowsForNow
  int64_t max_batch = 256;                               // jobs in one micro-batch
  int64_t max_resident_users = 100000;  // over all workers and models; each worker has at least one
  absl::Duration checkpoint_interval = absl::Seconds(30);  // zero: on eviction and drain only
  int64_t checkpoint_group = 2;                            // states per StateStore::Put
  LatePolicy late_policy = LatePolicy::kRefold;
  RetentionPolicy retention;
  absl::Duration sweep_interval = absl::Hours(24);  // at most one look at each user in that time
  std::function<absl::Time()> clock;                // required; any thread
};

// All outlive the pipeline.
struct PipelineDeps {
  const Models* models;
  EventLog* log;
  StateStore* states;
  std::function<absl::StatusOr<DeletedUser>(std::string_view user_id)> delete_user;
  std::function<absl::Status(std::string_view user_id)>
      purge_user;  // after delete_user; any thread
  Metrics* metrics;
  // Required if there is retention; any worker's thread.
  std::function<absl::Status(std::span<const UserTruncation>)> truncate = nullptr;
  // Called when states turn out to be lost with their device; any worker's thread. Or null.
  std::function<void()> on_states_lost = nullptr;
};

inline constexpr uint64_t kPartitions = 256;

// XXH3 (64 bits, seed 0) of the user id modulo kPartitions. Stable over releases and machines.
uint64_t PartitionOf(std::string_view user_id);

class Purger;
class RetentionSweep;
class Worker;
struct Order;

// Thread-safe.
class Pipeline {
 public:
  Pipeline(const PipelineOptions& options, const PipelineDeps& deps);
  // Drains.
  ~Pipeline();

  // Takes the job, which lives until its Complete. RESOURCE_EXHAUSTED if the worker's queue is
  // full (then `retry_after` is set), UNAVAILABLE once draining; then the job was not taken. Never
  // blocks on work. Whoever submits bulk jobs waits and tries again: their refusals are not counted
  // as dropped requests.
  absl::Status Submit(Job* job);

  // Folds the users that are resident under `from` for `to` as well, those used last first, at most
  // half of max_resident_users: between batches, a fraction of a millisecond at a time, a twentieth
  // of each worker's time while there are requests. Returns when that is done, or the error of the
  // first fold that fails; CANCELLED soon after `stop()`; UNAVAILABLE once draining.
  absl::Status Refold(const ModelHandle& from, const ModelHandle& to,
                      const std::function<bool()>& stop);

  // Returns when the workers have freed the states of models that are unloaded or whose
  // kept_until_ms has come, and write none of them any more.
  void ReleaseStates();

  // Refuses new jobs, answers those taken, writes all changed states and flushes the state store.
  // The status is the store's. Repeatable.
  absl::Status Drain();

 private:
  std::vector<std::shared_ptr<Order>> Post(const ModelHandle& from, const ModelHandle& to);

  const Models* models_;
  StateStore* states_;
  std::unique_ptr<Purger> purger_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<uint64_t> histories_ = 0;    // jobs of nobody in particular: dealt out in turn
  std::unique_ptr<RetentionSweep> sweep_;  // if there is retention
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_PIPELINE_H_
