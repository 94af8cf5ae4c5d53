#include "server/pipeline/verify_user.h"

#include <optional>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "model/engine/state_check.h"
#include "server/pipeline/history.h"

namespace tim4rec {
namespace {

// What is wrong with the resident state, empty if nothing.
absl::StatusOr<std::string> CheckResident(const Engine& engine, const UserHistory& history,
                                          const Resident& resident) {
  if (!(resident.lineage == history.lineage)) {
    return absl::StrCat("lineage: covers ", resident.lineage.event_count, " events, the log has ",
                        history.lineage.event_count, " or others");
  }
  const auto expected = FoldFrom(engine, history.base, history.fold);
  if (!expected.ok()) return expected.status();
  std::string actual(expected->size(), '\0');
  const absl::Status exported =
      engine.backend().Export(resident.slot, std::as_writable_bytes(std::span(actual)));
  if (!exported.ok()) return exported;
  return FirstDifference(engine.config(), *expected, actual);
}

}  // namespace

absl::Status VerifyUser(const LoadedModel& model, const EventLog& log, const StateStore& states,
                        std::string_view user_id, const Resident* resident,
                        VerifyUserCommand* command) {
  const Engine& engine = *model.engine;
  if (!engine.backend().exact()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the states of the ", std::string(engine.backend().name()),
                     " backend may differ from the fold in their last bits; verify where an exact "
                     "backend serves, such as cpu"));
  }
  const auto checkpoint = states.Get(user_id, engine.fingerprint());
  if (!checkpoint.ok()) return checkpoint.status();
  HistoryRequest request{.user_id = user_id};
  if (*checkpoint) request.checkpoint = &(*checkpoint)->lineage;
  const auto history = ReadHistory(log, states, model, request);
  if (!history.ok()) return history.status();
  command->event_count = history->lineage.event_count;

  if (resident != nullptr) {
    const auto difference = CheckResident(engine, *history, *resident);
    if (!difference.ok()) return difference.status();
    command->resident_compared = true;
    command->resident_equal = difference->empty();
    if (!difference->empty()) command->difference = absl::StrCat("resident: ", *difference);
  }
  if (history->checkpoint_folds) {
    const auto expected =
        FoldFrom(engine, history->base, std::span(history->fold).first(*history->checkpoint_folds));
    if (!expected.ok()) return expected.status();
    const std::string difference =
        FirstDifference(engine.config(), *expected, (*checkpoint)->payload);
    command->checkpoint_compared = true;
    command->checkpoint_equal = difference.empty();
    if (!difference.empty() && command->difference.empty()) {
      command->difference = absl::StrCat("checkpoint: ", difference);
    }
  }
  return absl::OkStatus();
}

}  // namespace tim4rec
