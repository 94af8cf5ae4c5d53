#include "server/app/run_marker.h"

#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace tim4rec {

absl::StatusOr<RunMarker> RunMarker::Begin(const std::string& dir) {
  const std::string path = absl::StrCat(dir, "/RUNNING");
  int64_t unclean = 0;
  if (std::ifstream found(path); found) {
    found >> unclean;  // 0 if a crash of the machine emptied it
    ++unclean;
  }
  std::ofstream file(path, std::ios::trunc);
  file << unclean << '\n';
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return RunMarker(path, unclean);
}

absl::Status RunMarker::End() const {
  std::error_code error;
  std::filesystem::remove(path_, error);
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path_, ": cannot be removed: ", error.message()));
}

}  // namespace tim4rec
