// Events and their order.
#ifndef TIM4REC_STORE_EVENT_H_
#define TIM4REC_STORE_EVENT_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace tim4rec {

// The key of an event within its user's log: bytes whose lexicographic order is (timestamp, event
// id or hash of the item). The user's key prefix is not part of it.
using Position = std::string;

// Where an event stands in its user's fold order, which is the order of these.
struct FoldPlace {
  Position position;
  uint32_t rank = 0;  // 0: the event at that position; from 1: late ones that are folded behind it

  auto operator<=>(const FoldPlace&) const = default;
};

// A user's interaction with an item. Ids are UTF-8, 1 to 256 bytes (event_id may be empty); the
// caller has validated them. Two events of a user are the same event if timestamp and event id are
// equal, or, without an event id, timestamp and item id: the first one written stays.
struct Event {
  std::string item_id;
  int64_t timestamp_ms = 0;  // unix milliseconds, may be negative
  std::string event_id;      // optional
  // Rank 0, and no position: the event is folded at its own position. Else it came late and is
  // folded here, behind its user's newest event of then, whose position is above its own.
  FoldPlace late = {};
};

Position PositionOf(const Event& event);
absl::StatusOr<int64_t> TimestampOf(std::string_view position);
FoldPlace FoldPlaceOf(const Event& event);
// When the fold takes the event to have happened: its timestamp; of a late one, that of the event
// behind which it is folded. Never falls along the fold order.
int64_t FoldTimeMs(const Event& event);

// What a state was folded from. A state whose lineage does not match the log is not served.
struct Lineage {
  uint64_t event_count = 0;  // events of the log covered, those of unknown items included
  Position watermark;        // the greatest position covered; empty if none
  std::array<uint64_t, 2> hash = {0,
                                  0};  // rolling hash of all covered (position, item id), in order
  bool log_truncated = false;          // events before the covered ones were removed by retention

  // Covers one more event, the next in fold order.
  void Extend(std::string_view position, std::string_view item_id);
  bool operator==(const Lineage&) const = default;
};

// What retention has removed from the front of a user's log: its first events in fold order. The
// lineage of what is left continues this one.
struct Truncation {
  Lineage lineage;            // of the removed events; log_truncated is true
  int64_t last_event_ms = 0;  // FoldTimeMs of the last of them
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_EVENT_H_
