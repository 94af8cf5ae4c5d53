#include "server/config/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <type_traits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/config/default_yaml.h"

namespace tim4rec {
namespace {

// Read by the cpu backend, where it also works for programs that have no configuration.
constexpr char kForceIsa[] = "TIM4REC_FORCE_ISA";

// The one list of keys. `Config` is ServerConfig or const ServerConfig.
template <typename Config, typename Visitor>
void VisitKeys(Config& c, Visitor&& visit) {
  visit("listen", c.listen);
  visit("metrics_listen", c.metrics_listen);
  visit("admin_listen", c.admin_listen);
  visit("model.dir", c.model.dir);
  visit("model.backend", c.model.backend);
  visit("model.keep_states_ms", c.model.keep_states_ms);
  visit("store.dir", c.store.dir);
  visit("store.block_cache_bytes", c.store.block_cache_bytes);
  visit("store.write_buffer_bytes", c.store.write_buffer_bytes);
  visit("store.max_events_per_user", c.store.max_events_per_user);
  visit("store.event_ttl_ms", c.store.event_ttl_ms);
  visit("pipeline.workers", c.pipeline.workers);
  visit("pipeline.queue_rows", c.pipeline.queue_rows);
  visit("pipeline.queue_bytes", c.pipeline.queue_bytes);
  visit("pipeline.queue_delay_ms", c.pipeline.queue_delay_ms);
  visit("pipeline.max_batch", c.pipeline.max_batch);
  visit("pipeline.max_resident_users", c.pipeline.max_resident_users);
  visit("pipeline.checkpoint_interval_ms", c.pipeline.checkpoint_interval_ms);
  visit("pipeline.checkpoint_group", c.pipeline.checkpoint_group);
  visit("pipeline.late_policy", c.pipeline.late_policy);
  visit("limits.max_clock_skew_ms", c.limits.max_clock_skew_ms);
  visit("limits.max_interactions", c.limits.max_interactions);
  visit("limits.max_item_ids", c.limits.max_item_ids);
  visit("limits.max_message_bytes", c.limits.max_message_bytes);
  visit("limits.max_stream_batches", c.limits.max_stream_batches);
  visit("limits.client_metadata", c.limits.client_metadata);
  visit("limits.max_connection_calls", c.limits.max_connection_calls);
  visit("server.drain_timeout_ms", c.server.drain_timeout_ms);
  visit("log.level", c.log.level);
}

absl::Status Faults(const std::vector<std::string>& faults) {
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

void Flatten(const YAML::Node& node, const std::string& path,
             std::map<std::string, std::string>* values, std::vector<std::string>* faults) {
  if (node.IsMap()) {
    for (const auto& entry : node) {
      const std::string key = entry.first.as<std::string>();
      Flatten(entry.second, path.empty() ? key : path + "." + key, values, faults);
    }
  } else if (node.IsScalar() && !path.empty()) {
    (*values)[path] = node.as<std::string>();
  } else if (!node.IsNull() || !path.empty()) {
    faults->push_back(absl::StrCat(path.empty() ? "the document" : path, ": expected a ",
                                   path.empty() ? "map" : "value"));
  }
}

std::string EnvironmentName(std::string_view path) {
  std::string name = "TIM4REC_";
  for (char c : path) {
    name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

bool IsAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  int port = 0;
  return colon != std::string::npos && colon > 0 &&
         absl::SimpleAtoi(text.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

bool IsLoopback(const std::string& address) {
  const std::string host = address.substr(0, address.rfind(':'));
  return host == "localhost" || host == "[::1]" || host.rfind("127.", 0) == 0;
}

}  // namespace

absl::Status ServerConfig::Validate() const {
  std::vector<std::string> faults;
  const auto range = [&](const char* key, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      faults.push_back(absl::StrCat(key, ": ", value, " is outside ", low, "…", high));
    }
  };
  const auto address = [&](const char* key, const std::string& value) {
    if (!IsAddress(value))
      faults.push_back(absl::StrCat(key, ": \"", value, "\" is not HOST:PORT"));
  };
  constexpr int64_t kTebi = int64_t{1} << 40;
  constexpr int64_t kYearMs = 365LL * 86'400'000;
  address("listen", listen);
  address("metrics_listen", metrics_listen);
  address("admin_listen", admin_listen);
  if (IsAddress(admin_listen) && !IsLoopback(admin_listen)) {
    faults.push_back(absl::StrCat(
        "admin_listen: \"", admin_listen,
        "\" is not of this machine alone (127.0.0.1, localhost, [::1]), and whoever reaches the "
        "Admin service may do all it offers"));
  }
  if (model.dir.empty()) {
    faults.push_back("model.dir: is empty; name a model package (--model DIR)");
  }
  if (model.backend.empty()) faults.push_back("model.backend: is empty; auto picks one");
  if (store.dir.empty()) faults.push_back("store.dir: is empty; name a directory (--data DIR)");
  range("model.keep_states_ms", model.keep_states_ms, 0, kYearMs);
  range("store.block_cache_bytes", store.block_cache_bytes, 1 << 20, kTebi);
  range("store.write_buffer_bytes", store.write_buffer_bytes, 64 << 10, kTebi);
  range("store.max_events_per_user", store.max_events_per_user, 0, kTebi);
  range("store.event_ttl_ms", store.event_ttl_ms, 0, 100 * kYearMs);
  range("pipeline.workers", pipeline.workers, 0, 1024);
  range("pipeline.queue_rows", pipeline.queue_rows, 1, 1 << 24);
  range("pipeline.queue_bytes", pipeline.queue_bytes, 1024, kTebi);
  range("pipeline.queue_delay_ms", pipeline.queue_delay_ms, 1, kYearMs);
  range("pipeline.max_batch", pipeline.max_batch, 1, 65536);
  range("pipeline.max_resident_users", pipeline.max_resident_users,
        std::max<int64_t>(1, pipeline.workers), int64_t{1} << 31);
  range("pipeline.checkpoint_interval_ms", pipeline.checkpoint_interval_ms, 0, kYearMs);
  range("pipeline.checkpoint_group", pipeline.checkpoint_group, 1, 65536);
  range("limits.max_clock_skew_ms", limits.max_clock_skew_ms, 0, kYearMs);
  range("limits.max_interactions", limits.max_interactions, 1, 1 << 24);
  range("limits.max_item_ids", limits.max_item_ids, 1, 1 << 24);
  range("limits.max_message_bytes", limits.max_message_bytes, 1024, 1 << 30);
  range("limits.max_stream_batches", limits.max_stream_batches, 1, 65536);
  range("limits.max_connection_calls", limits.max_connection_calls, 1, 1 << 24);
  range("server.drain_timeout_ms", server.drain_timeout_ms, 0, kYearMs);
  if (pipeline.late_policy != "refold" && pipeline.late_policy != "append" &&
      pipeline.late_policy != "reject") {
    faults.push_back(absl::StrCat("pipeline.late_policy: \"", pipeline.late_policy,
                                  "\" is none of refold, append, reject"));
  }
  for (const char c : limits.client_metadata) {
    if (absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '_' || c == '.')
      continue;
    faults.push_back(absl::StrCat("limits.client_metadata: \"", limits.client_metadata,
                                  "\" is no metadata key (a to z, 0 to 9, - _ .)"));
    break;
  }
  if (log.level != "debug" && log.level != "info" && log.level != "warning" &&
      log.level != "error") {
    faults.push_back(
        absl::StrCat("log.level: \"", log.level, "\" is none of debug, info, warning, error"));
  }
  return Faults(faults);
}

std::vector<std::pair<std::string, std::string>> ServerConfig::Entries() const {
  std::vector<std::pair<std::string, std::string>> entries;
  VisitKeys(*this, [&](const char* key, const auto& value) {
    entries.emplace_back(key, absl::StrCat(value));
  });
  return entries;
}

std::string ServerConfig::ToYaml() const {
  YAML::Emitter out;
  std::string section;
  out << YAML::BeginMap;
  VisitKeys(*this, [&](const std::string& key, const auto& value) {
    const size_t dot = key.find('.');
    const std::string in = dot == std::string::npos ? "" : key.substr(0, dot);
    if (in != section) {
      if (!section.empty()) out << YAML::EndMap;
      section = in;
      out << YAML::Key << section << YAML::Value << YAML::BeginMap;
    }
    out << YAML::Key << (dot == std::string::npos ? key : key.substr(dot + 1)) << YAML::Value
        << value;
  });
  if (!section.empty()) out << YAML::EndMap;
  out << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

std::string_view DefaultConfigYaml() { return kDefaultYaml; }

absl::Status SetKeys(const std::map<std::string, std::string>& values, std::string_view source,
                     ServerConfig* config) {
  ServerConfig changed = *config;
  std::vector<std::string> faults;
  std::map<std::string, std::string> unknown = values;
  VisitKeys(changed, [&](const char* key, auto& member) {
    const auto found = values.find(key);
    if (found == values.end()) return;
    unknown.erase(key);
    if constexpr (std::is_same_v<std::decay_t<decltype(member)>, int64_t>) {
      if (!absl::SimpleAtoi(found->second, &member)) {
        faults.push_back(absl::StrCat(key, ": \"", found->second, "\" is not a whole number"));
      }
    } else {
      member = found->second;
    }
  });
  for (const auto& [key, value] : unknown) {
    faults.push_back(absl::StrCat(key, ": unknown key (--print-config lists all)"));
  }
  if (!faults.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(source), ": ", absl::StrJoin(faults, "; ")));
  }
  *config = std::move(changed);
  return absl::OkStatus();
}

absl::Status ApplyYaml(std::string_view yaml, std::string_view source, ServerConfig* config) {
  std::map<std::string, std::string> values;
  std::vector<std::string> faults;
  try {
    Flatten(YAML::Load(std::string(yaml)), "", &values, &faults);
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(source), ": ", e.what()));
  }
  if (!faults.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(source), ": ", absl::StrJoin(faults, "; ")));
  }
  return SetKeys(values, source, config);
}

absl::StatusOr<std::vector<std::string>> ApplyEnvironment(const char* const* environment,
                                                          ServerConfig* config) {
  std::map<std::string, std::string> paths;
  for (const auto& [path, value] : config->Entries()) paths[EnvironmentName(path)] = path;
  std::map<std::string, std::string> values;
  std::vector<std::string> others;
  for (; *environment != nullptr; ++environment) {
    const std::string entry = *environment;
    const size_t equals = entry.find('=');
    if (entry.rfind("TIM4REC_", 0) != 0 || equals == std::string::npos) continue;
    const std::string name = entry.substr(0, equals);
    const auto found = paths.find(name);
    if (name == kForceIsa) continue;
    if (found == paths.end()) {
      others.push_back(name);
    } else {
      values[found->second] = entry.substr(equals + 1);
    }
  }
  if (absl::Status set = SetKeys(values, "environment", config); !set.ok()) return set;
  return others;
}

}  // namespace tim4rec
