// From a published checkpoint to a model package.
#ifndef TIM4REC_MODEL_CLI_IMPORT_MODEL_H_
#define TIM4REC_MODEL_CLI_IMPORT_MODEL_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/weights/package.h"

namespace tim4rec {

struct ImportSources {
  std::string checkpoint;   // a RecBole .pth; else
  std::string safetensors;  // the same tensors in a safetensors file
  std::string config;       // YAML or JSON, see import_config.h
  // Where item ids come from, at most one; without any the ids are "1" … "V-1".
  std::string items;         // a text file: one id per line, in the order of the indices from 1
  std::string dataset;       // the dataset as RecBole saved it
  std::string interactions;  // the interactions it was trained on: ids by first appearance
  int64_t min_count = 1;     // … of users and items with at least so many of them
  bool skip_bad_rows = false;
  std::optional<Activation> conv_activation;  // over the configuration's
};

// Reads everything, checks that tensors, configuration and ids fit each other (every missing,
// misshapen or unknown tensor is named in one error) and computes a probe with the float64
// reference: histories of random items, shorter and longer than the window.
absl::StatusOr<PackageContents> ImportPublished(const ImportSources& sources);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_IMPORT_MODEL_H_
