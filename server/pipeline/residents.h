// The users whose states one worker keeps in memory.
#ifndef TIM4REC_SERVER_PIPELINE_RESIDENTS_H_
#define TIM4REC_SERVER_PIPELINE_RESIDENTS_H_

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/engine/engine.h"
#include "server/pipeline/history.h"
#include "server/pipeline/job.h"
#include "server/telemetry/metrics.h"
#include "store/state_store.h"

namespace tim4rec {

struct Resident {
  std::string_view user_id;  // views the key of the map
  Slot slot = -1;
  Lineage lineage;            // of what is folded into the slot, unknown items included
  uint64_t folded = 0;        // events of known items
  int64_t last_event_ms = 0;  // of the last event covered
  std::vector<int32_t> seen;  // items folded, ascending, distinct
  bool dirty = false;         // the store has no checkpoint of this lineage
  uint64_t last_batch = 0;    // number of the batch that used it last: not evicted during that one
  std::list<Resident*>::iterator by_use;
  std::list<Resident*>::iterator in_dirty;  // valid if dirty
};

// A state to be, after its pending events are folded into its slot.
struct Loaded {
  Resident* resident;
  Tier tier;  // kStored or kRebuilt
  std::vector<FoldEvent> pending;
};

// Not thread-safe: it belongs to a worker.
class Residents {
 public:
  struct Deps {
    const Engine* engine;
    StateStore* states;
    Metrics* metrics;
  };
  // Keeps at most `capacity` users, all of which one batch may use. States are checkpointed up to
  // `group` at a time.
  Residents(const Deps& deps, int64_t capacity, int64_t group);
  ~Residents();

  int64_t capacity() const { return capacity_; }

  // The user as the most recently used, held until the next BeginBatch; null if not resident.
  Resident* Use(std::string_view user_id);
  const Resident* Peek(std::string_view user_id) const;

  void BeginBatch() { ++batch_; }

  // Makes a user resident who is not, evicting others if need be. `history` holds at least one
  // event and was read with `checkpoint`'s lineage; the checkpoint is used if the log has its
  // prefix and its record fits. Fails as Backend::Allocate does.
  absl::StatusOr<Loaded> Load(std::string_view user_id, UserHistory history,
                              const StateRecord* checkpoint);

  // Empties the user's slot, to be folded again. `history` as in Load.
  absl::StatusOr<Loaded> Reset(Resident* resident, UserHistory history);

  void MarkDirty(Resident* resident);

  // Forgets the user without a checkpoint.
  void Drop(Resident* resident);

  // Writes up to `group` changed states, those changed first first. Returns how many were taken
  // off the list of changed ones; a write that fails puts them back.
  absl::StatusOr<int64_t> CheckpointSome();
  int64_t dirty_count() const { return static_cast<int64_t>(dirty_.size()); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  absl::Status Put(const std::vector<Resident*>& residents);
  void MakeRoom();
  void MarkClean(Resident* resident);

  const Deps deps_;
  const int64_t capacity_;
  const int64_t group_;
  uint64_t batch_ = 1;
  std::unordered_map<std::string, Resident, Hash, std::equal_to<>> users_;
  std::list<Resident*> by_use_;  // most recent first
  std::list<Resident*> dirty_;   // longest dirty first
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_RESIDENTS_H_
