// The program `tim4rec`: train, evaluate and recommend from a terminal.
#ifndef TIM4REC_MODEL_CLI_COMMAND_LINE_H_
#define TIM4REC_MODEL_CLI_COMMAND_LINE_H_

namespace tim4rec {

// Runs one command and returns the exit code: 0 done, 1 it failed (the reason is on stderr), 2 the
// command line is wrong (what is wrong and where to find help is on stderr).
int RunCommandLine(int argc, char** argv);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_COMMAND_LINE_H_
