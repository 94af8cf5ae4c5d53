#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/cli/commands.h"
#include "model/cli/options.h"
#include "model/cli/session.h"
#include "model/evaluation/evaluator.h"
#include "model/training/export.h"

namespace tim4rec {
namespace {

struct EvaluateArguments {
  std::string data;
  std::string model;
  std::string split = "test";
  std::string dump_topk;
  std::string backend = "auto";
  std::optional<int64_t> min_count;
  int threads = 0;
  bool skip_bad_rows = false, no_query_time = false, json = false, bulk_windows = false;
};

// The filter the model was trained with: another would make other held-out interactions.
int64_t TrainedMinCount(const ModelPackage& package) {
  const auto metrics = nlohmann::json::parse(package.metrics_json(), nullptr, false);
  const nlohmann::json::json_pointer key("/data/min_count");
  if (metrics.is_discarded() || !metrics.contains(key)) return 5;
  return metrics.at(key).is_number_integer() ? metrics.at(key).get<int64_t>() : 5;
}

absl::Status RunEvaluate(const EvaluateArguments& arguments) {
  const auto engine =
      OpenEngine(arguments.model, arguments.backend,
                 arguments.bulk_windows ? WindowEncoding::kBulk : WindowEncoding::kExact);
  if (!engine.ok()) return engine.status();
  const int64_t min_count = arguments.min_count.value_or(TrainedMinCount((*engine)->package()));
  const auto data = ReadDataset(arguments.data, arguments.skip_bad_rows, min_count);
  if (!data.ok()) return data.status();
  const Split split = arguments.split == "test" ? Split::kTest : Split::kValid;
  const auto cases = MakeRankingCases(*data, (*engine)->catalog(), split, !arguments.no_query_time);
  if (cases.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(arguments.data, ": no user has three interactions, so none can be evaluated"));
  }
  ProgressLine line;
  RankingOptions options;
  options.threads = arguments.threads;
  options.progress = [&](size_t done) {
    line.Show(static_cast<double>(done) / cases.size(),
              absl::StrCat(done, "/", cases.size(), " users"));
  };
  const auto result = EvaluateRanking(**engine, cases, options);
  line.Clear();
  if (!result.ok()) return result.status();
  if (!arguments.dump_topk.empty()) {
    auto dumped =
        DumpTopK("--dump-topk ", arguments.dump_topk, *data, (*engine)->catalog(), result->top);
    if (!dumped.ok()) return dumped;
  }
  if (arguments.json) {
    auto json = nlohmann::json::parse(RankingJson(*result));
    json["split"] = arguments.split;
    json["query_time"] = !arguments.no_query_time;
    json["min_count"] = min_count;
    json["fingerprint"] = (*engine)->fingerprint();
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("%s  %s  %s\n", arguments.split.c_str(), FormatMetrics(result->metrics).c_str(),
                arguments.no_query_time ? "(asked at the last event's time)"
                                        : "(asked at the target's time)");
    std::printf("\n%s\n%s", FormatBuckets("history", result->by_history).c_str(),
                FormatBuckets("gap to target", result->by_gap).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvaluateCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<EvaluateArguments>();
  CLI::App* command = app->add_subcommand(
      "evaluate",
      "Measure a model on held-out interactions: leave one out, the whole catalogue ranked, items\n"
      "already seen included. Prints HR, NDCG and MRR at 10 and 20, as means over all users, over\n"
      "users by the number of events before the target, and by the time from the last to the "
      "target.");
  command->add_option("DATA", arguments->data, "Interactions, as for train")->required();
  command->add_option("--model", arguments->model, "Directory of the model package")->required();
  command
      ->add_option("--split", arguments->split,
                   "Target: the last interaction (test) or the one before it (valid)")
      ->check(CLI::IsMember({"test", "valid"}));
  command->add_option("--dump-topk", arguments->dump_topk,
                      "Write rows of user and its 20 best items, tab-separated, to this file");
  command->add_flag("--no-query-time", arguments->no_query_time,
                    "Ask at the last event's timestamp instead of the target's own");
  command->add_flag("--json", arguments->json, "Print one JSON object");
  command
      ->add_option("--min-count", arguments->min_count,
                   "Drop users and items with fewer interactions; default: as in training")
      ->check(Between(0, 1 << 30));
  command->add_flag("--skip-bad-rows", arguments->skip_bad_rows,
                    "Leave malformed rows out instead of failing on the first");
  command->add_option("--backend", arguments->backend, "What computes: auto, cpu, cuda, torch");
  command->add_flag("--bulk-windows", arguments->bulk_windows, kBulkWindowsHelp);
  command->add_option("--threads", arguments->threads, "Threads; 0: one per core")
      ->check(Between(0, 1024));
  command->callback([arguments, status] { *status = RunEvaluate(*arguments); });
}

}  // namespace tim4rec
