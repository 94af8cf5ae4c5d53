// Folds the states of one model's resident users for another model, a little at a time.
#ifndef TIM4REC_SERVER_PIPELINE_REFOLD_H_
#define TIM4REC_SERVER_PIPELINE_REFOLD_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/pipeline/models.h"
#include "server/pipeline/residents.h"
#include "server/telemetry/metrics.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

// Not thread-safe: it belongs to a worker.
class Refold {
 public:
  struct Deps {
    EventLog* log;
    StateStore* states;
    Metrics* metrics;
    Residents* residents;
  };
  // The users that are resident under `from`, most recently used first, as many as leave the states
  // of `from` half of the room.
  Refold(const Deps& deps, const LoadedModel& from, ModelHandle to);
  ~Refold();

  // A step: reads one user's log or folds a few events, well below a millisecond. False once done.
  // Fails if no memory is left for states, or as Backend::Advance does.
  absl::StatusOr<bool> Step();

 private:
  // Reads the user's log: what the state under `to` lacks becomes pending. `resident` may be null.
  absl::Status Begin(const std::string& user_id, Resident* resident);
  void Next();
  absl::Status FoldSome(Resident* resident);

  const Deps deps_;
  const ModelHandle to_;
  std::vector<std::string> users_;
  size_t next_ = 0;
  bool begun_ = false;  // the log of users_[next_] was read
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_REFOLD_H_
