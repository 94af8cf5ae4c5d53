#include "server/pipeline/residents.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <utility>

#include "model/engine/new_slot.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

// Whether a checkpoint's state record says that it was folded from that many events.
bool FoldedFrom(const std::string& payload, size_t folds, int64_t state_bytes) {
  return static_cast<int64_t>(payload.size()) == state_bytes && FoldedEvents(payload) == folds;
}

// Makes the resident cover a history whose first `folded` events are in its slot.
void Cover(UserHistory history, size_t folded, Resident* resident) {
  resident->lineage = std::move(history.lineage);
  resident->folded = history.base_folds + history.fold.size();
  resident->removed = history.removed;
  resident->last_event_ms = history.last_event_ms;
  resident->seen = SeenItems(history.fold);
  resident->behind = false;
  history.fold.erase(history.fold.begin(), history.fold.begin() + static_cast<int64_t>(folded));
  resident->pending = std::move(history.fold);
}

}  // namespace

Residents::Residents(const Deps& deps, int64_t capacity, int64_t group)
    : deps_(deps), capacity_(capacity), group_(group) {}

Residents::~Residents() {
  while (!by_use_.empty()) Drop(by_use_.front());
}

Resident* Residents::Find(const LoadedModel& model, std::string_view user_id) {
  const auto states = models_.find(&model);
  if (states == models_.end()) return nullptr;
  const auto found = states->second.users.find(user_id);
  return found == states->second.users.end() ? nullptr : &found->second;
}

Resident* Residents::Use(const LoadedModel& model, std::string_view user_id) {
  Resident* resident = Find(model, user_id);
  if (resident == nullptr) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, resident->by_use);
  resident->last_batch = batch_;
  return resident;
}

const Resident* Residents::Peek(const LoadedModel& model, std::string_view user_id) const {
  return const_cast<Residents*>(this)->Find(model, user_id);
}

std::vector<std::string> Residents::UsersOf(const LoadedModel& model, int64_t most) const {
  std::vector<std::string> users;
  for (const Resident* resident : by_use_) {
    if (static_cast<int64_t>(users.size()) == most) break;
    if (resident->model == &model) users.emplace_back(resident->user_id);
  }
  return users;
}

absl::StatusOr<Loaded> Residents::Load(const ModelHandle& model, std::string_view user_id,
                                       UserHistory history, const StateRecord* checkpoint) {
  MakeRoom();
  Backend& backend = model->engine->backend();
  absl::StatusOr<Slot> slot = absl::NotFoundError("no checkpoint fits");
  size_t folded = 0;  // by the checkpoint
  Tier tier = Tier::kRebuilt;
  if (checkpoint != nullptr) {
    const bool fits =
        history.checkpoint_folds.has_value() &&
        FoldedFrom(checkpoint->payload, history.base_folds + *history.checkpoint_folds,
                   backend.state_bytes());
    if (fits) slot = NewSlot(backend, checkpoint->payload);
    if (slot.ok()) {
      folded = *history.checkpoint_folds;
      tier = Tier::kStored;
    } else {
      deps_.metrics->stale_checkpoints->Increment();
    }
  }
  if (!slot.ok()) slot = NewSlot(backend, history.base);
  if (!slot.ok()) return slot.status();
  ModelStates& states = models_[model.get()];
  states.model = model;
  const auto [entry, inserted] = states.users.try_emplace(std::string(user_id));
  Resident* resident = &entry->second;
  resident->model = model.get();
  resident->user_id = entry->first;
  resident->slot = *slot;
  resident->last_batch = batch_;
  by_use_.push_front(resident);
  resident->by_use = by_use_.begin();
  deps_.metrics->resident_users->Increment();
  const bool changed = tier != Tier::kStored || !(checkpoint->lineage == history.lineage);
  Cover(std::move(history), folded, resident);
  if (changed) Changed(resident);
  return Loaded{resident, tier};
}

