#include <malloc.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "model/backends/builtin.h"
#include "model/cli/commands.h"
#include "model/cli/options.h"
#include "model/cli/report.h"
#include "model/cli/session.h"
#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/training/export.h"
#include "model/training/torch_ranking.h"
#include "model/training/trainer.h"
#include "model/training/windows.h"

namespace tim4rec {
namespace {

namespace fs = std::filesystem;

constexpr char kDefaultQueryFeatures[] = "gap,trend";

struct TrainArguments {
  std::string data;
  std::string out;
  int64_t min_count = 5;
  bool skip_bad_rows = false;
  std::string variant = "streaming";
  std::string conv_activation = "silu";
  bool no_time = false, time_write = false, time_decay = false, no_ffn = false;
  bool p2p_residual = false;
  std::optional<std::string> init, query_features;
  std::optional<int64_t> max_length;
  ModelConfig config;
  TrainOptions options;
};

// "model/" and "model" are the same place.
fs::path OutputPath(const std::string& out) {
  const fs::path path = fs::path(out).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

// Finds out before training whether the result can be written after it: a package, or the figures
// alone of what is not `served`.
absl::Status CheckOutput(const fs::path& out, bool served) {
  std::error_code error;
  if (fs::exists(out, error)) {
    if (!fs::is_directory(out, error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--out ", out.string(), " is a file; expected a directory"));
    }
    if (!served && fs::exists(out / "config.json", error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--out ", out.string(),
                       " holds a model package, and --variant sasrec and the query features "
                       "calendar and age make none: they are for comparisons, and no engine "
                       "serves them; give a new directory for the figures"));
    }
    if (served && !fs::is_empty(out, error) && !fs::exists(out / "config.json", error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--out ", out.string(),
                       " holds other files and no model package, and would be replaced as a whole; "
                       "give a new or empty directory"));
    }
  }
  fs::create_directories(fs::absolute(out, error).parent_path(), error);
  // The checkpoint is written beside the package, so try there.
  const std::string trial = out.string() + ".checkpoint.partial";
  errno = 0;
  if (!std::ofstream(trial, std::ios::binary)) {
    return absl::PermissionDeniedError(
        absl::StrCat("--out ", out.string(), ": cannot write ", trial, ": ", std::strerror(errno)));
  }
  fs::remove(trial, error);
  return absl::OkStatus();
}

// Lists and accuracy of weights on a split, through the backend that serves; of what none serves
// through libtorch.
absl::StatusOr<RankingResult> Measure(const Dataset& data, const TrainArguments& arguments,
                                      const TrainedTensors& tensors, Split split) {
  if (!arguments.options.served()) {
    const auto catalog = ItemCatalog::Create(data.items);
    if (!catalog.ok()) return catalog.status();
    const auto cases = MakeRankingCases(data, *catalog, split, /*query_time=*/true);
    return EvaluateWithTorch(data, arguments.config, arguments.options, tensors, cases);
  }
  auto package = ModelPackage::FromContents(ToContents(data, arguments.config, tensors));
  if (!package.ok()) return package.status();
  const auto engine = Engine::Create(*std::move(package), BuiltinBackends(), "cpu");
  if (!engine.ok()) return engine.status();
  const auto cases = MakeRankingCases(data, (*engine)->catalog(), split, /*query_time=*/true);
  return EvaluateRanking(**engine, cases, {});
}

TrainHooks MakeHooks(const Dataset& data, const TrainArguments& arguments, ProgressLine* line) {
  TrainHooks hooks;
  hooks.validate = [&data,
                    &arguments](const TrainedTensors& tensors) -> absl::StatusOr<RankingMetrics> {
    const auto result = Measure(data, arguments, tensors, Split::kValid);
    if (!result.ok()) return result.status();
    return result->metrics;
  };
  hooks.step = [line](const StepReport& r) {
    line->Show((r.epoch - 1 + static_cast<double>(r.step) / r.steps) / r.epochs,
               absl::StrFormat("epoch %d/%d  step %d/%d  loss %.4f  %.0f events/s  at most %s left",
                               r.epoch, r.epochs, r.step, r.steps, r.loss, r.events_per_second,
                               FormatSeconds(r.seconds_left)));
  };
  hooks.epoch = [](const EpochReport& r) {
    Say(absl::StrFormat(
        "epoch %2d/%d  loss %.4f  valid NDCG@10 %.5f  HR@10 %.5f%s  %.0f events/s  at most %s left",
        r.epoch, r.epochs, r.loss, r.valid.ndcg10, r.valid.hr10,
        r.best_epoch == r.epoch ? "  best" : absl::StrFormat("  (best: epoch %d)", r.best_epoch),
        r.events_per_second, FormatSeconds(r.seconds_left)));
  };
  return hooks;
}

std::string Summary(const TrainArguments& arguments, const Dataset& data,
                    const TrainResult& trained, const RankingResult& test, double seconds) {
  const TrainOptions& options = arguments.options;
  nlohmann::json curve = nlohmann::json::array();
  for (const EpochFigures& epoch : trained.curve) {
    curve.push_back({{"loss", epoch.loss}, {"valid_NDCG@10", epoch.valid_ndcg10}});
  }
  nlohmann::json summary = {
      {"data",
       {{"name", fs::path(arguments.data).filename().string()},
        {"users", data.users.size()},
        {"items", data.items.size() - 1},
        {"events", data.n_events},
        {"min_count", arguments.min_count}}},
      {"variant", arguments.variant},
      {"query_features", arguments.query_features.value_or(
                             arguments.variant == "streaming" ? kDefaultQueryFeatures : "none")},
      {"protocol",
       "leave one out, whole catalogue ranked, seen items included, asked at "
       "the target's timestamp"},
      {"curve", curve},
      {"training",
       {{"seed", options.seed},
        {"init", NameOf(options.init)},
        {"dropout", arguments.config.dropout_prob},
        {"epochs", options.epochs},
        {"patience", options.patience},
        {"learning_rate", options.learning_rate},
        {"batch_events", options.batch_events},
        {"max_length", options.max_length},
        {"epochs_run", trained.epochs_run},
        {"best_epoch", trained.best_epoch},
        {"last_loss", trained.loss},
        {"seconds", seconds}}},
      {"valid", nlohmann::json::parse(MetricsJson(trained.valid))},
      {"test", nlohmann::json::parse(RankingJson(test))}};
  return summary.dump(2);
}

// The line for programs: settings and final figures of the summary.
std::string FinalFigures(const std::string& summary_json) {
  const auto summary = nlohmann::json::parse(summary_json);
  const auto& training = summary["training"];
  nlohmann::ordered_json line = {{"data", summary["data"]["name"]},
                                 {"variant", summary["variant"]},
                                 {"seed", training["seed"]},
                                 {"best_epoch", training["best_epoch"]},
                                 {"epochs_run", training["epochs_run"]},
                                 {"seconds", training["seconds"]}};
  for (const char* split : {"valid", "test"}) {
    for (const char* metric : {"NDCG@10", "HR@10"}) {
      line[absl::StrCat(split, "_", metric)] = summary[split][metric];
    }
  }
  return line.dump();
}

// A step allocates and frees the same large tensors again and again: keep their pages, which
// otherwise go back to the kernel each time.
void KeepFreedPages() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

std::string UsesOfTime(const ModelConfig& config, const QueryFeatures& query) {
  if (config.variant == Variant::kPublished) {
    return config.is_time ? "gaps of the window" : "none";
  }
  std::vector<std::string> uses;
  if (config.time_write) uses.push_back("writing");
  if (config.time_decay) uses.push_back("decay");
  if (config.time_query) uses.push_back("reading");
  if (query.trend) uses.push_back("trend of items");
  return uses.empty() ? "none" : absl::StrJoin(uses, ", ");
}

// What --query-features stands for.
absl::Status ConfigureQuery(const std::string& features, TrainArguments* a) {
  if (features == "none") return absl::OkStatus();
  for (const absl::string_view feature : absl::StrSplit(features, ',')) {
    bool* const use = feature == "gap"        ? &a->config.time_query
                      : feature == "calendar" ? &a->options.query.calendar
                      : feature == "trend"    ? &a->options.query.trend
                      : feature == "age"      ? &a->options.query.age
                                              : nullptr;
    if (use == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("--query-features ", features, ": '", feature,
                       "' is not one of gap, calendar, trend, age; none alone for none"));
    }
    *use = true;
  }
  if (a->options.query.calendar && !a->config.time_query) {
    return absl::InvalidArgumentError(
        absl::StrCat("--query-features ", features, ": calendar needs gap, whose gate it enters"));
  }
  return absl::OkStatus();
}

// What --init stands for.
void ConfigureInit(const std::string& name, TrainOptions* options) {
  for (const auto init : {Initialisation::kMamba2, Initialisation::kHippo}) {
    if (name == NameOf(init)) options->init = init;
  }
}

// What --variant and the flags stand for. INVALID_ARGUMENT for flags that contradict it.
absl::Status Configure(TrainArguments* a) {
  ModelConfig& config = a->config;
  const bool published = a->variant == "published", streaming = a->variant == "streaming";
  if (!streaming && (a->time_write || a->time_decay || a->query_features)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--time-write, --time-decay and --query-features are of --variant streaming, "
                     "not ",
                     a->variant));
  }
  if (a->init && !streaming && a->variant != "no-time") {
    return absl::InvalidArgumentError(
        absl::StrCat("--init is of --variant streaming and no-time, not ", a->variant));
  }
  if (!published && (a->no_time || a->p2p_residual)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--no-time and --p2p-residual are of --variant published, not ", a->variant,
                     streaming ? "; the streaming model without time is --variant no-time" : ""));
  }
  config.conv_activation =
      a->conv_activation == "silu" ? Activation::kSilu : Activation::kHardswish;
  config.is_ffn = !a->no_ffn;
  config.time_write = a->time_write;
  config.time_decay = a->time_decay;
  config.time_query = false;
  if (streaming) {
    auto features = ConfigureQuery(a->query_features.value_or(kDefaultQueryFeatures), a);
    if (!features.ok()) return features;
  }
  if (a->init) ConfigureInit(*a->init, &a->options);
  if (published) {
    config.variant = Variant::kPublished;
    config.is_time = !a->no_time;
    config.p2p_residual = a->p2p_residual;
    config.max_item_list_length = a->max_length.value_or(config.max_item_list_length);
  }
  a->options.max_length = a->max_length.value_or(a->options.max_length);
  a->options.sasrec = a->variant == "sasrec";
  return absl::OkStatus();
}

