// The files of a package directory as text and bytes: items.tsv, the atomic replacement of a
// directory. Used by package.cc alone.
#ifndef TIM4REC_MODEL_WEIGHTS_PACKAGE_FILES_H_
#define TIM4REC_MODEL_WEIGHTS_PACKAGE_FILES_H_

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/weights/package.h"

namespace tim4rec {

// items.tsv: a line of column names, then a line per item from index 1 on. In ids, titles and
// categories the characters backslash, tab, newline, carriage return and '|' are written as
// \\ \t \n \r \p.
std::string FormatItems(const std::vector<Item>& items);
// The items with the padding entry at 0; INVALID_ARGUMENT naming the line.
absl::StatusOr<std::vector<Item>> ParseItems(std::string_view text);

// A file's bytes, in pieces that are written one after the other.
using FilePieces = std::vector<std::span<const std::byte>>;

// Puts a directory with exactly these files at `dir`, replacing a package that is there. Files and
// directories are synced before they become visible. A file without pieces is none, now or before;
// entries of a replaced directory that are not in `files` are moved to the new one.
// FAILED_PRECONDITION if `dir` is something else than a package or an empty directory; UNAVAILABLE
// for failures of the file system.
absl::Status ReplaceDirectory(const std::string& dir,
                              const std::map<std::string, FilePieces>& files);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_PACKAGE_FILES_H_
