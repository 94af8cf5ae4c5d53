// A user's event log read for folding.
#ifndef TIM4REC_SERVER_PIPELINE_HISTORY_H_
#define TIM4REC_SERVER_PIPELINE_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"
#include "model/weights/package.h"
#include "store/event_log.h"

namespace tim4rec {

struct UserHistory {
  Lineage lineage;              // of all events read
  int64_t first_event_ms = 0;   // the least timestamp; 0 if there is no event
  int64_t last_event_ms = 0;    // the greatest; 0 if there is no event
  std::vector<FoldEvent> fold;  // events of known items, in fold order
  // Length of `fold` at the end of the prefix that `checkpoint` covers; absent if the log has no
  // such prefix.
  std::optional<size_t> checkpoint_folds;
  // The greatest position of an event that is not among `added`; empty if none.
  Position last_before_added;
};

struct HistoryRequest {
  std::string_view user_id;
  int64_t until_ms =
      std::numeric_limits<int64_t>::max();  // events with a later FoldTimeMs are left out
  const Lineage* checkpoint = nullptr;      // or null
  const std::unordered_set<Position>* added = nullptr;  // or null
};

// Errors: the log's.
absl::StatusOr<UserHistory> ReadHistory(const EventLog& log, const ItemCatalog& catalog,
                                        const HistoryRequest& request);

// What ReadHistory would read if a new user had recorded these events, in any order, in one
// request, up to `until_ms`.
UserHistory HistoryOf(const std::vector<Event>& events, const ItemCatalog& catalog,
                      int64_t until_ms);

// The distinct items of a fold, ascending.
std::vector<int32_t> SeenItems(const std::vector<FoldEvent>& fold);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_HISTORY_H_