absl::StatusOr<bool> Residents::Update(Resident* resident, UserHistory history) {
  const bool continues = history.checkpoint_folds.has_value();
  size_t folded = 0;
  if (continues) {
    folded = *history.checkpoint_folds - resident->pending.size();
  } else {
    Backend& backend = resident->model->engine->backend();
    const absl::StatusOr<Slot> slot = NewSlot(backend, history.base);
    if (!slot.ok()) return slot.status();
    backend.Release(std::exchange(resident->slot, *slot));
  }
  Cover(std::move(history), folded, resident);
  Changed(resident);
  return !continues;
}

void Residents::Changed(Resident* resident) {
  if (resident->pending.empty()) {
    MarkDirty(resident);
  } else {
    MarkClean(resident);
  }
}

void Residents::Folded(Resident* resident) {
  resident->pending.clear();
  resident->pending.shrink_to_fit();
  MarkDirty(resident);
}

void Residents::NoteEvents(const LoadedModel& model, std::string_view user_id,
                           const Position& first) {
  for (auto& [other, states] : models_) {
    if (other == &model) continue;
    Resident* resident = Find(*other, user_id);
    if (resident == nullptr) continue;
    if (first < resident->lineage.watermark) {
      Drop(resident);
    } else {
      resident->behind = true;
    }
  }
}

void Residents::NoteTruncation(std::string_view user_id, uint64_t removed,
                               std::span<const Event> rest) {
  for (auto& [model, states] : models_) {
    Resident* resident = Find(*model, user_id);
    if (resident == nullptr) continue;
    if (resident->behind || !resident->pending.empty() || model->unloaded) {
      Drop(resident);
      continue;
    }
    std::vector<FoldEvent> fold;
    for (const Event& event : rest) {
      const auto item = model->engine->catalog().Find(event.item_id);
      if (item) fold.push_back({*item, event.timestamp_ms});
    }
    resident->seen = SeenItems(fold);
    resident->removed = removed;
    resident->lineage.log_truncated = true;
    Changed(resident);
  }
}

void Residents::MarkDirty(Resident* resident) {
  // What an inexact backend folded must never become a stored state.
  if (resident->dirty || !resident->model->engine->backend().exact()) return;
  resident->dirty = true;
  resident->in_dirty = dirty_.insert(dirty_.end(), resident);
}

void Residents::MarkClean(Resident* resident) {
  if (!resident->dirty) return;
  resident->dirty = false;
  dirty_.erase(resident->in_dirty);
}

void Residents::Drop(Resident* resident) {
  MarkClean(resident);
  resident->model->engine->backend().Release(resident->slot);
  by_use_.erase(resident->by_use);
  auto& users = models_.find(resident->model)->second.users;
  users.erase(users.find(resident->user_id));
  deps_.metrics->resident_users->Decrement();
}

void Residents::DropUser(std::string_view user_id) {
  for (auto& [model, states] : models_) {
    if (Resident* resident = Find(*model, user_id)) Drop(resident);
  }
}

int64_t Residents::DropSome(ModelStates* states) {
  std::vector<Resident*> group;
  std::vector<Resident*> changed;
  for (auto& [user_id, resident] : states->users) {
    if (static_cast<int64_t>(group.size()) == group_) break;
    group.push_back(&resident);
    if (resident.dirty) changed.push_back(&resident);
  }
  (void)Put(changed);  // what cannot be written, the log rebuilds
  for (Resident* resident : group) Drop(resident);
  return static_cast<int64_t>(group.size());
}

bool Residents::ReleaseSome(absl::Time now) {
  for (auto it = models_.begin(); it != models_.end(); ++it) {
    ModelStates& states = it->second;
    if (states.model->unloaded) {
      DropSome(&states);
      if (states.users.empty()) models_.erase(it);
      return true;
    }
    const int64_t kept_until_ms = states.model->kept_until_ms;
    if (kept_until_ms == LoadedModel::kForEver) states.to_release = 0;
    if (kept_until_ms != states.heeded_ms && kept_until_ms <= absl::ToUnixMillis(now)) {
      states.heeded_ms = kept_until_ms;
      states.to_release = static_cast<int64_t>(states.users.size());
    }
    if (states.to_release > 0) {
      states.to_release -= std::max<int64_t>(1, DropSome(&states));
      return true;
    }
  }
  return false;
}

