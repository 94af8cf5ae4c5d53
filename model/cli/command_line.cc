#include "model/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "absl/status/status.h"
#include "model/cli/commands.h"

namespace tim4rec {

int RunCommandLine(int argc, char** argv) {
  CLI::App app(
      "Sequential recommendation with a state-space model: trains, measures, recommends, verifies.",
      "tim4rec");
  app.set_version_flag("--version", "tim4rec " TIM4REC_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();
  app.get_formatter()->column_width(36);
  absl::Status status;
  AddTrainCommand(&app, &status);
  AddEvaluateCommand(&app, &status);
  AddRecommendCommand(&app, &status);
  AddImportCommand(&app, &status);
  AddVerifyCommand(&app, &status);
  AddBatchCommand(&app, &status);
  AddUsersCommand(&app, &status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "tim4rec: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace tim4rec
