#include "tests/paths.h"

namespace tim4rec {

std::string SourceDir() { return TIM4REC_SOURCE_DIR; }
std::string BinaryDir() { return TIM4REC_BINARY_DIR; }

}  // namespace tim4rec
