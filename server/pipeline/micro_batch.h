// Requests of one worker that are computed together.
#ifndef TIM4REC_SERVER_PIPELINE_MICRO_BATCH_H_
#define TIM4REC_SERVER_PIPELINE_MICRO_BATCH_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/history.h"
#include "server/pipeline/job.h"
#include "server/pipeline/models.h"
#include "server/pipeline/pipeline.h"
#include "server/pipeline/residents.h"
#include "server/pipeline/retention.h"
#include "server/telemetry/metrics.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

// Used by one thread: Add the jobs, then Execute once. Order of effects: late events are rejected
// or given their place at the end of the log, if so configured; all records become part of the log
// (one Append), then of the states under the jobs' models (one Advance per model); then all reads.
// A job whose status is not OK
// after a phase takes no part in the next.
class MicroBatch {
 public:
  struct Deps {
    EventLog* log;
    StateStore* states;
    Metrics* metrics;
    Residents* residents;
    Retention* retention;  // told of logs that have grown too long
    LatePolicy late_policy = LatePolicy::kRefold;
    std::function<void()> on_states_lost = nullptr;  // or null
  };
  MicroBatch(const Deps& deps, int64_t now_ms);

  // False if the batch holds as many states as can be resident at once, or the user under another
  // model: run it first. Takes no delete_user jobs.
  bool Add(Job* job);

  // Computes and completes every job but those that it returns: recommendations that wait.
  std::vector<Job*> Execute();

 private:
  struct AddedEvent {
    Position position;
    const Event* event;
    EventOutcome* outcome;

    // The position at which, or behind which, it is folded, and its rank there.
    std::pair<std::string_view, uint32_t> place() const {
      return {event->late.rank > 0 ? event->late.position : position, event->late.rank};
    }
  };

  // What the batch does with one user, under one model.
  struct UserWork {
    ModelHandle model;
    std::string_view user_id;
    std::vector<Job*> jobs;
    std::vector<AddedEvent> added;
    absl::Status status;
    Resident* resident = nullptr;  // null: no events
    bool loaded = false;           // became resident in this batch
    Tier tier = Tier::kColdStart;
  };

  // One request's events on their way into the log.
  struct RecordAppend {
    UserWork* work;
    Job* job;
    std::span<const Event> events;
  };

  // One recommendation: the state it reads.
  struct Read {
    Job* job = nullptr;
    const LoadedModel* model = nullptr;
    bool past = false;  // `slot` is temporary, `pending` is to be folded into it; of a history too
    Slot slot = -1;
    std::vector<FoldEvent> pending;
    std::vector<int32_t> past_seen;
    const std::vector<int32_t>* seen = nullptr;
    std::vector<int32_t> excluded;
  };

  // The end of a user's log and which of a batch's events are in it.
  struct LogEnd {
    Position removed_up_to;  // what is not behind it was removed, or is refused as expired
    FoldPlace last;
    std::unordered_set<Position> stored;
  };

  void PlaceLate(UserWork* work);
  bool MayHoldLate(const UserWork& work) const;
  absl::StatusOr<LogEnd> ReadEnd(const UserWork& work) const;
  void PlaceLate(RecordCommand* record, LogEnd* end) const;
  void AppendRecords();
  void NoteAdded(const UserWork& work);
  absl::Status Append(std::span<const RecordAppend> appends, Durability durability);
  void FailAppends(std::span<const RecordAppend> appends, const absl::Status& status);
  void PrepareUser(UserWork* work);
  absl::Status LoadUser(UserWork* work);
  absl::Status AdvanceResident(UserWork* work);
  absl::Status UpdateResident(UserWork* work);
  void PrepareRead(UserWork* work, Job* job);
  void PrepareHistoryRead(Job* job);
  static absl::Status ReadHistoryOf(Read* read);
  // What a read of the past by that field of the request fails with.
  absl::Status PastError(const char* field, const absl::Status& status) const;
  absl::Status PreparePastRead(Read* read);
  static absl::Status ReadFrom(UserHistory history, Read* read);
  void AddRead(Read read);
  // Folds and ranks, again with what the store rebuilds if states are lost with their device.
  void Compute(const LoadedModel& model);
  void Recover(const LoadedModel& model, const absl::Status& lost);
  // Fails only if states are lost; then nothing has changed.
  absl::Status Fold(const LoadedModel& model);
  void FailFold(const LoadedModel& model, const absl::Status& status);
  void PrepareRank(const LoadedModel& model);
  absl::Status Rank(const LoadedModel& model);  // as Fold
  void RankByPopularity(Read* read);
  void ReadUser(const UserWork& work, Job* job);
  void Verify(const UserWork& work, Job* job);
  void Count(const RecordCommand& record) const;
  // The time since the last call, or since Execute began.
  absl::Duration Lap();
  void ObserveStages() const;
  std::vector<Job*> Finish();

  const Deps deps_;
  const int64_t now_ms_;
  absl::Time begin_;  // of Execute
  absl::Time lap_;
  StageTimes stages_;
  std::vector<Job*> jobs_;
  std::vector<Job*> histories_;  // those of jobs_ that bring their own
  std::deque<UserWork> works_;
  std::unordered_map<std::string_view, UserWork*> by_user_;
  std::set<const LoadedModel*> models_;  // of the jobs
  std::deque<Read> reads_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_MICRO_BATCH_H_
