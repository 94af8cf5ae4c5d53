// A user's event log read for folding: what is left of it, and what it is folded into.
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
#include "server/pipeline/models.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

struct UserHistory {
  Lineage lineage;              // of the events that retention removed and all events read
  uint64_t removed = 0;         // events that retention removed
  int64_t first_event_ms = 0;   // the least timestamp of those read; 0 if there is none
  int64_t last_event_ms = 0;    // the greatest, removed ones included; 0 if there is none
  std::string base;             // state record that `fold` goes on from; empty: the empty state
  size_t base_folds = 0;        // events of known items behind `base`
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

// Errors: the log's and GetBase's; DATA_LOSS if the base does not fit the log; OUT_OF_RANGE if
// `until_ms` lies before the last event that retention removed; FAILED_PRECONDITION if the log is
// truncated and the model, with its bases, was unloaded.
absl::StatusOr<UserHistory> ReadHistory(const EventLog& log, const StateStore& states,
                                        const LoadedModel& model, const HistoryRequest& request);

// The payload of the user's base under a model; empty if it has none. Errors: as ReadHistory.
absl::StatusOr<std::string> ReadBase(const StateStore& states, const LoadedModel& model,
                                     std::string_view user_id, const Truncation& truncation);

// How many events a state record was folded from.
size_t FoldedEvents(std::string_view state_record);

// What ReadHistory would read if a new user had recorded these events, in any order, in one
// request, up to `until_ms`.
UserHistory HistoryOf(const std::vector<Event>& events, const ItemCatalog& catalog,
                      int64_t until_ms);

// The distinct items of a fold, ascending.
std::vector<int32_t> SeenItems(const std::vector<FoldEvent>& fold);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_HISTORY_H_
