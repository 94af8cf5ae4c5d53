// The backends compiled into this binary.
#ifndef TIM4REC_MODEL_BACKENDS_BUILTIN_H_
#define TIM4REC_MODEL_BACKENDS_BUILTIN_H_

#include "model/engine/backend.h"

namespace tim4rec {

// "cpu" and "torch" always; "cuda" where it was built, which encodes windows as asked. "auto"
// prefers cuda, then cpu.
const BackendRegistry& BuiltinBackends(WindowEncoding windows = WindowEncoding::kExact);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_BUILTIN_H_
