#include "server/pipeline/retention.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/engine/state_check.h"
#include "server/pipeline/history.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

constexpr size_t kMostUsers = 8;  // in one step: they share a synced write

}  // namespace

int64_t RetentionPolicy::most_events() const {
  if (max_events_per_user == 0) return std::numeric_limits<int64_t>::max();
  return max_events_per_user + std::max<int64_t>(16, max_events_per_user / 8);
}

int64_t RetentionPolicy::oldest_ms(absl::Time now) const {
  if (event_ttl == absl::ZeroDuration()) return std::numeric_limits<int64_t>::min();
  return absl::ToUnixMillis(now - event_ttl);
}

absl::Status CheckExact(const LoadedModel& model) {
  const Backend& backend = model.engine->backend();
  if (backend.exact()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "store.max_events_per_user, store.event_ttl_ms: retention keeps what backends fold, and that "
      "of the ",
      std::string(backend.name()), " backend is not exact; use cpu or cuda"));
}

void Retention::Consider(const Resident& resident) {
  const auto events = static_cast<int64_t>(resident.lineage.event_count - resident.removed);
  if (events > policy_.most_events()) Add(std::string(resident.user_id));
}

void Retention::Add(std::string user_id) {
  if (noted_.insert(user_id).second) users_.push_back(std::move(user_id));
}

void Retention::Step(absl::Time now) {
  std::vector<Cut> cuts;
  for (size_t looked = 0; looked < kMostUsers && !users_.empty(); ++looked) {
    auto cut = Plan(users_.front(), now);
    if (!cut.ok()) Fail(cut.status(), 1);
    if (cut.ok() && *cut) cuts.push_back(**std::move(cut));
    noted_.erase(users_.front());
    users_.pop_front();
  }
  if (cuts.empty()) return;
  if (absl::Status written = Write(cuts); !written.ok()) {
    Fail(written, cuts.size());
    // It may turn out to have reached the disk. The log decides at the next load.
    for (const Cut& cut : cuts) deps_.residents->DropUser(cut.user_id);
    return;
  }
  for (const Cut& cut : cuts) {
    deps_.metrics->events_removed->Increment(static_cast<double>(cut.removed.size()));
    deps_.residents->NoteTruncation(cut.user_id, cut.truncation.lineage.event_count, cut.rest);
  }
}

absl::StatusOr<std::optional<Retention::Cut>> Retention::Plan(const std::string& user_id,
                                                              absl::Time now) const {
  const auto before = deps_.log->ReadTruncation(user_id);
  if (!before.ok()) return before.status();
  std::vector<std::pair<Position, Event>> events;
  const absl::Status read =
      deps_.log->Read(user_id, [&](std::string_view position, const Event& event) {
        events.emplace_back(position, event);
        return true;
      });
  if (!read.ok()) return read;
  const int64_t oldest_ms = policy_.oldest_ms(now);
  const auto kept = std::find_if(events.begin(), events.end(), [&](const auto& entry) {
    return FoldTimeMs(entry.second) >= oldest_ms;
  });
  int64_t count = kept - events.begin();
  const auto total = static_cast<int64_t>(events.size());
  if (total > policy_.most_events()) count = std::max(count, total - policy_.max_events_per_user);
  if (count == 0) return std::nullopt;

  Cut cut;
  cut.user_id = user_id;
  if (*before) cut.truncation = **before;
  std::vector<Event> gone;
  for (auto& [position, event] : events) {
    if (static_cast<int64_t>(gone.size()) == count) {
      cut.rest.push_back(std::move(event));
      continue;
    }
    cut.truncation.lineage.Extend(position, event.item_id);
    cut.truncation.last_event_ms = FoldTimeMs(event);
    cut.removed.push_back(std::move(position));
    gone.push_back(std::move(event));
  }
  cut.truncation.lineage.log_truncated = true;
  for (const ModelHandle& model : deps_.models->List()) {
    if (model->engine == nullptr) continue;  // still loading: it begins at the cut, from zero
    absl::Status added = AddBase(model, *before ? &**before : nullptr, gone, &cut);
    if (!added.ok()) return added;
  }
  return cut;
}

absl::Status Retention::AddBase(const ModelHandle& model, const Truncation* before,
                                std::span<const Event> events, Cut* cut) const {
  if (absl::Status exact = CheckExact(*model); !exact.ok()) return exact;
  std::string base;
  if (before != nullptr) {
    auto read = ReadBase(*deps_.states, *model, cut->user_id, *before);
    if (!read.ok()) return read.status();
    base = *std::move(read);
  }
  std::vector<FoldEvent> fold;
  for (const Event& event : events) {
    const auto item = model->engine->catalog().Find(event.item_id);
    if (item) fold.push_back({*item, FoldTimeMs(event)});
  }
  auto folded = FoldFrom(*model->engine, base, fold);
  if (!folded.ok()) return folded.status();
  cut->models.push_back(model);
  cut->bases.push_back({cut->truncation.lineage, *std::move(folded)});
  return absl::OkStatus();
}

absl::Status Retention::Write(std::span<Cut> cuts) {
  std::vector<UserTruncation> users;
  for (Cut& cut : cuts) {
    for (size_t i = 0; i < cut.bases.size(); ++i) {
      cut.states.push_back({cut.user_id, cut.models[i]->fingerprint(), &cut.bases[i]});
    }
    users.push_back({cut.user_id, cut.truncation, cut.removed, cut.states});
  }
  return deps_.truncate(users);
}

void Retention::Fail(const absl::Status& status, size_t users) {
  deps_.metrics->failed_truncate->Increment();
  static LogLimit limit;
  LogSome(&limit, LogLevel::kError, "retention could not remove events",
          {{"error", LogText(status)}, {"users", users}});
}

}  // namespace tim4rec
