// Memory in huge pages, where the system gives them (transparent_hugepage: madvise or always):
// states are visited at random and the item table is read in panels, both far beyond what a TLB
// covers.
#ifndef TIM4REC_MODEL_BACKENDS_CPU_HUGE_PAGES_H_
#define TIM4REC_MODEL_BACKENDS_CPU_HUGE_PAGES_H_

#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace tim4rec {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// At least `bytes`, in whole huge pages; null if there is no memory.
inline void* AllocateHugePages(size_t bytes) {
  bytes = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  void* memory = ::operator new (bytes, std::align_val_t{kHugePageBytes}, std::nothrow);
  if (memory != nullptr) (void)madvise(memory, bytes, MADV_HUGEPAGE);  // small pages serve too
  return memory;
}

// What AllocateHugePages gave, or null.
inline void FreeHugePages(void* memory) {
  ::operator delete (memory, std::align_val_t{kHugePageBytes});
}

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_BACKENDS_CPU_HUGE_PAGES_H_
