// States in main memory, the canonical arithmetic in float32.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_CPU_BACKEND_H_
#define TIM4REC_MODEL_BACKENDS_CPU_CPU_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/engine/backend.h"

namespace tim4rec {

// The instruction set is chosen here, see isa.h, whose errors it returns. FAILED_PRECONDITION on a
// CPU without the instructions that the kernels need. A call computes on the caller's thread;
// scratch memory is per thread. Of a published model with time, whose states are windows of events,
// Advance only appends; the first Query after a change encodes the window.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(
    std::shared_ptr<const ModelPackage> package);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_CPU_BACKEND_H_
