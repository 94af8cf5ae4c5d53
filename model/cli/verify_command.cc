#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/cli/commands.h"
#include "model/cli/session.h"
#include "model/cli/store_check.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

struct VerifyArguments {
  std::string store;
  std::string model;
  std::string user;
  std::string backend = "auto";
};

absl::Status RunVerify(const VerifyArguments& arguments) {
  const auto engine = OpenEngine(arguments.model, arguments.backend);
  if (!engine.ok()) return engine.status();
  RocksDbStoreOptions options;
  options.read_only = true;
  options.create_if_missing = false;
  const auto store = RocksDbStore::Open(arguments.store, options);
  if (!store.ok()) return store.status();
  const auto checked = CheckStore(
      **store, **engine, arguments.user, [](std::string_view user_id, const std::string& fault) {
        const absl::string_view user(user_id.data(), user_id.size());
        std::printf("%s\t%s\n", absl::Utf8SafeCEscape(user).c_str(), fault.c_str());
      });
  if (!checked.ok()) return checked.status();
  if (std::fflush(stdout) != 0) return absl::UnavailableError("cannot write to standard output");
  Say(absl::StrCat(checked->users, " users, ", checked->events, " events (", checked->unknown_items,
                   " of items that the model does not know); retention removed ",
                   checked->removed_events, " more and left ", checked->bases, " bases"));
  Say(absl::StrCat("checkpoints: ", checked->equal_states, " equal the fold of the log, ",
                   checked->stale_states, " do not match it and are not used, ",
                   checked->other_models_states, " are of other models"));
  if (arguments.user.empty()) {
    Say(absl::StrCat("use of items: ", checked->use_counts, " counts are those of the logs"));
  }
  if (checked->faults == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(checked->faults, " faults in ", arguments.store));
}

}  // namespace

void AddVerifyCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<VerifyArguments>();
  CLI::App* command = app->add_subcommand(
      "verify",
      "Fold every log of a server's store anew and compare with the stored states, byte for byte.\n"
      "Changes nothing. Give it a backup, or the directory of a server that is stopped. Prints a "
      "row\n"
      "of user and fault, tab-separated, per fault; fails if there is one.");
  command->add_option("--store", arguments->store, "Directory of the store")->required();
  command->add_option("--model", arguments->model, "Directory of the model package")->required();
  command->add_option("--user", arguments->user, "Only this user");
  command->add_option("--backend", arguments->backend, "What computes: auto, cpu, ...");
  command->callback([arguments, status] { *status = RunVerify(*arguments); });
}

}  // namespace tim4rec
