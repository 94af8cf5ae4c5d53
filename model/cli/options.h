// Checks of option values.
#ifndef TIM4REC_MODEL_CLI_OPTIONS_H_
#define TIM4REC_MODEL_CLI_OPTIONS_H_

#include <CLI/CLI.hpp>

namespace tim4rec {

// A value from `low` to `high`. Unlike CLI::Range it leaves the option's line in --help short.
template <typename T>
CLI::Validator Between(T low, T high) {
  return CLI::Range(low, high).description("");
}

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_OPTIONS_H_
