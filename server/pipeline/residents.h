// The users whose states one worker keeps in memory.
#ifndef TIM4REC_SERVER_PIPELINE_RESIDENTS_H_
#define TIM4REC_SERVER_PIPELINE_RESIDENTS_H_

#include <cstdint>
#include <list>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/history.h"
#include "server/pipeline/job.h"
#include "server/pipeline/models.h"
#include "server/telemetry/metrics.h"
#include "store/state_store.h"

namespace tim4rec {

struct Resident {
  const LoadedModel* model = nullptr;
  std::string_view user_id;  // views the key of the map
  Slot slot = -1;
  Lineage lineage;       // of what is folded into the slot, `pending` and unknown items included
  uint64_t folded = 0;   // events of known items
  uint64_t removed = 0;  // of the lineage's events, those that retention removed
  int64_t last_event_ms = 0;       // of the last event covered
  std::vector<int32_t> seen;       // items of the log's events, ascending, distinct
  std::vector<FoldEvent> pending;  // still to be folded into the slot; till then not dirty
  bool behind = false;  // the log holds more: events that came through another model. Update it.
  // The store has no checkpoint of this lineage and should get one: never of an inexact backend.
  bool dirty = false;
  uint64_t last_batch = 0;  // number of the batch that used it last: not evicted during that one
  std::list<Resident*>::iterator by_use;
  std::list<Resident*>::iterator in_dirty;  // valid if dirty
};

// Whether its state is lost with the device that held it (Backend::Lost). It may only be dropped.
inline bool IsLost(const Resident& resident) {
  return resident.model->engine->backend().Lost(resident.slot);
}

struct Loaded {
  Resident* resident;
  Tier tier;  // kStored or kRebuilt
};

// Each model has states of its own; none is read by another. Not thread-safe: it belongs to a
// worker.
class Residents {
 public:
  struct Deps {
    StateStore* states;
    Metrics* metrics;
  };
  // Keeps at most `capacity` states over all models, all of which one batch may use. States are
  // checkpointed up to `group` at a time.
  Residents(const Deps& deps, int64_t capacity, int64_t group);
  ~Residents();

  int64_t capacity() const { return capacity_; }

  // The user's state as the most recently used, held until the next BeginBatch; null if not
  // resident.
  Resident* Use(const LoadedModel& model, std::string_view user_id);
  const Resident* Peek(const LoadedModel& model, std::string_view user_id) const;
  // Users of a model, most recently used first, at most `most`.
  std::vector<std::string> UsersOf(const LoadedModel& model, int64_t most) const;

  void BeginBatch() { ++batch_; }

  // Makes a user resident who is not, evicting others if need be. `history` covers at least one
  // event and was read with `checkpoint`'s lineage; the checkpoint is used if the log has its
  // prefix and its record fits; what it lacks is pending. Fails as Backend::Allocate does.
  absl::StatusOr<Loaded> Load(const ModelHandle& model, std::string_view user_id,
                              UserHistory history, const StateRecord* checkpoint);

  // Brings a resident to a history that was read with its own lineage as the checkpoint's: what
  // lies behind its prefix becomes pending, or all of it, in a slot with its base, if the lineage
  // is none of its prefixes. Returns whether it was the latter. Fails as Backend::Allocate does.
  absl::StatusOr<bool> Update(Resident* resident, UserHistory history);

  // Makes it the least recently used, so that it is the next to go: who was loaded for a scan over
  // many users does not push out those who come again.
  void Demote(Resident* resident) { by_use_.splice(by_use_.end(), by_use_, resident->by_use); }

  // After a change of the lineage or of `pending`.
  void Changed(Resident* resident);
  // What was pending is in the slot.
  void Folded(Resident* resident);

  // Events of a user that came through `model`, `first` the least of their positions: the states
  // under other models are behind, or dropped if an event lies before their last one.
  void NoteEvents(const LoadedModel& model, std::string_view user_id, const Position& first);

  // Retention removed the user's first `removed` events, keeping a base for every model that is
  // loaded; `rest` is the log. States that are up to date stay and lose their checkpoints, others
  // are dropped.
  void NoteTruncation(std::string_view user_id, uint64_t removed, std::span<const Event> rest);

  // Forget without a checkpoint: a state, and a user's states under all models.
  void Drop(Resident* resident);
  void DropUser(std::string_view user_id);

  // Frees up to `group` states of unloaded models, or, after a checkpoint, of models whose
  // kept_until_ms has come. False if none is left to be freed.
  bool ReleaseSome(absl::Time now);
  // When the next kept_until_ms comes.
  absl::Time next_release() const;

  // Forgets everybody if the log's generation has changed. No resident may be in use.
  void FollowLog(uint64_t generation);

  // Writes up to `group` changed states, those changed first first, and drops those of them that
  // are lost. Returns how many it looked at; a write that fails leaves them on the list.
  absl::StatusOr<int64_t> CheckpointSome();
  int64_t dirty_count() const { return static_cast<int64_t>(dirty_.size()); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  struct ModelStates {
    ModelHandle model;
    std::unordered_map<std::string, Resident, Hash, std::equal_to<>> users;
    int64_t heeded_ms = LoadedModel::kForEver;  // the kept_until_ms that was acted upon
    int64_t to_release = 0;                     // how many are still to be freed for it
  };

  Resident* Find(const LoadedModel& model, std::string_view user_id);
  absl::Status Put(const std::vector<Resident*>& residents);
  int64_t DropSome(ModelStates* states);
  void MarkDirty(Resident* resident);
  void MakeRoom();
  void MarkClean(Resident* resident);

  const Deps deps_;
  const int64_t capacity_;
  const int64_t group_;
  uint64_t batch_ = 1;
  uint64_t log_generation_ = 0;
  std::unordered_map<const LoadedModel*, ModelStates> models_;
  std::list<Resident*> by_use_;  // most recent first
  std::list<Resident*> dirty_;   // longest dirty first
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_RESIDENTS_H_
