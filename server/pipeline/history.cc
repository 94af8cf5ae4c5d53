#include "server/pipeline/history.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

std::string Quoted(std::string_view id) {
  return absl::StrCat("'", absl::Utf8SafeCEscape({id.data(), id.size()}), "'");
}

// What is known of the events that are no more.
absl::Status BeginAtTruncation(const StateStore& states, const LoadedModel& model,
                               const HistoryRequest& request, const Truncation& truncation,
                               UserHistory* history) {
  if (request.until_ms < truncation.last_event_ms) {
    return absl::OutOfRangeError(absl::StrCat(
        request.until_ms, " lies before ", truncation.last_event_ms,
        ", up to which retention removed the user's events (store.max_events_per_user, "
        "store.event_ttl_ms)"));
  }
  absl::StatusOr<std::string> base = ReadBase(states, model, request.user_id, truncation);
  if (!base.ok()) return base.status();
  history->base = *std::move(base);
  if (!history->base.empty()) history->base_folds = FoldedEvents(history->base);
  history->lineage = truncation.lineage;
  history->removed = truncation.lineage.event_count;
  history->last_event_ms = truncation.last_event_ms;
  history->last_before_added = truncation.lineage.watermark;
  return absl::OkStatus();
}

}  // namespace

size_t FoldedEvents(std::string_view state_record) {
  int64_t folded = 0;
  if (state_record.size() < 2 * sizeof folded) return 0;
  std::memcpy(&folded, state_record.data() + sizeof folded, sizeof folded);
  return static_cast<size_t>(folded);
}

absl::StatusOr<std::string> ReadBase(const StateStore& states, const LoadedModel& model,
                                     std::string_view user_id, const Truncation& truncation) {
  auto base = states.GetBase(user_id, model.fingerprint());
  if (!base.ok()) return base.status();
  if (!*base) {
    if (!model.unloaded) return std::string();
    return absl::FailedPreconditionError(
        absl::StrCat(model.version, " was unloaded, and what retention kept for it is gone"));
  }
  StateRecord& record = **base;
  if (!(record.lineage == truncation.lineage) ||
      static_cast<int64_t>(record.payload.size()) != model.engine->backend().state_bytes()) {
    return absl::DataLossError(absl::StrCat(
        "user ", Quoted(user_id), ": the state that retention kept for model ", model.fingerprint(),
        " does not fit the log: restore a backup, or delete the user"));
  }
  return std::move(record.payload);
}

absl::StatusOr<UserHistory> ReadHistory(const EventLog& log, const StateStore& states,
                                        const LoadedModel& model, const HistoryRequest& request) {
  UserHistory history;
  const auto compare_prefix = [&] {
    if (request.checkpoint != nullptr &&
        history.lineage.event_count == request.checkpoint->event_count &&
        history.lineage == *request.checkpoint) {
      history.checkpoint_folds = history.fold.size();
    }
  };
  const auto truncation = log.ReadTruncation(request.user_id);
  if (!truncation.ok()) return truncation.status();
  if (*truncation) {
    absl::Status begun = BeginAtTruncation(states, model, request, **truncation, &history);
    if (!begun.ok()) return begun;
    compare_prefix();
  }
  const ItemCatalog& catalog = model.engine->catalog();
  const absl::Status read =
      log.Read(request.user_id, [&](std::string_view position, const Event& event) {
        const int64_t time_ms = FoldTimeMs(event);
        if (time_ms > request.until_ms) return false;
        const bool first = history.lineage.event_count == history.removed;
        if (first || event.timestamp_ms < history.first_event_ms) {
          history.first_event_ms = event.timestamp_ms;
        }
        history.last_event_ms = time_ms;
        history.lineage.Extend(position, event.item_id);
        if (const auto item = catalog.Find(event.item_id)) {
          history.fold.push_back({*item, time_ms});
        }
        if (request.added != nullptr && position > history.last_before_added &&
            !request.added->contains(Position(position))) {
          history.last_before_added = position;
        }
        compare_prefix();
        return true;
      });
  if (!read.ok()) return read;
  return history;
}

UserHistory HistoryOf(const std::vector<Event>& events, const ItemCatalog& catalog,
                      int64_t until_ms) {
  std::map<Position, const Event*> log;
  for (const Event& event : events) {
    if (event.timestamp_ms <= until_ms) log.try_emplace(PositionOf(event), &event);
  }
  UserHistory history;
  for (const auto& [position, event] : log) {
    if (history.lineage.event_count == 0) history.first_event_ms = event->timestamp_ms;
    history.last_event_ms = event->timestamp_ms;
    history.lineage.Extend(position, event->item_id);
    if (const auto item = catalog.Find(event->item_id)) {
      history.fold.push_back({*item, event->timestamp_ms});
    }
  }
  return history;
}

std::vector<int32_t> SeenItems(const std::vector<FoldEvent>& fold) {
  std::vector<int32_t> seen;
  seen.reserve(fold.size());
  for (const FoldEvent& event : fold) seen.push_back(event.item);
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  seen.shrink_to_fit();
  return seen;
}

}  // namespace tim4rec
