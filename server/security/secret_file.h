// Files that nobody else may read.
#ifndef TIM4REC_SERVER_SECURITY_SECRET_FILE_H_
#define TIM4REC_SERVER_SECURITY_SECRET_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace tim4rec {

enum class Privacy { kPublic, kSecret };

// The whole file. INVALID_ARGUMENT beginning with `key` if it cannot be read, is larger than 1 MiB
// or, if secret, may be read or written by everybody; it never quotes the file.
absl::StatusOr<std::string> ReadSmallFile(const char* key, const std::string& path,
                                          Privacy privacy);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SECURITY_SECRET_FILE_H_
