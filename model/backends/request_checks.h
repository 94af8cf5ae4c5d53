// What every backend checks of its callers' requests, with the same messages. INVALID_ARGUMENT
// names the field and what is allowed.
#ifndef TIM4REC_MODEL_BACKENDS_REQUEST_CHECKS_H_
#define TIM4REC_MODEL_BACKENDS_REQUEST_CHECKS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "model/config/config.h"
#include "model/engine/backend.h"

namespace tim4rec {

// The error of `field`[index].slot being `slot`, which was never given out.
absl::Status BadSlot(const char* field, size_t index, Slot slot);

// runs[index].events, of a catalogue of `n_items`.
absl::Status CheckEvents(const Run& run, size_t index, int64_t n_items);

// The values that `requests` queries write.
absl::Status CheckQueries(size_t requests, size_t values, const ModelConfig& config);
// requests[index] reads a slot into which no event is folded: FAILED_PRECONDITION.
absl::Status NoEvent(size_t index, Slot slot);

// requests[index].
absl::Status CheckTopK(const TopKRequest& request, size_t index, const ModelConfig& config);

// The size of a record handed to Export or Import.
absl::Status CheckRecordSize(size_t bytes, int64_t state_bytes);
// The content of a record that is to be imported, its size checked: a negative count of events, and
// items of a window outside the catalogue, which would be read as indices.
absl::Status CheckRecord(std::span<const std::byte> record, const ModelConfig& config);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_REQUEST_CHECKS_H_
