// Removes the oldest events of users whose logs are too long or too old.
#ifndef TIM4REC_SERVER_PIPELINE_RETENTION_H_
#define TIM4REC_SERVER_PIPELINE_RETENTION_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/models.h"
#include "server/pipeline/residents.h"
#include "server/telemetry/metrics.h"
#include "store/event_log.h"
#include "store/rocksdb_store.h"
#include "store/state_store.h"

namespace tim4rec {

struct RetentionPolicy {
  int64_t max_events_per_user = 0;                  // 0: no limit
  absl::Duration event_ttl = absl::ZeroDuration();  // zero: for ever

  bool on() const { return max_events_per_user > 0 || event_ttl > absl::ZeroDuration(); }
  // A log is cut back to max_events_per_user when it has more events than this, an eighth above: a
  // cut costs a synced write and a base.
  int64_t most_events() const;
  // Events that happened, for the fold (FoldTimeMs), before this are too old.
  int64_t oldest_ms(absl::Time now) const;
};

// FAILED_PRECONDITION if the folds of the model's backend may not be stored: it cannot serve where
// there is retention.
absl::Status CheckExact(const LoadedModel& model);

// Not thread-safe: it belongs to a worker, and looks at that worker's users between its batches.
//
// A cut is one write (RocksDbStore::Truncate): of each model that is loaded, the fold of the
// removed events becomes the user's base. A user whose log or base is damaged keeps what he has.
class Retention {
 public:
  struct Deps {
    EventLog* log;
    StateStore* states;
    std::function<absl::Status(std::span<const UserTruncation>)> truncate;
    const Models* models;
    Metrics* metrics;
    Residents* residents;
  };
  Retention(const RetentionPolicy& policy, const Deps& deps) : policy_(policy), deps_(deps) {}

  // Takes note of the user if his log has grown too long.
  void Consider(const Resident& resident);
  // Takes note of a user.
  void Add(std::string user_id);
  // Users taken note of.
  size_t size() const { return users_.size(); }

  // Looks at a few of them, and cuts the logs of those that need it. What fails is logged, counted,
  // and left until the user is noted again.
  void Step(absl::Time now);

 private:
  // A cut that is to be written.
  struct Cut {
    std::string user_id;
    Truncation truncation;
    std::vector<Position> removed;
    std::vector<ModelHandle> models;  // of the bases
    std::vector<StateRecord> bases;
    std::vector<UserState> states;  // these, for the store
    std::vector<Event> rest;
  };

  absl::StatusOr<std::optional<Cut>> Plan(const std::string& user_id, absl::Time now) const;
  absl::Status AddBase(const ModelHandle& model, const Truncation* before,
                       std::span<const Event> events, Cut* cut) const;
  absl::Status Write(std::span<Cut> cuts);
  void Fail(const absl::Status& status, size_t users);

  const RetentionPolicy policy_;
  const Deps deps_;
  std::deque<std::string> users_;
  std::unordered_set<std::string> noted_;  // the same
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_RETENTION_H_
