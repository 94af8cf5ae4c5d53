// What several sub-commands do: say things on stderr, open models, read interaction files.
#ifndef TIM4REC_MODEL_CLI_SESSION_H_
#define TIM4REC_MODEL_CLI_SESSION_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/engine/engine.h"
#include "model/evaluation/evaluator.h"
#include "model/training/dataset.h"
#include "model/training/interactions.h"

namespace tim4rec {

// A line to stderr, after clearing a progress line that is there.
void Say(const std::string& line);

// Progress on stderr. On a terminal one line that is overwritten, at most ten times a second;
// elsewhere a plain line, at most every ten seconds. Not thread-safe.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { Clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // `text` stands behind a bar of the share `done`, 0 … 1.
  void Show(double done, const std::string& text);
  void Clear();

 private:
  const bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

// "1h02m", "3m05s", "12s".
std::string FormatSeconds(double seconds);

// "NDCG@10 0.0612  HR@10 0.1210  ...".
std::string FormatMetrics(const RankingMetrics& metrics);
// A JSON object of the same figures.
std::string MetricsJson(const RankingMetrics& metrics);
// A table of the buckets that have users, under a line with `heading`.
std::string FormatBuckets(const std::string& heading, const std::vector<BucketMetrics>& buckets);
// The figures of MetricsJson with "by_history" and "by_gap": arrays of the same figures per bucket,
// with its name as "bucket"; all buckets, in order.
std::string RankingJson(const RankingResult& result);

// Writes a row of user and items, tab-separated, per evaluated user of `data`, whose lists `top`
// are in that order. UNAVAILABLE naming `what` (an option, or "") and the path.
absl::Status DumpTopK(const std::string& what, const std::string& path, const Dataset& data,
                      const ItemCatalog& catalog, const std::vector<std::vector<ScoredItem>>& top);

// Reads an interaction file and says what is in it.
absl::StatusOr<InteractionTable> ReadAndDescribe(const std::string& path, bool skip_bad_rows);

// The same, filtered and split; titles from the item file beside it.
absl::StatusOr<Dataset> ReadDataset(const std::string& path, bool skip_bad_rows, int64_t min_count);

// Opens a model package and starts it on a backend ("auto", "cpu", ...).
// INVALID_ARGUMENT if windows are to be encoded in bulk by a backend that cannot.
absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const std::string& dir,
                                                   const std::string& backend,
                                                   WindowEncoding windows = WindowEncoding::kExact);

// The help of --bulk-windows, of commands that only make lists of many users.
inline constexpr char kBulkWindowsHelp[] =
    "Encode windows of published models on a GPU's matrix units, for throughput: with the rounding "
    "of tf32 instead of the bits of every backend; the cuda backend alone";

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_SESSION_H_
