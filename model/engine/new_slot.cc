#include "model/engine/new_slot.h"

#include <span>

namespace tim4rec {

absl::StatusOr<Slot> NewSlot(Backend& backend, std::string_view record) {
  for (;;) {
    absl::StatusOr<Slot> slot = backend.Allocate();
    if (!slot.ok() || record.empty()) return slot;
    absl::Status imported = backend.Import(*slot, std::as_bytes(std::span(record)));
    if (imported.ok()) return slot;
    backend.Release(*slot);
    // What is allocated after a loss is not lost.
    if (!IsStateLost(imported)) return imported;
  }
}

}  // namespace tim4rec
