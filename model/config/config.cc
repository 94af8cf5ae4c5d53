#include "model/config/config.h"

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tim4rec {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxItems = 1'000'000'000;

void CheckRange(std::vector<std::string>* faults, const char* field, int64_t value, int64_t low,
                int64_t high) {
  if (value < low || value > high) {
    faults->push_back(absl::StrCat(field, " is ", value, ", allowed ", low, " to ", high));
  }
}

// Also false for NaN, which compares with nothing.
void CheckRange(std::vector<std::string>* faults, const char* field, double value, double low,
                double high) {
  if (!(value >= low && value <= high)) {
    faults->push_back(absl::StrCat(field, " is ", value, ", allowed ", low, " to ", high));
  }
}

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Reads members of one JSON object by name; whatever is left unread is an unknown key.
class ObjectReader {
 public:
  ObjectReader(const Json& object, std::string prefix, std::vector<std::string>* faults)
      : object_(object), prefix_(std::move(prefix)), faults_(faults) {
    if (!object.is_object()) {
      Fault(prefix_.empty() ? "the configuration" : prefix_, "must be a JSON object");
    }
  }

  void Read(const char* key, int64_t* value) {
    const Json* member = Take(key);
    if (member == nullptr) return;
    const bool fits = member->is_number_integer() &&
                      (!member->is_number_unsigned() ||
                       member->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    if (!fits) return Fault(prefix_ + key, "must be an integer");
    *value = member->get<int64_t>();
  }

  void Read(const char* key, double* value) {
    const Json* member = Take(key);
    if (member == nullptr) return;
    if (!member->is_number()) return Fault(prefix_ + key, "must be a number");
    *value = member->get<double>();
  }

  void Read(const char* key, bool* value) {
    const Json* member = Take(key);
    if (member == nullptr) return;
    if (!member->is_boolean()) return Fault(prefix_ + key, "must be true or false");
    *value = member->get<bool>();
  }

  template <typename Enum>
  void Read(const char* key, Enum* value, const std::map<std::string, Enum>& names) {
    const Json* member = Take(key);
    if (member == nullptr) return;
    if (member->is_string()) {
      if (auto it = names.find(member->get<std::string>()); it != names.end()) {
        *value = it->second;
        return;
      }
    }
    Fault(prefix_ + key, absl::StrCat("must be one of ",
                                      absl::StrJoin(names, ", ", [](auto* out, const auto& entry) {
                                        absl::StrAppend(out, "\"", entry.first, "\"");
                                      })));
  }

  const Json* Take(const char* key) {
    if (!object_.is_object()) return nullptr;
    taken_.push_back(key);
    auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }

  void RefuseRest() {
    if (!object_.is_object()) return;
    for (auto it = object_.begin(); it != object_.end(); ++it) {
      if (std::find(taken_.begin(), taken_.end(), it.key()) == taken_.end()) {
        Fault(prefix_ + it.key(), "is not a known key");
      }
    }
  }

 private:
  void Fault(const std::string& field, const std::string& what) {
    faults_->push_back(absl::StrCat(field, " ", what));
  }

  const Json& object_;
  const std::string prefix_;
  std::vector<std::string>* faults_;
  std::vector<std::string> taken_;
};

const std::map<std::string, Variant>& VariantNames() {
  static const auto* names = new std::map<std::string, Variant>{{"streaming", Variant::kStreaming},
                                                                {"published", Variant::kPublished}};
  return *names;
}

const std::map<std::string, Activation>& ActivationNames() {
  static const auto* names = new std::map<std::string, Activation>{
      {"silu", Activation::kSilu}, {"hardswish", Activation::kHardswish}};
  return *names;
}

template <typename Enum>
std::string NameOf(Enum value, const std::map<std::string, Enum>& names) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  return "invalid";
}

// What both variants' states depend on.
Json SharedFields(const ModelConfig& c) {
  return Json{{"variant", NameOf(c.variant, VariantNames())},
              {"n_items", c.n_items},
              {"hidden_size", c.hidden_size},
              {"num_layers", c.num_layers},
              {"d_state", c.d_state},
              {"d_conv", c.d_conv},
              {"expand", c.expand},
              {"head_dim", c.head_dim},
              {"is_ffn", c.is_ffn},
              {"conv_activation", NameOf(c.conv_activation, ActivationNames())},
              {"norm_eps", c.norm_eps}};
}

void AddStreamingFields(const ModelConfig& c, Json* json) {
  (*json)["time_write"] = c.time_write;
  (*json)["time_decay"] = c.time_decay;
  (*json)["time_query"] = c.time_query;
  (*json)["time_hidden"] = c.time_hidden;
  (*json)["time"] = Json{{"tau0_ms", c.time.tau0_ms},
                         {"mean", c.time.mean},
                         {"stddev", c.time.stddev},
                         {"max_gap_ms", c.time.max_gap_ms}};
}

void AddPublishedFields(const ModelConfig& c, Json* json) {
  (*json)["is_time"] = c.is_time;
  (*json)["p2p_residual"] = c.p2p_residual;
  (*json)["max_item_list_length"] = c.max_item_list_length;
}

}  // namespace

