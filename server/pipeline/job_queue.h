// The jobs that wait for one worker: which are taken, which are refused, and which come next.
#ifndef TIM4REC_SERVER_PIPELINE_JOB_QUEUE_H_
#define TIM4REC_SERVER_PIPELINE_JOB_QUEUE_H_

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "server/pipeline/job.h"

namespace tim4rec {

// What a job is to a queue. Rows: the interactions that it carries and the recommendations that it
// asks for, at least one. Bytes: what it holds of memory, about.
struct JobSize {
  int64_t rows = 0;
  int64_t bytes = 0;
};
JobSize SizeOf(const Job& job);

// Jobs of single calls and jobs of streams (Job::bulk) wait in a lane each, first come first
// served. A lane is bounded by rows and by bytes; the lane of streams has half of both. A job that
// finds its lane empty is taken whatever its size.
//
// No client (Job::client) and no user has more rows in a lane than are left free there. So one
// alone fills half of a lane, two of them a third each, and who comes new always finds room. Not
// thread-safe.
class JobQueue {
 public:
  struct Limits {
    int64_t rows;
    int64_t bytes;
  };
  explicit JobQueue(const Limits& limits);

  enum class Refusal { kNone, kFull, kShare };

  // Queues the job, or refuses it: then `why` says what is full. The lane of single calls is
  // bounded to `rows_for_now` where that is less than its limit.
  Refusal Push(Job* job, int64_t rows_for_now, absl::Status* why);

  // Moves the first jobs of a lane to `batch`: at most `jobs`, and after the first no more than
  // `rows`.
  void PopOnline(int64_t jobs, std::vector<Job*>* batch) { Pop(&online_, jobs, kAll, batch); }
  void PopBulk(int64_t jobs, int64_t rows, std::vector<Job*>* batch) {
    Pop(&bulk_, jobs, rows, batch);
  }

  bool empty() const { return online_.jobs.empty() && bulk_.jobs.empty(); }
  bool has_online() const { return !online_.jobs.empty(); }
  bool has_bulk() const { return !bulk_.jobs.empty(); }
  int64_t online_jobs() const { return static_cast<int64_t>(online_.jobs.size()); }
  int64_t jobs() const { return static_cast<int64_t>(online_.jobs.size() + bulk_.jobs.size()); }
  JobSize online() const { return online_.size; }
  JobSize bulk() const { return bulk_.size; }

 private:
  static constexpr int64_t kAll = INT64_MAX;

  struct Waiting {
    Job* job;
    JobSize size;
    uint64_t user;
  };
  struct Lane {
    Limits limits;
    std::deque<Waiting> jobs;
    JobSize size;
    std::unordered_map<uint64_t, int64_t> shares;  // rows by client and by user
  };

  static void Pop(Lane* lane, int64_t jobs, int64_t rows, std::vector<Job*>* batch);

  Lane online_;
  Lane bulk_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_JOB_QUEUE_H_
