// The configuration of a published TiM4Rec, as its authors' YAML files have it.
#ifndef TIM4REC_MODEL_CLI_IMPORT_CONFIG_H_
#define TIM4REC_MODEL_CLI_IMPORT_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/config/config.h"

namespace tim4rec {

// What the command line or the tensors say beside the file.
struct ConfigOverrides {
  int64_t n_items = 0;                        // rows of the embedding; 0: the file must say
  std::optional<Activation> conv_activation;  // over the file's
};

// Reads RecBole's YAML (or JSON, which is YAML) with the released code's names. Needed:
// hidden_size, num_layers, d_state, d_conv, expand, head_dim, is_ffn, is_time, norm_eps and
// MAX_ITEM_LIST_LENGTH; with is_time p2p_residual. Read if present: dropout_prob, n_items (must
// agree with the override) and conv_activation (hardswish or silu). The released code uses SiLU in
// its convolutions only where the package causal_conv1d was installed and the number of heads is a
// multiple of 8: then one of the file and the override must say it; else it is hardswish. Other
// keys are not looked at.
//
// INVALID_ARGUMENT names every key that is missing or malformed at once.
absl::StatusOr<ModelConfig> ParsePublishedConfig(const std::string& yaml,
                                                 const ConfigOverrides& overrides);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_IMPORT_CONFIG_H_
