#include "model/backends/cpu/isa.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

constexpr std::array<const char*, 3> kNames = {"scalar", "avx2", "avx512"};

}  // namespace

absl::StatusOr<const kernels::KernelSet*> ChooseKernelSet() {
  const kernels::KernelSet* sets[kernels::kMaxKernelSets];
  const int count = kernels::SupportedKernelSets(sets);
  const char* forced = std::getenv("TIM4REC_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return count > 0 ? sets[0] : nullptr;
  const std::string name = forced;
  if (name == "scalar") return nullptr;
  std::string supported = "scalar";
  for (int i = 0; i < count; ++i) {
    if (sets[i]->isa == name) return sets[i];
    absl::StrAppend(&supported, ", ", sets[i]->isa);
  }
  if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("TIM4REC_FORCE_ISA is ", name, ", allowed scalar, avx2, avx512"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("TIM4REC_FORCE_ISA is ", name, ", which this CPU lacks; it has ", supported));
}

}  // namespace tim4rec
