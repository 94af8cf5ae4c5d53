// The kernels of one instruction set as a KernelSet: what avx2.cc and avx512.cc export.
#ifndef TIM4REC_MODEL_KERNELS_SIMD_KERNELS_INL_H_
#define TIM4REC_MODEL_KERNELS_SIMD_KERNELS_INL_H_

#include "model/kernels/simd_fold-inl.h"
#include "model/kernels/simd_rank-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tim4rec::kernels {
namespace {

void Apply(Function function, const float* v, int64_t n, float* result) {
  for (int64_t i = 0; i < n; i += kLanes) {
    V x = LoadUpTo(v, i, n);
    switch (function) {
      case Function::kExp:
        x = VecExp(x);
        break;
      case Function::kLog1p:
        x = VecLog1p(x);
        break;
      case Function::kSoftplus:
        x = VecSoftplus(x);
        break;
      case Function::kSigmoid:
        x = VecSigmoid(x);
        break;
      case Function::kSilu:
        x = VecSilu(x);
        break;
      case Function::kHardswish:
        x = VecHardswish(x);
        break;
    }
    StoreUpTo(x, result, i, n);
  }
}

}  // namespace
}  // namespace tim4rec::kernels
HWY_AFTER_NAMESPACE();

#endif  // TIM4REC_MODEL_KERNELS_SIMD_KERNELS_INL_H_
