#include "model/cli/import_config.h"

#include <yaml-cpp/yaml.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tim4rec {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

// Reads scalars of one mapping and collects what is wrong with them.
class MappingReader {
 public:
  MappingReader(const YAML::Node& root, std::vector<std::string>* faults)
      : root_(root), faults_(faults) {}

  // False if the key is absent, which is a fault if it is needed.
  template <typename T>
  bool Read(const char* key, bool needed, const char* kind, T* value) {
    const YAML::Node node = root_[key];
    if (!node.IsDefined() || node.IsNull()) {
      if (needed) faults_->push_back(absl::StrCat(key, " is missing"));
      return false;
    }
    if (!node.IsScalar() || !YAML::convert<T>::decode(node, *value)) {
      faults_->push_back(absl::StrCat(key, " must be ", kind));
      return false;
    }
    return true;
  }

  bool Read(const char* key, int64_t* value, bool needed = true) {
    return Read(key, needed, "an integer", value);
  }
  bool Read(const char* key, double* value, bool needed = true) {
    return Read(key, needed, "a number", value);
  }
  bool Read(const char* key, bool* value, bool needed = true) {
    return Read(key, needed, "true or false", value);
  }

 private:
  const YAML::Node root_;
  std::vector<std::string>* const faults_;
};

void ReadItemCount(MappingReader* reader, const ConfigOverrides& overrides, ModelConfig* config,
                   std::vector<std::string>* faults) {
  const bool stated = reader->Read("n_items", &config->n_items, overrides.n_items == 0);
  if (overrides.n_items == 0) return;
  if (stated && config->n_items != overrides.n_items) {
    faults->push_back(absl::StrCat("n_items is ", config->n_items, ", but the item embedding has ",
                                   overrides.n_items, " rows"));
  }
  config->n_items = overrides.n_items;
}

void ReadActivation(MappingReader* reader, const ConfigOverrides& overrides, ModelConfig* config,
                    std::vector<std::string>* faults) {
  std::string name;
  config->conv_activation = Activation::kHardswish;
  if (reader->Read("conv_activation", /*needed=*/false, "hardswish or silu", &name)) {
    if (name == "silu") {
      config->conv_activation = Activation::kSilu;
    } else if (name != "hardswish") {
      faults->push_back(
          absl::StrCat("conv_activation is \"", name, "\", must be hardswish or silu"));
    }
  } else if (!overrides.conv_activation.has_value() && config->head_dim > 0 &&
             config->num_heads() % 8 == 0 && config->num_heads() > 0) {
    faults->push_back(
        absl::StrCat("conv_activation is missing: with ", config->num_heads(),
                     " heads it was silu if the package causal_conv1d was installed in training, "
                     "else hardswish; add the key, or give --conv-activation"));
  }
  if (overrides.conv_activation.has_value()) config->conv_activation = *overrides.conv_activation;
}

absl::Status ReadConfig(const YAML::Node& root, const ConfigOverrides& overrides,
                        ModelConfig* config) {
  if (!root.IsMap()) return absl::InvalidArgumentError("expected a mapping of keys to values");
  std::vector<std::string> faults;
  MappingReader reader(root, &faults);
  config->variant = Variant::kPublished;
  config->time_write = config->time_decay = config->time_query = false;
  reader.Read("hidden_size", &config->hidden_size);
  reader.Read("num_layers", &config->num_layers);
  reader.Read("d_state", &config->d_state);
  reader.Read("d_conv", &config->d_conv);
  reader.Read("expand", &config->expand);
  reader.Read("head_dim", &config->head_dim);
  reader.Read("is_ffn", &config->is_ffn);
  reader.Read("is_time", &config->is_time);
  reader.Read("p2p_residual", &config->p2p_residual, config->is_time);
  reader.Read("norm_eps", &config->norm_eps);
  reader.Read("MAX_ITEM_LIST_LENGTH", &config->max_item_list_length);
  reader.Read("dropout_prob", &config->dropout_prob, /*needed=*/false);
  ReadItemCount(&reader, overrides, config, &faults);
  ReadActivation(&reader, overrides, config, &faults);
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
  return config->Validate();
}

}  // namespace

absl::StatusOr<ModelConfig> ParsePublishedConfig(const std::string& yaml,
                                                 const ConfigOverrides& overrides) {
  if (yaml.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", yaml.size(), " bytes, at most ", kMaxConfigBytes, " are read"));
  }
  try {
    ModelConfig config;
    if (absl::Status status = ReadConfig(YAML::Load(yaml), overrides, &config); !status.ok()) {
      return status;
    }
    return config;
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not YAML: ", error.what()));
  }
}

}  // namespace tim4rec
