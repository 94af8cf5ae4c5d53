// Whether the run before this one ended as it should: a file beside the store, there while one
// runs.
#ifndef TIM4REC_SERVER_APP_RUN_MARKER_H_
#define TIM4REC_SERVER_APP_RUN_MARKER_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

// Used by one thread, by whoever holds the store in the directory.
class RunMarker {
 public:
  // Notes that a run begins. UNAVAILABLE if the file cannot be written.
  static absl::StatusOr<RunMarker> Begin(const std::string& dir);

  // Starts in a row, this one included, that came after a run that did not drain: killed, crashed,
  // or given up while it started. 0: there was none before, or it drained.
  int64_t unclean_starts() const { return unclean_starts_; }

  // Notes that the run has drained.
  absl::Status End() const;

 private:
  RunMarker(std::string path, int64_t unclean_starts)
      : path_(std::move(path)), unclean_starts_(unclean_starts) {}

  std::string path_;
  int64_t unclean_starts_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_APP_RUN_MARKER_H_
