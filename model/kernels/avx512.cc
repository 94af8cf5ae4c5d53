#include "model/kernels/simd_kernels-inl.h"

#if HWY_TARGET != HWY_AVX3
#error "compiled with other flags than model/kernels/CMakeLists.txt gives"
#endif

namespace tim4rec::kernels {

extern const KernelSet kAvx512Kernels;
const KernelSet kAvx512Kernels = {"avx512", FoldScratchFloats, Fold, RankScratchFloats, Rank,
                                  Apply};

}  // namespace tim4rec::kernels