// The page report.html.
std::string Report(const TrainArguments& arguments, const Dataset& data, const TrainResult& trained,
                   const RankingResult& test) {
  const ModelConfig& config = arguments.config;
  const TrainOptions& options = arguments.options;
  const std::string name = fs::path(arguments.data).filename().string();
  ReportInputs inputs;
  inputs.title = absl::StrCat("TiM4Rec, ", arguments.variant, ", trained on ", name);
  inputs.facts = {
      {"data", absl::StrFormat("%s: %d users, %d items, %d interactions (at least %d each)", name,
                               data.users.size(), data.items.size() - 1, data.n_events,
                               arguments.min_count)},
      {"model",
       absl::StrFormat("%s: %d layers of width %d, %d heads, state width %d", arguments.variant,
                       config.num_layers, config.hidden_size, config.num_heads(), config.d_state)},
      {"uses of time", UsesOfTime(config, options.query)},
      {"training", absl::StrFormat("seed %d, learning rate %g, dropout %g; epoch %d of %d kept",
                                   options.seed, options.learning_rate, config.dropout_prob,
                                   trained.best_epoch, trained.epochs_run)}};
  inputs.config = &config;
  inputs.items = &data.items;
  inputs.trained = &trained;
  inputs.test = &test;
  return ReportHtml(inputs);
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cannot write ", path.string()));
}

