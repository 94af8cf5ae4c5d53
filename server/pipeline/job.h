// One request on its way through the pipeline: what is asked and, once complete, the answer.
#ifndef TIM4REC_SERVER_PIPELINE_JOB_H_
#define TIM4REC_SERVER_PIPELINE_JOB_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/engine/backend.h"
#include "server/pipeline/models.h"
#include "store/event.h"
#include "store/event_log.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

enum class EventOutcome {
  kApplied,
  kDuplicate,
  kLateRefolded,
  kUnknownItem,
  kLateRejected,
  kExpired,  // as AppendOutcome::kExpired
};

// Where a state came from; kColdStart: no event of an item that the model knows.
enum class Tier { kHot, kStored, kRebuilt, kColdStart };

struct RecordCommand {
  std::vector<Event> events;  // validated
  Durability durability = Durability::kBuffered;

  std::vector<EventOutcome> outcomes;  // answer, one per event
  uint64_t state_version = 0;          // answer: events stored, removed ones included
  int64_t last_event_ms = 0;           // answer: what a kLateRejected event lies before
};

struct RecommendCommand {
  int k = 10;
  std::optional<int64_t> as_of_ms;  // absent: now
  bool exclude_seen = true;
  std::vector<int32_t> excluded;  // ascending, distinct
  bool candidates_only = false;
  std::vector<int32_t> candidates;  // ascending, distinct
  std::vector<uint64_t> eligible;   // as TopKRequest::eligible
  uint64_t min_state_version = 0;
  bool may_wait = false;  // for min_state_version; the worker decides

  // Answer.
  bool waits = false;  // no answer yet: min_state_version is not reached
  std::vector<ScoredItem> items;
  uint64_t state_version = 0;
  uint64_t event_count = 0;   // of items the model knows
  int64_t last_event_ms = 0;  // 0 if none
  Tier tier = Tier::kColdStart;
  int64_t answered_as_of_ms = 0;
};

struct GetUserCommand {
  std::optional<int64_t> at_ms;  // absent: all there is
  uint32_t max_events = 0;       // newest events to return

  // Answer.
  Lineage lineage;
  uint64_t removed = 0;        // by retention, of the events that the lineage covers
  int64_t first_event_ms = 0;  // of the log; 0 if it has no event
  int64_t last_event_ms = 0;
  Tier tier = Tier::kColdStart;
  std::vector<Event> events;  // oldest first
};

struct DeleteUserCommand {
  bool purge = false;   // also rewrite the files that held the user
  DeletedUser removed;  // answer
};

struct VerifyUserCommand {
  // Answer.
  bool resident_compared = false;  // the user was resident
  bool resident_equal = false;
  bool checkpoint_compared = false;  // there was one that covers a beginning of the log
  bool checkpoint_equal = false;
  uint64_t event_count = 0;
  std::string difference;  // the first; empty if there is none
};

// Where an answer's time went, for telemetry. All but `queue` are of the micro-batch that answered
// and so shared by its requests; each waited for all of it.
struct StageTimes {
  absl::Duration queue;   // from Submit until that micro-batch began
  absl::Duration append;  // events into the log, synced if a request of the batch asks for it
  absl::Duration load;    // logs and checkpoints read
  absl::Duration fold;    // events into states
  absl::Duration rank;    // queries and the best items
};

// Filled in by the service, completed by the pipeline. A job has `record`, `recommend` or both, or
// `history` and `recommend`, or `get_user`, or `delete_user`, or `verify_user`.
struct Job {
  virtual ~Job() = default;

  // Called once, from the worker's thread, with `status` and the answers set. The pipeline does not
  // touch the job afterwards. Must not block.
  virtual void Complete() = 0;

  std::string user_id;
  // Pinned: the answer comes from it alone, whatever is promoted or unloaded meanwhile. Null: the
  // one that serves when the job is submitted.
  ModelHandle model;
  absl::Time deadline = absl::InfiniteFuture();
  std::atomic<bool> cancelled = false;  // set from any thread
  bool bulk = false;    // part of a stream: behind single calls, and waits for no min_state_version
  uint64_t client = 0;  // hash of who asks, for the shares of a queue (JobQueue); 0: nobody

  std::optional<RecordCommand> record;
  // Validated events, in any order. The recommendation is for them, as if a new user had sent them
  // in one request; nothing is stored, and `user_id` stands for nobody.
  std::optional<std::vector<Event>> history;
  std::optional<RecommendCommand> recommend;
  std::optional<GetUserCommand> get_user;
  std::optional<DeleteUserCommand> delete_user;
  std::optional<VerifyUserCommand> verify_user;

  absl::Time submitted;  // set by Submit
  StageTimes stages;     // answer
  absl::Status status;
  // When Submit refuses with RESOURCE_EXHAUSTED: how long what waits will take, as measured.
  absl::Duration retry_after;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_JOB_H_
