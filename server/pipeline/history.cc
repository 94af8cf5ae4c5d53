#include "server/pipeline/history.h"

#include <algorithm>
#include <limits>
#include <map>

namespace tim4rec {

absl::StatusOr<UserHistory> ReadHistory(const EventLog& log, const ItemCatalog& catalog,
                                        const HistoryRequest& request) {
  UserHistory history;
  const auto compare_prefix = [&] {
    if (request.checkpoint != nullptr &&
        history.lineage.event_count == request.checkpoint->event_count &&
        history.lineage == *request.checkpoint) {
      history.checkpoint_folds = history.fold.size();
    }
  };
  const absl::Status read =
      log.Read(request.user_id, [&](std::string_view position, const Event& event) {
        const int64_t time_ms = FoldTimeMs(event);
        if (time_ms > request.until_ms) return false;
        const bool first = history.lineage.event_count == 0;
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