// The package and its report. The report of a package that was there goes first: none is better
// than that of another model.
absl::Status WriteModel(const fs::path& out, const PackageContents& contents,
                        const std::string& report) {
  std::error_code error;
  fs::remove(out / kReportFile, error);
  if (auto written = WritePackage(out.string(), contents); !written.ok()) return written;
  return WriteText(out / kReportFile, report);
}

// The figures and lists of what is not served: topk.tsv and, when all is done, metrics.json.
absl::Status WriteFigures(const fs::path& out, const Dataset& data, const RankingResult& test,
                          const std::string& metrics_json) {
  std::error_code error;
  fs::create_directories(out, error);
  const auto catalog = ItemCatalog::Create(data.items);
  if (!catalog.ok()) return catalog.status();
  auto dumped = DumpTopK("", (out / "topk.tsv").string(), data, *catalog, test.top);
  if (!dumped.ok()) return dumped;
  return WriteText(out / "metrics.json", metrics_json + "\n");
}

absl::Status RunTrain(TrainArguments arguments) {
  KeepFreedPages();
  const auto start = std::chrono::steady_clock::now();
  const fs::path out = OutputPath(arguments.out);
  if (auto configured = Configure(&arguments); !configured.ok()) return configured;
  const bool served = arguments.options.served();
  if (auto checked = CheckOutput(out, served); !checked.ok()) return checked;
  ModelConfig& config = arguments.config;
  arguments.options.checkpoint = out.string() + ".checkpoint";

  const auto data = ReadDataset(arguments.data, arguments.skip_bad_rows, arguments.min_count);
  if (!data.ok()) return data.status();
  config.n_items = static_cast<int64_t>(data->items.size());
  config.time = FitTimeConstants(*data);

  absl::StatusOr<TrainResult> trained;
  {
    ProgressLine line;
    trained = Train(*data, config, arguments.options, MakeHooks(*data, arguments, &line));
  }
  if (!trained.ok()) return trained.status();
  const auto test = Measure(*data, arguments, trained->tensors, Split::kTest);
  if (!test.ok()) return test.status();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::string summary = Summary(arguments, *data, *trained, *test, seconds);
  if (!served) {
    if (auto written = WriteFigures(out, *data, *test, summary); !written.ok()) return written;
  } else {
    const auto contents = MakePackage(*data, config, trained->tensors, summary);
    if (!contents.ok()) return contents.status();
    const std::string report = Report(arguments, *data, *trained, *test);
    if (auto written = WriteModel(out, *contents, report); !written.ok()) return written;
  }
  Say(absl::StrCat("valid  ", FormatMetrics(trained->valid)));
  Say(absl::StrCat("test   ", FormatMetrics(test->metrics)));
  Say(absl::StrCat("epoch ", trained->best_epoch, " of ", trained->epochs_run, " kept, ",
                   FormatSeconds(seconds),
                   served ? "; the model is in "
                          : "; for comparison, no engine serves it: figures and lists are in ",
                   out.string(), served ? absl::StrCat(" (look at ", kReportFile, ")") : "",
                   ", training can go on from ", arguments.options.checkpoint));
  std::cout << FinalFigures(summary) << std::endl;
  return absl::OkStatus();
}

