// Is every state in a store what its user's log gives?
#ifndef TIM4REC_MODEL_CLI_STORE_CHECK_H_
#define TIM4REC_MODEL_CLI_STORE_CHECK_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine/engine.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

struct StoreCheck {
  uint64_t users = 0;           // with events or a truncation
  uint64_t events = 0;          // read and in order
  uint64_t unknown_items = 0;   // of these, of items that the model does not know
  uint64_t removed_events = 0;  // by retention: not read
  // Checkpoints of the model that are, byte for byte, the fold of the log.
  uint64_t equal_states = 0;
  uint64_t stale_states = 0;         // those of no beginning of the log: never used, so no fault
  uint64_t bases = 0;                // what truncated logs are folded from, of all models
  uint64_t other_models_states = 0;  // sound records of other models
  uint64_t use_counts = 0;           // of an item on a day, that are those of the logs
  uint64_t faults = 0;
};

// Called with the user (empty if not known) and what is wrong.
using FaultVisitor = std::function<void(std::string_view user_id, const std::string& fault)>;

// Reads all events and checkpoints, or those of one user (if not empty), and folds the log anew,
// from its base if it is truncated, for every checkpoint of the engine's model. Faults: an event,
// truncation, base or checkpoint that fails its checks, an event that is not at its own position or
// is there twice, a base that does not fit its truncation, a checkpoint that differs from the fold
// or whose user has no events. Errors: a store that cannot be read on, a backend that fails.
absl::StatusOr<StoreCheck> CheckStore(const RocksDbStore& store, const Engine& engine,
                                      const std::string& only_user, const FaultVisitor& on_fault);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_STORE_CHECK_H_
