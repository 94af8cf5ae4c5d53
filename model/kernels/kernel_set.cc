// Compiled for any CPU: finds out what this one has.
#include "model/kernels/kernel_set.h"

#include <cstring>

namespace tim4rec::kernels {

#if defined(__x86_64__)
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

int SupportedKernelSets(const KernelSet* (&sets)[kMaxKernelSets]) {
  int count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512) sets[count++] = &kAvx512Kernels;
  if (avx2) sets[count++] = &kAvx2Kernels;
#else
  (void)sets;
#endif
  return count;
}

int64_t BlockedFloats(int64_t inputs, int64_t outputs) {
  return inputs * ((outputs + 15) / 16) * 16;
}

void PackBlocks(const float* packed, int64_t inputs, int64_t outputs, float* blocked) {
  std::memset(blocked, 0, sizeof(float) * static_cast<size_t>(BlockedFloats(inputs, outputs)));
  for (int64_t k = 0; k < inputs; ++k) {
    for (int64_t o = 0; o < outputs; ++o) {
      blocked[(o / 16 * inputs + k) * 16 + o % 16] = packed[k * outputs + o];
    }
  }
}

}  // namespace tim4rec::kernels
