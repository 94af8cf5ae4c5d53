#include "model/cli/session.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "model/backends/builtin.h"

namespace tim4rec {
namespace {

constexpr int kBarWidth = 24;
std::atomic<bool> progress_line_shown = false;  // threads of a batch say things too

// Whether a message begins with "PATH:LINE:", as those about rows do.
bool NamesLine(absl::string_view message, const std::string& path) {
  return absl::ConsumePrefix(&message, path) && absl::ConsumePrefix(&message, ":") &&
         !message.empty() && absl::ascii_isdigit(message[0]);
}

}  // namespace

void Say(const std::string& line) {
  std::fprintf(stderr, "%s%s\n", progress_line_shown.exchange(false) ? "\r\033[K" : "",
               line.c_str());
  std::fflush(stderr);
}

ProgressLine::ProgressLine()
    : terminal_(isatty(STDERR_FILENO) == 1), last_(std::chrono::steady_clock::now()) {}

void ProgressLine::Show(double done, const std::string& text) {
  const auto now = std::chrono::steady_clock::now();
  const auto pause = std::chrono::milliseconds(terminal_ ? 100 : 10'000);
  if (now - last_ < pause) return;
  last_ = now;
  done = std::clamp(done, 0.0, 1.0);
  if (!terminal_) return Say(absl::StrFormat("%3.0f%%  %s", 100 * done, text));
  const int filled = static_cast<int>(done * kBarWidth);
  std::fprintf(stderr, "\r\033[K[%s%s] %3.0f%%  %s", std::string(filled, '#').c_str(),
               std::string(kBarWidth - filled, '.').c_str(), 100 * done, text.c_str());
  std::fflush(stderr);
  shown_ = progress_line_shown = true;
}

void ProgressLine::Clear() {
  if (shown_ && progress_line_shown.exchange(false)) {
    std::fprintf(stderr, "\r\033[K");
    std::fflush(stderr);
  }
  shown_ = false;
}

std::string FormatSeconds(double seconds) {
  const int64_t s = std::llround(std::max(0.0, seconds));
  if (s >= 3600) return absl::StrFormat("%dh%02dm", s / 3600, s / 60 % 60);
  if (s >= 60) return absl::StrFormat("%dm%02ds", s / 60, s % 60);
  return absl::StrFormat("%ds", s);
}

std::string FormatMetrics(const RankingMetrics& m) {
  return absl::StrFormat(
      "NDCG@10 %.5f  HR@10 %.5f  MRR@10 %.5f  NDCG@20 %.5f  HR@20 %.5f  MRR@20 %.5f  users %d",
      m.ndcg10, m.hr10, m.mrr10, m.ndcg20, m.hr20, m.mrr20, m.users);
}

std::string MetricsJson(const RankingMetrics& m) {
  return nlohmann::json{{"users", m.users},  {"HR@10", m.hr10}, {"NDCG@10", m.ndcg10},
                        {"MRR@10", m.mrr10}, {"HR@20", m.hr20}, {"NDCG@20", m.ndcg20},
                        {"MRR@20", m.mrr20}}
      .dump();
}

std::string FormatBuckets(const std::string& heading, const std::vector<BucketMetrics>& buckets) {
  std::string text = absl::StrFormat("%-16s %7s  %8s %8s %8s  %8s %8s %8s\n", heading, "users",
                                     "NDCG@10", "HR@10", "MRR@10", "NDCG@20", "HR@20", "MRR@20");
  for (const auto& [label, m] : buckets) {
    if (m.users == 0) continue;
    absl::StrAppendFormat(&text, "%-16s %7d  %8.5f %8.5f %8.5f  %8.5f %8.5f %8.5f\n", label,
                          m.users, m.ndcg10, m.hr10, m.mrr10, m.ndcg20, m.hr20, m.mrr20);
  }
  return text;
}

std::string RankingJson(const RankingResult& result) {
  auto json = nlohmann::json::parse(MetricsJson(result.metrics));
  const auto bucket_array = [](const std::vector<BucketMetrics>& buckets) {
    auto array = nlohmann::json::array();
    for (const BucketMetrics& bucket : buckets) {
      array.push_back(nlohmann::json::parse(MetricsJson(bucket.metrics)));
      array.back()["bucket"] = bucket.label;
    }
    return array;
  };
  json["by_history"] = bucket_array(result.by_history);
  json["by_gap"] = bucket_array(result.by_gap);
  return json.dump();
}

absl::Status DumpTopK(const std::string& what, const std::string& path, const Dataset& data,
                      const ItemCatalog& catalog, const std::vector<std::vector<ScoredItem>>& top) {
  std::ofstream file(path, std::ios::binary);
  size_t row = 0;
  for (const UserHistory& history : data.users) {
    if (!history.evaluated()) continue;
    file << history.user;
    for (const ScoredItem& scored : top[row]) file << '\t' << catalog.item(scored.item).id;
    file << '\n';
    ++row;
  }
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", what, path));
  return absl::OkStatus();
}

absl::StatusOr<InteractionTable> ReadAndDescribe(const std::string& path, bool skip_bad_rows) {
  ReadOptions options;
  options.skip_bad_rows = skip_bad_rows;
  auto table = ReadInteractions(path, options);
  if (!table.ok()) {
    const absl::string_view fault = table.status().message();
    if (skip_bad_rows || !NamesLine(fault, path)) return table.status();
    return absl::InvalidArgumentError(
        absl::StrCat(fault, " (--skip-bad-rows leaves malformed rows out)"));
  }
  Say(absl::StrCat(path, ": ", table->rows.size(), " interactions of ", table->user_ids.size(),
                   " users with ", table->item_ids.size(), " items, timestamps in ",
                   table->time_unit == TimeUnit::kSeconds ? "seconds" : "milliseconds"));
  if (table->bad_rows > 0) {
    Say(absl::StrCat("skipped ", table->bad_rows,
                     " malformed rows; the first: ", table->first_bad_row));
  }
  return table;
}

absl::StatusOr<Dataset> ReadDataset(const std::string& path, bool skip_bad_rows,
                                    int64_t min_count) {
  const auto table = ReadAndDescribe(path, skip_bad_rows);
  if (!table.ok()) return table.status();
  std::vector<ItemDescription> descriptions;
  if (const std::string item_file = FindItemFile(path); !item_file.empty()) {
    ReadOptions options;
    options.skip_bad_rows = skip_bad_rows;
    auto items = ReadItems(item_file, options);
    if (!items.ok()) return items.status();
    descriptions = *std::move(items);
  }
  auto data = BuildDataset(*table, min_count, descriptions);
  if (!data.ok()) return data.status();
  Say(absl::StrCat("at least ", min_count, " interactions each: ", data->users.size(), " users, ",
                   data->items.size() - 1, " items, ", data->n_events, " interactions",
                   descriptions.empty() ? "" : ", with titles"));
  return data;
}

absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const std::string& dir,
                                                   const std::string& backend,
                                                   WindowEncoding windows) {
  if (windows == WindowEncoding::kBulk && (backend == "cpu" || backend == "torch")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--bulk-windows: is for the matrix units of the cuda backend, and --backend is ", backend));
  }
  auto package = ModelPackage::Open(dir);
  if (!package.ok()) return package.status();
  return Engine::Create(*std::move(package), BuiltinBackends(windows), backend);
}

}  // namespace tim4rec
