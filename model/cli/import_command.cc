#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/cli/commands.h"
#include "model/cli/import_model.h"
#include "model/cli/options.h"
#include "model/cli/report.h"
#include "model/cli/session.h"
#include "model/engine/engine.h"

namespace tim4rec {
namespace {

struct ImportArguments {
  ImportSources sources;
  std::string conv_activation;
  std::string out;
};

absl::Status RunImport(ImportArguments arguments) {
  if (arguments.conv_activation == "silu") {
    arguments.sources.conv_activation = Activation::kSilu;
  } else if (arguments.conv_activation == "hardswish") {
    arguments.sources.conv_activation = Activation::kHardswish;
  }
  auto contents = ImportPublished(arguments.sources);
  if (!contents.ok()) return contents.status();
  if (absl::Status status = WritePackage(arguments.out, *contents); !status.ok()) return status;
  std::error_code error;
  std::filesystem::remove(std::filesystem::path(arguments.out) / kReportFile, error);
  const auto engine = OpenEngine(arguments.out, "auto");
  if (!engine.ok()) return engine.status();
  const ModelConfig& config = (*engine)->config();
  Say(absl::StrCat(
      arguments.out, ": published model, ", config.n_items - 1, " items, ", config.num_layers,
      config.num_layers == 1 ? " layer" : " layers", " of width ", config.hidden_size,
      config.is_time
          ? absl::StrCat(", time over windows of ", config.max_item_list_length, " events")
          : ", no time"));
  Say(absl::StrCat("the ", std::string((*engine)->backend().name()), " backend reproduces its ",
                   (*engine)->package().probe().size(), " probe histories"));
  return absl::OkStatus();
}

}  // namespace

void AddImportCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<ImportArguments>();
  ImportSources& sources = arguments->sources;
  CLI::App* command = app->add_subcommand(
      "import",
      "Make a model package of a checkpoint of the published TiM4Rec. Nothing in the\n"
      "checkpoint is run.");
  auto* weights = command->add_option_group("weights");
  weights->add_option("--checkpoint", sources.checkpoint,
                      "The .pth that RecBole saved (PyTorch 1.6 or newer)");
  weights->add_option("--safetensors", sources.safetensors,
                      "The same tensors as a safetensors file");
  weights->require_option(1);
  command
      ->add_option("--config", sources.config,
                   "Its YAML or JSON: hidden_size, num_layers, d_state, d_conv, expand, head_dim, "
                   "is_ffn, is_time, norm_eps, MAX_ITEM_LIST_LENGTH, with is_time p2p_residual; "
                   "perhaps conv_activation, n_items")
      ->required();
  command
      ->add_option("--conv-activation", arguments->conv_activation,
                   "silu or hardswish, over the configuration's; needed if the heads are a "
                   "multiple of 8 and the configuration does not say it")
      ->check(CLI::IsMember({"silu", "hardswish"}));
  auto* ids = command->add_option_group("item ids", "Without any of these the ids are 1, 2, ...");
  ids->add_option("--items", sources.items, "One id per line, in the order of the indices from 1");
  ids->add_option("--dataset", sources.dataset, "The dataset as RecBole saved it");
  auto* interactions =
      ids->add_option("--interactions", sources.interactions,
                      "The interactions it was trained on: ids in order of first appearance, with "
                      "titles and popularity");
  ids->require_option(0, 1);
  command
      ->add_option("--min-count", sources.min_count,
                   "With --interactions: the filter that RecBole had on users and items")
      ->check(Between<int64_t>(0, 1'000'000))
      ->needs(interactions);
  command->add_flag("--skip-bad-rows", sources.skip_bad_rows,
                    "Leave malformed rows out instead of failing on the first");
  command->add_option("--out", arguments->out, "Directory of the new model package")->required();
  command->callback([arguments, status] { *status = RunImport(*arguments); });
}

}  // namespace tim4rec
