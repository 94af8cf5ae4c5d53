// Checkpoints of states: a view of the event log that may be lost at any time. And bases: what is
// left of the events that retention removed.
#ifndef TIM4REC_STORE_STATE_STORE_H_
#define TIM4REC_STORE_STATE_STORE_H_

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/event.h"

namespace tim4rec {

struct StateRecord {
  Lineage lineage;
  std::string payload;  // opaque here; the engine's state record (StateLayout)
};

struct UserState {
  std::string_view user_id;
  std::string_view fingerprint;  // of the model, 32 hex digits
  const StateRecord* record;
};

// Thread-safe, with EventLog's exception.
class StateStore {
 public:
  virtual ~StateStore() = default;

  // The user's checkpoint for that model. Empty if there is none, or if what is stored fails any
  // check of its envelope (counted in RocksDbStore::stats().corrupt_states): the caller folds the
  // log instead.
  virtual absl::StatusOr<std::optional<StateRecord>> Get(std::string_view user_id,
                                                         std::string_view fingerprint) const = 0;

  // The fold of the events that retention removed from the user's log, under a model that was
  // loaded then; empty if there is none. Unlike a checkpoint it cannot be made anew: one that fails
  // a check is DATA_LOSS naming the user (counted in RocksDbStore::stats().corrupt_bases).
  virtual absl::StatusOr<std::optional<StateRecord>> GetBase(
      std::string_view user_id, std::string_view fingerprint) const = 0;

  // Replaces checkpoints; not durable before Flush.
  virtual absl::Status Put(std::span<const UserState> states) = 0;
  virtual absl::Status Flush() = 0;

  // Removes the checkpoints and bases of a model, of every user that ForEachUser visits. May take
  // seconds; a crash meanwhile may leave some.
  virtual absl::Status DeleteStates(std::string_view fingerprint) = 0;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_STATE_STORE_H_
