// The durable truth: each user's events in fold order.
#ifndef TIM4REC_STORE_EVENT_LOG_H_
#define TIM4REC_STORE_EVENT_LOG_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "store/event.h"

namespace tim4rec {

enum class Durability {
  kBuffered,  // survives the end of the process, not the loss of power
  kSynced,    // survives both once the call has returned
};

enum class AppendOutcome {
  kAdded,
  kDuplicate,
  // Not added: absent, and not behind the user's Truncation, so it may be a repeat of an event that
  // was removed.
  kExpired,
};

struct UserEvents {
  std::string_view user_id;
  std::span<const Event> events;
};

// Thread-safe, except that two calls that write the same user must not overlap (a partition has one
// worker). An event's `late` place is kept as it is given. Errors: UNAVAILABLE or
// RESOURCE_EXHAUSTED (disk full) when the disk refuses, DATA_LOSS naming the user when a stored
// event fails its checksum, INVALID_ARGUMENT for an id out of limits or a late place that is not
// behind the event's own position. A failed Append has added nothing that can be read; if the disk
// failed in the middle of it, all of it may be there after a restart or in the next generation, and
// a retry then finds duplicates.
class EventLog {
 public:
  virtual ~EventLog() = default;

  // Adds what is absent, atomically over the whole call; concurrent synced calls share a sync. One
  // outcome per event, in order of the request. A repeat within the call is a duplicate too.
  virtual absl::StatusOr<std::vector<std::vector<AppendOutcome>>> Append(
      std::span<const UserEvents> batch, Durability durability) = 0;

  // Visits the user's events in fold order (that of FoldPlaceOf) until the visitor returns false.
  using Visitor = std::function<bool(std::string_view position, const Event& event)>;
  virtual absl::Status Read(std::string_view user_id, const Visitor& visitor) const = 0;

  // What was removed from the front of the user's log; empty if nothing was. Read visits what is
  // left.
  virtual absl::StatusOr<std::optional<Truncation>> ReadTruncation(
      std::string_view user_id) const = 0;

  // Raised when what failed calls wrote may have become part of the log: what was derived from the
  // log before is to be derived anew. Never from within an Append that succeeds.
  virtual uint64_t generation() const = 0;

  // Visits the ids of all users that have events or a truncation, in key order, from the first one
  // behind `after` (empty: of all) on, until the visitor returns false.
  virtual absl::Status ForEachUser(
      std::string_view after,
      const std::function<bool(std::string_view user_id)>& visitor) const = 0;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_EVENT_LOG_H_
