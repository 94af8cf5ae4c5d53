#include "server/pipeline/refold.h"

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include "server/pipeline/history.h"

namespace tim4rec {
namespace {

// 0.02 to 0.04 ms of folding at 64 dimensions.
constexpr size_t kMostEvents = 4;
constexpr int kMostUsers = 256;  // that need nothing

}  // namespace

Refold::Refold(const Deps& deps, const LoadedModel& from, ModelHandle to)
    : deps_(deps), to_(std::move(to)) {
  users_ = deps_.residents->UsersOf(from, std::max<int64_t>(1, deps_.residents->capacity() / 2));
  deps_.metrics->states_to_refold->Increment(static_cast<double>(users_.size()));
}

Refold::~Refold() {
  deps_.metrics->states_to_refold->Decrement(static_cast<double>(users_.size() - next_));
}

absl::StatusOr<bool> Refold::Step() {
  for (int looked = 0; next_ < users_.size() && looked < kMostUsers; ++looked) {
    deps_.residents->BeginBatch();
    Resident* resident = deps_.residents->Use(*to_, users_[next_]);
    if (resident != nullptr && !resident->pending.empty()) {
      if (absl::Status folded = FoldSome(resident); !folded.ok()) return folded;
      resident = deps_.residents->Use(*to_, users_[next_]);
      if (resident != nullptr && resident->pending.empty()) {
        deps_.metrics->states_refolded->Increment();
        Next();
      }
      return true;
    }
    // Once only, so that events that come all the time do not hold up the others.
    if (!std::exchange(begun_, true) && (resident == nullptr || resident->behind)) {
      if (absl::Status begun = Begin(users_[next_], resident); !begun.ok()) return begun;
      return true;
    }
    Next();
  }
  return next_ < users_.size();
}

void Refold::Next() {
  ++next_;
  begun_ = false;
  deps_.metrics->states_to_refold->Decrement();
}

absl::Status Refold::Begin(const std::string& user_id, Resident* resident) {
  std::optional<StateRecord> checkpoint;
  const Lineage* prefix = nullptr;
  if (resident != nullptr) {
    prefix = &resident->lineage;
  } else {
    auto stored = deps_.states->Get(user_id, to_->fingerprint());
    if (stored.ok()) checkpoint = *std::move(stored);
    if (checkpoint) prefix = &checkpoint->lineage;
  }
  auto history =
      ReadHistory(*deps_.log, *deps_.states, *to_, {.user_id = user_id, .checkpoint = prefix});
  // A log that cannot be read is answered for when the user is asked for.
  if (!history.ok() || history->lineage.event_count == 0) return absl::OkStatus();
  if (resident != nullptr) return deps_.residents->Update(resident, *std::move(history)).status();
  return deps_.residents
      ->Load(to_, user_id, *std::move(history), checkpoint ? &*checkpoint : nullptr)
      .status();
}

absl::Status Refold::FoldSome(Resident* resident) {
  const size_t count = std::min(kMostEvents, resident->pending.size());
  const Run run{resident->slot, std::span(resident->pending).first(count)};
  if (absl::Status folded = to_->engine->backend().Advance({&run, 1}); !folded.ok()) {
    deps_.residents->Drop(resident);
    if (!IsStateLost(folded)) return folded;
    begun_ = false;  // anew, and elsewhere
    return absl::OkStatus();
  }
  resident->pending.erase(resident->pending.begin(), resident->pending.begin() + count);
  if (resident->pending.empty()) deps_.residents->Folded(resident);
  return absl::OkStatus();
}

}  // namespace tim4rec
