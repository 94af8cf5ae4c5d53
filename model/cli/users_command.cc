#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/cli/commands.h"
#include "model/cli/session.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

absl::Status PrintUsers(const std::string& directory) {
  RocksDbStoreOptions options;
  options.read_only = true;
  options.create_if_missing = false;
  const auto store = RocksDbStore::Open(directory, options);
  if (!store.ok()) return store.status();
  int64_t printed = 0, faults = 0;
  absl::Status listed = (*store)->ForEachUser("", [&](std::string_view user_id) {
    if (user_id.find_first_of("\r\n") != std::string_view::npos) {
      const absl::string_view user(user_id.data(), user_id.size());
      Say(absl::StrCat("left out, as it is no line: '", absl::Utf8SafeCEscape(user), "'"));
      ++faults;
    } else {
      std::fwrite(user_id.data(), 1, user_id.size(), stdout);
      std::fputc('\n', stdout);
      ++printed;
    }
    return std::ferror(stdout) == 0;
  });
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    listed.Update(absl::UnavailableError("cannot write to standard output"));
  }
  if (!listed.ok()) return listed;
  Say(absl::StrCat(printed, " users"));
  if (faults == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(faults, " users were left out"));
}

}  // namespace

void AddUsersCommand(CLI::App* app, absl::Status* status) {
  auto store = std::make_shared<std::string>();
  CLI::App* command = app->add_subcommand(
      "users",
      "Print the id of every user of a server's store, one per line: what tim4rec-batch takes. "
      "Changes\n"
      "nothing. Give it a backup, or the directory of a server that is stopped. Fails, after the "
      "others,\n"
      "if an id has a line break in it.");
  command->add_option("--store", *store, "Directory of the store")->required();
  command->callback([store, status] { *status = PrintUsers(*store); });
}

}  // namespace tim4rec
