// Where the tests find files. Compiled once, so that no test's own code holds a path of this
// machine.
#pragma once

#include <string>

namespace tim4rec {

// The root of the source tree, and of the build tree, without a slash at the end.
std::string SourceDir();
std::string BinaryDir();

}  // namespace tim4rec
