#include "model/kernels/simd_kernels-inl.h"

#if HWY_TARGET != HWY_AVX2
#error "compiled with other flags than model/kernels/CMakeLists.txt gives"
#endif

namespace tim4rec::kernels {

extern const KernelSet kAvx2Kernels;
const KernelSet kAvx2Kernels = {"avx2", FoldScratchFloats, Fold, RankScratchFloats, Rank, Apply};

}  // namespace tim4rec::kernels