void AddModelOptions(CLI::App* command, TrainArguments* a) {
  const std::string group = "Model";
  command
      ->add_option(
          "--variant", a->variant,
          "streaming: causal and time-aware. no-time: the same without any use of time. published: "
          "the released TiM4Rec, trained its way, on the last position of a window per target. "
          "sasrec: causal self-attention, a baseline that cannot be served: OUT gets its figures "
          "(metrics.json) and test lists (topk.tsv), no package")
      ->check(CLI::IsMember({"streaming", "no-time", "published", "sasrec"}))
      ->group(group);
  command->add_option("--hidden-size", a->config.hidden_size, "Width of item vectors and outputs")
      ->check(Between(1, 1 << 16))
      ->group(group);
  command->add_option("--num-layers", a->config.num_layers, "State-space layers")
      ->check(Between(1, 64))
      ->group(group);
  command->add_option("--d-state", a->config.d_state, "State width per head channel")
      ->check(Between(1, 1 << 12))
      ->group(group);
  command->add_option("--d-conv", a->config.d_conv, "Width of the causal convolutions, in events")
      ->check(Between(1, 64))
      ->group(group);
  command->add_option("--expand", a->config.expand, "Inner width as a multiple of the hidden size")
      ->check(Between(1, 64))
      ->group(group);
  command
      ->add_option("--head-dim", a->config.head_dim, "Channels per head; divides the inner width")
      ->check(Between(1, 1 << 12))
      ->group(group);
  command->add_option("--time-hidden", a->config.time_hidden, "Width of the functions of time")
      ->check(Between(1, 1 << 12))
      ->group(group);
  command->add_option("--conv-activation", a->conv_activation, "Activation after convolutions")
      ->check(CLI::IsMember({"silu", "hardswish"}))
      ->group(group);
  command->add_flag("--no-ffn", a->no_ffn, "Leave the feed-forward parts out")->group(group);
  command
      ->add_flag("--no-time", a->no_time,
                 "published: is_time off, which makes it causal; then trained on all positions")
      ->group(group);
  command
      ->add_flag("--p2p-residual", a->p2p_residual,
                 "published: a time gate per position instead of one per head")
      ->group(group);
  command->add_option("--heads", a->options.attention_heads, "sasrec: attention heads")
      ->check(Between(1, 1 << 12))
      ->group(group);
  command->add_flag("--time-write", a->time_write, "Gaps change how strongly events are written")
      ->group(group);
  command->add_flag("--time-decay", a->time_decay, "States decay over real time")->group(group);
  command
      ->add_option("--query-features", a->query_features,
                   "What is known when a recommendation is asked for, by commas, or none. gap: the "
                   "time since the last event. trend: the items' use in the weeks before, from "
                   "the training data on by what the server records. Candidates, measured but not "
                   "served, so that OUT "
                   "gets figures as with sasrec: calendar (hour and weekday in UTC; needs gap), "
                   "age (time since an item's first use)")
      ->default_str(kDefaultQueryFeatures)
      ->group(group);
  command
      ->add_option("--init", a->init,
                   "Where decay starts. mamba2: random rates per event, over real time next to "
                   "none. hippo: rates 1, 2, ... per typical history, over real time next to none. "
                   "log-timescales: mamba2, and memories log-spaced over the gaps of the data")
      ->check(CLI::IsMember({"mamba2", "hippo", "log-timescales"}))
      ->default_str("log-timescales")
      ->group(group);
}