absl::Status ModelConfig::Validate() const {
  std::vector<std::string> faults;
  CheckRange(&faults, "n_items", n_items, 2, kMaxItems);
  CheckRange(&faults, "hidden_size", hidden_size, 1, 4096);
  CheckRange(&faults, "num_layers", num_layers, 1, 64);
  CheckRange(&faults, "d_state", d_state, 1, 1024);
  CheckRange(&faults, "d_conv", d_conv, 2, 16);
  CheckRange(&faults, "expand", expand, 1, 16);
  CheckRange(&faults, "head_dim", head_dim, 1, 4096);
  if (hidden_size > 0 && hidden_size <= 4096 && expand > 0 && expand <= 16 && head_dim > 0 &&
      inner_size() % head_dim != 0) {
    faults.push_back(absl::StrCat("head_dim is ", head_dim,
                                  ", must divide expand * hidden_size = ", inner_size()));
  }
  CheckRange(&faults, "norm_eps", norm_eps, 1e-15, 1.0);
  CheckRange(&faults, "dropout_prob", dropout_prob, 0.0, 0.99);
  CheckRange(&faults, "time_hidden", time_hidden, 1, 1024);
  CheckRange(&faults, "time.tau0_ms", time.tau0_ms, 1e-3, 1e15);
  CheckRange(&faults, "time.mean", time.mean, -1e6, 1e6);
  CheckRange(&faults, "time.stddev", time.stddev, 1e-6, 1e6);
  CheckRange(&faults, "time.max_gap_ms", time.max_gap_ms, 1, 1'000'000'000'000'000);
  CheckRange(&faults, "max_item_list_length", max_item_list_length, 1, 65536);
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model configuration: ", absl::StrJoin(faults, "; ")));
}

std::string ModelConfig::ToJson() const {
  Json json = SharedFields(*this);
  json["dropout_prob"] = dropout_prob;
  AddStreamingFields(*this, &json);
  AddPublishedFields(*this, &json);
  return json.dump(2) + "\n";
}

std::string ModelConfig::FingerprintText() const {
  Json json = SharedFields(*this);
  if (variant == Variant::kStreaming) {
    AddStreamingFields(*this, &json);
  } else {
    AddPublishedFields(*this, &json);
  }
  return json.dump();
}

absl::StatusOr<ModelConfig> ModelConfig::FromJson(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::InvalidArgumentError("model configuration: not valid JSON");
  }
  ModelConfig c;
  std::vector<std::string> faults;
  ObjectReader reader(json, "", &faults);
  reader.Read("variant", &c.variant, VariantNames());
  reader.Read("n_items", &c.n_items);
  reader.Read("hidden_size", &c.hidden_size);
  reader.Read("num_layers", &c.num_layers);
  reader.Read("d_state", &c.d_state);
  reader.Read("d_conv", &c.d_conv);
  reader.Read("expand", &c.expand);
  reader.Read("head_dim", &c.head_dim);
  reader.Read("is_ffn", &c.is_ffn);
  reader.Read("conv_activation", &c.conv_activation, ActivationNames());
  reader.Read("norm_eps", &c.norm_eps);
  reader.Read("dropout_prob", &c.dropout_prob);
  reader.Read("time_write", &c.time_write);
  reader.Read("time_decay", &c.time_decay);
  reader.Read("time_query", &c.time_query);
  reader.Read("time_hidden", &c.time_hidden);
  if (const Json* time = reader.Take("time"); time != nullptr) {
    ObjectReader time_reader(*time, "time.", &faults);
    time_reader.Read("tau0_ms", &c.time.tau0_ms);
    time_reader.Read("mean", &c.time.mean);
    time_reader.Read("stddev", &c.time.stddev);
    time_reader.Read("max_gap_ms", &c.time.max_gap_ms);
    time_reader.RefuseRest();
  }
  reader.Read("is_time", &c.is_time);
  reader.Read("p2p_residual", &c.p2p_residual);
  reader.Read("max_item_list_length", &c.max_item_list_length);
  reader.RefuseRest();
  if (!faults.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model configuration: ", absl::StrJoin(faults, "; ")));
  }
  if (absl::Status status = c.Validate(); !status.ok()) return status;
  return c;
}

StateLayout StateLayout::Of(const ModelConfig& config) {
  if (!config.has_window()) return Recurrent(config);
  StateLayout layout;
  layout.window_items_offset = 2 * config.max_item_list_length;
  layout.floats = RoundUp(3 * config.max_item_list_length, 4);
  layout.bytes = kHeaderBytes + 4 * layout.floats;
  return layout;
}

StateLayout StateLayout::Recurrent(const ModelConfig& config) {
  const int64_t tail = config.d_conv - 1;
  const bool time_tails = config.variant == Variant::kStreaming && config.time_write;
  StateLayout layout;
  layout.conv_offset = config.num_heads() * config.d_state * config.head_dim;
  layout.time_conv1_offset = layout.conv_offset + tail * config.conv_size();
  layout.time_conv2_offset =
      layout.time_conv1_offset + (time_tails ? tail * config.num_heads() : 0);
  layout.layer_floats =
      RoundUp(layout.time_conv2_offset + (time_tails ? tail * config.num_heads() : 0), 4);
  layout.output_offset = config.num_layers * layout.layer_floats;
  layout.floats = RoundUp(layout.output_offset + config.hidden_size, 4);
  layout.bytes = kHeaderBytes + 4 * layout.floats;
  return layout;
}

}  // namespace tim4rec
