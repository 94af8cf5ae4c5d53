// Which instruction set serves.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_ISA_H_
#define TIM4REC_MODEL_BACKENDS_CPU_ISA_H_

#include "absl/status/statusor.h"
#include "model/kernels/kernel_set.h"

namespace tim4rec {

// The best that this CPU has, or the one that the environment variable TIM4REC_FORCE_ISA names:
// scalar, avx2 or avx512. Null means scalar. INVALID_ARGUMENT on another name, FAILED_PRECONDITION
// if the CPU lacks it.
absl::StatusOr<const kernels::KernelSet*> ChooseKernelSet();

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_ISA_H_
