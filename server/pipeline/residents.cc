#include "server/pipeline/residents.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

// Whether a checkpoint's state record says that it was folded from that many events.
bool FoldedFrom(const std::string& payload, size_t folds, int64_t state_bytes) {
  if (static_cast<int64_t>(payload.size()) != state_bytes) return false;
  int64_t folded = 0;
  std::memcpy(&folded, payload.data() + sizeof(int64_t), sizeof folded);
  return folded == static_cast<int64_t>(folds);
}

}  // namespace

Residents::Residents(const Deps& deps, int64_t capacity, int64_t group)
    : deps_(deps), capacity_(capacity), group_(group) {}

Residents::~Residents() {
  while (!by_use_.empty()) Drop(by_use_.front());
}

Resident* Residents::Use(std::string_view user_id) {
  const auto found = users_.find(user_id);
  if (found == users_.end()) return nullptr;
  Resident* resident = &found->second;
  by_use_.splice(by_use_.begin(), by_use_, resident->by_use);
  resident->last_batch = batch_;
  return resident;
}

const Resident* Residents::Peek(std::string_view user_id) const {
  const auto found = users_.find(user_id);
  return found == users_.end() ? nullptr : &found->second;
}

absl::StatusOr<Loaded> Residents::Load(std::string_view user_id, UserHistory history,
                                       const StateRecord* checkpoint) {
  MakeRoom();
  Backend& backend = deps_.engine->backend();
  absl::StatusOr<Slot> slot = backend.Allocate();
  if (!slot.ok()) return slot.status();

  size_t folded = 0;  // by the checkpoint
  Tier tier = Tier::kRebuilt;
  if (checkpoint != nullptr) {
    const bool fits =
        history.checkpoint_folds.has_value() &&
        FoldedFrom(checkpoint->payload, *history.checkpoint_folds, backend.state_bytes()) &&
        backend.Import(*slot, std::as_bytes(std::span(checkpoint->payload))).ok();
    if (fits) {
      folded = *history.checkpoint_folds;
      tier = Tier::kStored;
    } else {
      deps_.metrics->stale_checkpoints->Increment();
    }
  }

  const auto [entry, inserted] = users_.try_emplace(std::string(user_id));
  Resident* resident = &entry->second;
  resident->user_id = entry->first;
  resident->slot = *slot;
  resident->lineage = std::move(history.lineage);
  resident->folded = history.fold.size();
  resident->last_event_ms = history.last_event_ms;
  resident->seen = SeenItems(history.fold);
  resident->last_batch = batch_;
  by_use_.push_front(resident);
  resident->by_use = by_use_.begin();
  if (tier != Tier::kStored || !(checkpoint->lineage == resident->lineage)) MarkDirty(resident);
  deps_.metrics->resident_users->Increment();
  history.fold.erase(history.fold.begin(), history.fold.begin() + folded);
  return Loaded{resident, tier, std::move(history.fold)};
}

absl::StatusOr<Loaded> Residents::Reset(Resident* resident, UserHistory history) {
  Backend& backend = deps_.engine->backend();
  absl::StatusOr<Slot> slot = backend.Allocate();
  if (!slot.ok()) return slot.status();
  backend.Release(std::exchange(resident->slot, *slot));
  resident->lineage = std::move(history.lineage);
  resident->folded = history.fold.size();
  resident->last_event_ms = history.last_event_ms;
  resident->seen = SeenItems(history.fold);
  MarkDirty(resident);
  return Loaded{resident, Tier::kRebuilt, std::move(history.fold)};
}

void Residents::MarkDirty(Resident* resident) {
  if (resident->dirty) return;
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
  deps_.engine->backend().Release(resident->slot);
  by_use_.erase(resident->by_use);
  users_.erase(users_.find(resident->user_id));
  deps_.metrics->resident_users->Decrement();
}

absl::Status Residents::Put(const std::vector<Resident*>& residents) {
  if (residents.empty()) return absl::OkStatus();
  std::vector<StateRecord> records(residents.size());
  std::vector<UserState> states(residents.size());
  const Backend& backend = deps_.engine->backend();
  for (size_t i = 0; i < residents.size(); ++i) {
    records[i].lineage = residents[i]->lineage;
    records[i].payload.resize(backend.state_bytes());
    absl::Status exported =
        backend.Export(residents[i]->slot, std::as_writable_bytes(std::span(records[i].payload)));
    if (!exported.ok()) return exported;
    states[i] = {residents[i]->user_id, deps_.engine->fingerprint(), &records[i]};
  }
  absl::Status put = deps_.states->Put(states);
  if (put.ok()) {
    deps_.metrics->checkpoints->Increment(static_cast<double>(residents.size()));
  } else {
    deps_.metrics->failed_put->Increment();
    Log(LogLevel::kWarning, "checkpoint failed; the event log still rebuilds the states",
        {{"error", LogText(put)}, {"states", residents.size()}});
  }
  return put;
}

void Residents::MakeRoom() {
  if (static_cast<int64_t>(users_.size()) < capacity_) return;
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
  if (absl::Status put = Put(group); !put.ok()) return put;
  for (Resident* resident : group) MarkClean(resident);
  return static_cast<int64_t>(group.size());
}

}  // namespace tim4rec
