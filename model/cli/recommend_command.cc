#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "model/cli/commands.h"
#include "model/cli/options.h"
#include "model/cli/session.h"
#include "model/engine/engine.h"
#include "model/training/dataset.h"
#include "model/weights/safetensors.h"

namespace tim4rec {
namespace {

struct RecommendArguments {
  std::string model;
  std::string history;
  std::string dump_queries;
  std::string backend = "auto";
  std::optional<int64_t> as_of_ms;
  int k = 10;
  bool include_seen = false, skip_bad_rows = false;
};

// Query vectors of users in the order in which their rows are printed; zeros for a user without
// known items, whose rows are the popular items.
class QueryDump {
 public:
  explicit QueryDump(int64_t hidden_size) : hidden_size_(hidden_size) {}

  void Add(const std::vector<float>& query) {
    values_.insert(values_.end(), query.begin(), query.end());
    values_.resize(static_cast<size_t>(++users_ * hidden_size_), 0.0f);
  }

  absl::Status Write(const std::string& path) const {
    SafetensorsWriter writer;
    writer.Add("query", {users_, hidden_size_}, std::span<const float>(values_));
    std::ofstream file(path, std::ios::binary);
    file << writer.Header();
    for (const std::span<const std::byte> piece : writer.pieces()) {
      file.write(reinterpret_cast<const char*>(piece.data()),
                 static_cast<std::streamsize>(piece.size()));
    }
    file.close();
    if (file) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("cannot write --dump-queries ", path));
  }

 private:
  const int64_t hidden_size_;
  int64_t users_ = 0;
  std::vector<float> values_;
};

struct Recommendation {
  std::vector<float> query;  // empty for a user without known items
  std::vector<ScoredItem> items;
};

// Folds the events up to `as_of_ms` and ranks. Later events are not known at that time.
absl::StatusOr<Recommendation> RecommendTo(const Engine& engine, const UserHistory& history,
                                           int64_t as_of_ms, int k, bool include_seen) {
  std::vector<FoldEvent> events;
  for (int64_t i = 0; i < history.size() && history.timestamps_ms[i] <= as_of_ms; ++i) {
    events.push_back({history.items[i], history.timestamps_ms[i]});
  }
  Recommendation recommendation;
  if (events.empty()) {
    const ItemCatalog& catalog = engine.catalog();
    for (const int32_t item : catalog.by_popularity()) {
      if (static_cast<int>(recommendation.items.size()) == k) break;
      recommendation.items.push_back({item, static_cast<float>(catalog.item(item).train_events)});
    }
    return recommendation;
  }
  Backend& backend = engine.backend();
  const auto slot = backend.Allocate();
  if (!slot.ok()) return slot.status();
  const auto release = absl::MakeCleanup([&] { backend.Release(*slot); });
  const Run run{*slot, events};
  if (auto status = backend.Advance({&run, 1}); !status.ok()) return status;
  recommendation.query.resize(engine.config().hidden_size);
  const QueryRequest query{*slot, as_of_ms};
  if (auto status = backend.Query({&query, 1}, recommendation.query); !status.ok()) return status;
  std::vector<int32_t> seen;
  if (!include_seen) {
    for (const FoldEvent& event : events) seen.push_back(event.item);
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  }
  TopKRequest request;
  request.query = recommendation.query;
  request.k = k;
  request.excluded = seen;
  std::vector<std::vector<ScoredItem>> results;
  if (auto status = engine.TopK({&request, 1}, {&query, 1}, &results); !status.ok()) return status;
  recommendation.items = std::move(results[0]);
  return recommendation;
}

absl::Status RunRecommend(const RecommendArguments& arguments) {
  const auto engine = OpenEngine(arguments.model, arguments.backend);
  if (!engine.ok()) return engine.status();
  const ItemCatalog& catalog = (*engine)->catalog();
  const auto table = ReadAndDescribe(arguments.history, arguments.skip_bad_rows);
  if (!table.ok()) return table.status();
  const KnownHistories known = HistoriesInCatalog(*table, catalog);
  if (known.unknown_events > 0) {
    Say(absl::StrCat("left out ", known.unknown_events,
                     " interactions with items that the model does not know"));
  }
  QueryDump queries((*engine)->config().hidden_size);
  const int64_t as_of_ms = arguments.as_of_ms.value_or(absl::ToUnixMillis(absl::Now()));
  int64_t cold = 0;
  for (const UserHistory& history : known.users) {
    const auto recommendation =
        RecommendTo(**engine, history, as_of_ms, arguments.k, arguments.include_seen);
    if (!recommendation.ok()) return recommendation.status();
    cold += recommendation->query.empty();
    for (const ScoredItem& scored : recommendation->items) {
      std::printf("%s\t%s\t%.9g\n", history.user.c_str(), catalog.item(scored.item).id.c_str(),
                  scored.score);
    }
    if (!recommendation->items.empty()) queries.Add(recommendation->query);
  }
  if (cold > 0) {
    Say(absl::StrCat(cold,
                     " users have no known interaction by then and get the most popular "
                     "items, with the number of their training events as the score"));
  }
  if (!arguments.dump_queries.empty()) {
    if (auto status = queries.Write(arguments.dump_queries); !status.ok()) return status;
  }
  if (std::fflush(stdout) != 0) return absl::UnavailableError("cannot write to standard output");
  return absl::OkStatus();
}

}  // namespace

void AddRecommendCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<RecommendArguments>();
  CLI::App* command = app->add_subcommand(
      "recommend",
      "Recommend for every user of a history file. Prints rows of user, item and score,\n"
      "tab-separated, best first, users in order of first appearance.");
  command->add_option("--model", arguments->model, "Directory of the model package")->required();
  command
      ->add_option("--history", arguments->history, "Interactions, in any format that train reads")
      ->required();
  command->add_option("--k", arguments->k, "Items per user")->check(Between(1, 1000));
  command->add_flag("--include-seen", arguments->include_seen,
                    "Recommend items of the user's history too");
  command
      ->add_option("--as-of-ms", arguments->as_of_ms,
                   "When the recommendation is asked for, unix milliseconds; interactions after it "
                   "are left out; default: now")
      ->check(Between<int64_t>(0, std::numeric_limits<int64_t>::max()));
  command->add_option("--dump-queries", arguments->dump_queries,
                      "Write the query vectors to this safetensors file: query [users, width], in "
                      "the order of the rows; zeros for users without a known item");
  command->add_flag("--skip-bad-rows", arguments->skip_bad_rows,
                    "Leave malformed rows out instead of failing on the first");
  command->add_option("--backend", arguments->backend, "What computes: auto, cpu, cuda, torch");
  command->callback([arguments, status] { *status = RunRecommend(*arguments); });
}

}  // namespace tim4rec
