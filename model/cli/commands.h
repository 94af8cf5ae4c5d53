// The sub-commands of `tim4rec`.
#ifndef TIM4REC_MODEL_CLI_COMMANDS_H_
#define TIM4REC_MODEL_CLI_COMMANDS_H_

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace tim4rec {

// Each adds a sub-command that, when it is the one on the command line, runs while the line is
// parsed and leaves its outcome in `status`, which must outlive the parse.
void AddTrainCommand(CLI::App* app, absl::Status* status);
void AddEvaluateCommand(CLI::App* app, absl::Status* status);
void AddRecommendCommand(CLI::App* app, absl::Status* status);
void AddImportCommand(CLI::App* app, absl::Status* status);
void AddVerifyCommand(CLI::App* app, absl::Status* status);
void AddBatchCommand(CLI::App* app, absl::Status* status);
void AddUsersCommand(CLI::App* app, absl::Status* status);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_COMMANDS_H_