absl::Time Residents::next_release() const {
  int64_t next_ms = LoadedModel::kForEver;
  for (const auto& [model, states] : models_) {
    if (model->kept_until_ms != states.heeded_ms) {
      next_ms = std::min<int64_t>(next_ms, model->kept_until_ms);
    }
  }
  return next_ms == LoadedModel::kForEver ? absl::InfiniteFuture() : absl::FromUnixMillis(next_ms);
}

void Residents::FollowLog(uint64_t generation) {
  if (std::exchange(log_generation_, generation) == generation) return;
  while (!by_use_.empty()) Drop(by_use_.front());
}

absl::Status Residents::Put(const std::vector<Resident*>& residents) {
  std::vector<StateRecord> records(residents.size());
  std::vector<UserState> states;
  std::map<const Backend*, std::vector<StateExport>> exports;
  for (size_t i = 0; i < residents.size(); ++i) {
    const Resident& resident = *residents[i];
    const Backend& backend = resident.model->engine->backend();
    if (resident.model->unloaded || backend.Lost(resident.slot)) continue;
    records[i].lineage = resident.lineage;
    records[i].payload.resize(backend.state_bytes());
    exports[&backend].push_back(
        {resident.slot, std::as_writable_bytes(std::span(records[i].payload))});
    states.push_back({resident.user_id, resident.model->fingerprint(), &records[i]});
  }
  for (const auto& [backend, of_backend] : exports) {
    if (absl::Status exported = backend->ExportAll(of_backend); !exported.ok()) return exported;
  }
  if (states.empty()) return absl::OkStatus();
  absl::Status put = deps_.states->Put(states);
  if (put.ok()) {
    deps_.metrics->checkpoints->Increment(static_cast<double>(states.size()));
  } else {
    deps_.metrics->failed_put->Increment();
    static LogLimit limit;
    LogSome(&limit, LogLevel::kWarning,
            "checkpoint failed; the event log still rebuilds the states",
            {{"error", LogText(put)}, {"states", states.size()}});
  }
  return put;
}

void Residents::MakeRoom() {
  if (static_cast<int64_t>(by_use_.size()) < capacity_) return;
  // A group at a time, so that their checkpoints are one write; but few of a small population.
  const int64_t wanted = std::clamp<int64_t>(capacity_ / 16, 1, group_);
  std::vector<Resident*> victims;
  std::vector<Resident*> changed;
  for (auto it = by_use_.rbegin();
       it != by_use_.rend() && static_cast<int64_t>(victims.size()) < wanted; ++it) {
    if ((*it)->last_batch == batch_) break;
    victims.push_back(*it);
    if ((*it)->dirty) changed.push_back(*it);
  }
  // If the write fails the states go all the same: the log rebuilds them, and memory is bounded.
  (void)Put(changed);
  for (Resident* victim : victims) Drop(victim);
  deps_.metrics->evictions->Increment(static_cast<double>(victims.size()));
}

absl::StatusOr<int64_t> Residents::CheckpointSome() {
  std::vector<Resident*> group;
  for (Resident* resident : dirty_) {
    if (static_cast<int64_t>(group.size()) == group_) break;
    group.push_back(resident);
  }
  absl::Status put = Put(group);
  if (!put.ok() && !IsStateLost(put)) return put;
  for (Resident* resident : group) {
    if (IsLost(*resident)) {
      Drop(resident);
    } else if (put.ok()) {
      MarkClean(resident);
    }
  }
  return static_cast<int64_t>(group.size());
}

}  // namespace tim4rec
