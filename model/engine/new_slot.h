// A slot that holds a given state.
#ifndef TIM4REC_MODEL_ENGINE_NEW_SLOT_H_
#define TIM4REC_MODEL_ENGINE_NEW_SLOT_H_

#include <string_view>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"

namespace tim4rec {

// Allocates one and imports a state record, or leaves it as it is if that is empty. A device that
// is lost meanwhile is not noticed. Errors: Allocate's and Import's; then there is no slot.
absl::StatusOr<Slot> NewSlot(Backend& backend, std::string_view record);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_NEW_SLOT_H_
