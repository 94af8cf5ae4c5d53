// Reads zip archives whose entries are stored, not compressed: what torch.save writes.
#ifndef TIM4REC_MODEL_WEIGHTS_ZIP_READER_H_
#define TIM4REC_MODEL_WEIGHTS_ZIP_READER_H_

#include <cstddef>
#include <map>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace tim4rec {

// Entries by name; each views `file`. Every offset, length and checksum is checked, zip64 is
// understood. INVALID_ARGUMENT on anything malformed, compressed, encrypted or spanning volumes;
// DATA_LOSS on a wrong checksum.
absl::StatusOr<std::map<std::string, std::span<const std::byte>>> ReadStoredZip(
    std::span<const std::byte> file);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_ZIP_READER_H_