void AddTrainingOptions(CLI::App* command, TrainArguments* a) {
  const std::string group = "Training";
  command->add_option("--epochs", a->options.epochs, "Epochs at most")
      ->check(Between(1, 1'000'000))
      ->group(group);
  command
      ->add_option("--patience", a->options.patience,
                   "Stop after this many epochs without a better validation NDCG@10")
      ->check(Between(1, 1'000'000))
      ->group(group);
  command
      ->add_option("--lr", a->options.learning_rate,
                   "Highest learning rate, reached after the warm-up; falls along a cosine")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command->add_option("--warmup-steps", a->options.warmup_steps, "Steps of the warm-up")
      ->check(Between(0, 1 << 30))
      ->group(group);
  command->add_option("--batch-size", a->options.batch_events, "Events per step, padding included")
      ->check(Between(1, 1 << 30))
      ->group(group);
  command
      ->add_option("--batch-windows", a->options.batch_windows,
                   "published with time: windows per step, each of --max-length events")
      ->check(Between(1, 1 << 20))
      ->group(group);
  command
      ->add_option("--max-length", a->max_length,
                   "Longer histories are trained on in windows of this many events; also the "
                   "window that published (with time) and sasrec see. Default: 200, published 50")
      ->check(Between(1, 1 << 20))
      ->group(group);
  command->add_option("--dropout", a->config.dropout_prob, "Dropout probability")
      ->check(Between(0.0, 0.99))
      ->group(group);
  command
      ->add_option("--clip-norm", a->options.clip_norm,
                   "Gradients with a larger Euclidean norm are scaled down to it")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command->add_option("--seed", a->options.seed, "Seed of all that is random")->group(group);
  command
      ->add_option(
          "--threads", a->options.threads,
          "Threads of a step; 0: one per core. More than 1 pays from a hidden size of about 128")
      ->check(Between(0, 1024))
      ->group(group);
  command
      ->add_option("--device", a->options.device,
                   "Where steps are computed: cpu, or cuda where libtorch has it")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->group(group);
  command
      ->add_flag("--resume", a->options.resume,
                 "Go on from OUT.checkpoint, which is written after each epoch")
      ->group(group);
}

}  // namespace

void AddTrainCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<TrainArguments>();
  arguments->config.dropout_prob = 0.3;
  CLI::App* command = app->add_subcommand(
      "train",
      "Train a model on interactions and write it as a model package (but see\n--variant sasrec "
      "and --query-features).\n"
      "The last interaction of each user is held out for testing, the one before it for choosing\n"
      "the epoch that is kept.");
  command
      ->add_option("DATA", arguments->data,
                   "Interactions: RecBole .inter, or CSV with a header (such as MovieLens' "
                   "ratings.csv); titles are read from x.item or movies.csv beside it")
      ->required();
  command->add_option("--out", arguments->out, "Directory of the model package")->required();
  command
      ->add_option("--min-count", arguments->min_count,
                   "Drop users and items with fewer interactions, repeatedly; 0: none")
      ->check(Between(0, 1 << 30));
  command->add_flag("--skip-bad-rows", arguments->skip_bad_rows,
                    "Leave malformed rows out instead of failing on the first");
  AddModelOptions(command, arguments.get());
  AddTrainingOptions(command, arguments.get());
  command->callback([arguments, status] { *status = RunTrain(*arguments); });
}

}  // namespace tim4rec
