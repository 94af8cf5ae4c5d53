// Between torch parameters and plain named tensors.
#ifndef TIM4REC_MODEL_REFERENCE_TENSORS_H_
#define TIM4REC_MODEL_REFERENCE_TENSORS_H_

#include "absl/status/status.h"
#include "model/reference/reference.h"
#include "model/reference/streaming_model.h"

namespace tim4rec {

// Copies the parameters, as float32.
NamedTensors ExportTensors(const StreamingModel& model);

// Overwrites the parameters. INVALID_ARGUMENT naming every tensor that is missing, unknown or
// misshapen; then nothing is changed.
absl::Status ImportTensors(const NamedTensors& tensors, StreamingModel* model);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_TENSORS_H_
