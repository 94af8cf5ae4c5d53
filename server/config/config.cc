#include "server/config/config.h"

#include <arpa/inet.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <fstream>
#include <iterator>
#include <set>
#include <type_traits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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
  visit("model.window_encoding", c.model.window_encoding);
  visit("model.keep_states_ms", c.model.keep_states_ms);
  visit("store.dir", c.store.dir);
  visit("store.block_cache_bytes", c.store.block_cache_bytes);
  visit("store.write_buffer_bytes", c.store.write_buffer_bytes);
  visit("store.max_events_per_user", c.store.max_events_per_user);
  visit("store.event_ttl_ms", c.store.event_ttl_ms);
  visit("store.user_share", c.store.user_share);
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
  visit("limits.max_stream_bytes", c.limits.max_stream_bytes);
  visit("limits.client_metadata", c.limits.client_metadata);
  visit("limits.max_connection_calls", c.limits.max_connection_calls);
  visit("tls.certificate", c.tls.certificate);
  visit("tls.key", c.tls.key);
  visit("tls.client_ca", c.tls.client_ca);
  visit("auth.tokens_file", c.auth.tokens_file);
  visit("server.drain_timeout_ms", c.server.drain_timeout_ms);
  visit("server.keepalive_ms", c.server.keepalive_ms);
  visit("server.reflection", c.server.reflection);
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

bool Parse(const std::string& text, int64_t* value) { return absl::SimpleAtoi(text, value); }
bool Parse(const std::string& text, double* value) { return absl::SimpleAtod(text, value); }
bool Parse(const std::string& text, bool* value) {
  *value = text == "true";
  return *value || text == "false";
}
bool Parse(const std::string& text, std::string* value) {
  *value = text;
  return true;
}

const char* KindOf(int64_t) { return "a whole number"; }
const char* KindOf(double) { return "a number"; }
const char* KindOf(bool) { return "true or false"; }
const char* KindOf(const std::string&) { return "text"; }

std::string TextOf(int64_t value) { return absl::StrCat(value); }
std::string TextOf(double value) { return absl::StrFormat("%.17g", value); }
std::string TextOf(bool value) { return value ? "true" : "false"; }
std::string TextOf(const std::string& value) { return value; }

void CheckWindowEncoding(const ServerConfig& c, std::vector<std::string>* faults) {
  const std::string& encoding = c.model.window_encoding;
  if (encoding != "exact" && encoding != "bulk") {
    faults->push_back(
        absl::StrCat("model.window_encoding: \"", encoding, "\" is none of exact, bulk"));
  }
  if (encoding == "bulk" && (c.model.backend == "cpu" || c.model.backend == "torch")) {
    faults->push_back(
        absl::StrCat("model.window_encoding: bulk is for the matrix units of the cuda "
                     "backend, and model.backend is ",
                     c.model.backend, "; set that to cuda or auto, or this to exact"));
  }
}

void CheckSecurity(const ServerConfig& c, std::vector<std::string>* faults) {
  const bool tls = !c.tls.certificate.empty() && !c.tls.key.empty();
  if (c.tls.certificate.empty() != c.tls.key.empty()) {
    faults->push_back(c.tls.key.empty()
                          ? "tls.key: is empty; it comes together with tls.certificate"
                          : "tls.certificate: is empty; it comes together with tls.key");
  } else if (!c.tls.client_ca.empty() && !tls) {
    faults->push_back("tls.client_ca: needs tls.certificate and tls.key");
  }
  if (!c.auth.tokens_file.empty() && !tls && IsAddress(c.listen) && !IsLoopback(c.listen)) {
    faults->push_back(absl::StrCat(
        "auth.tokens_file: tokens would come to listen \"", c.listen,
        "\" in clear text; set tls.certificate and tls.key, or listen on this machine alone"));
  }
  if (IsAddress(c.admin_listen) && !IsLoopback(c.admin_listen) &&
      !(tls && !c.auth.tokens_file.empty())) {
    faults->push_back(absl::StrCat(
        "admin_listen: \"", c.admin_listen,
        "\" is not of this machine alone (127.0.0.1, localhost, [::1]): set tls.certificate, "
        "tls.key and auth.tokens_file, since else whoever reaches it may do all it offers"));
  }
}

absl::Status ApplyFile(const std::string& path, ServerConfig* config) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError("--config: cannot read " + path);
  return ApplyYaml(text, path, config);
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
  CheckSecurity(*this, &faults);
  CheckWindowEncoding(*this, &faults);
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
  if (!(store.user_share > 0 && store.user_share <= 1)) {
    faults.push_back(
        absl::StrCat("store.user_share: ", store.user_share, " is not above 0 and at most 1"));
  }
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
  range("limits.max_stream_bytes", limits.max_stream_bytes, 1024, kTebi);
  range("limits.max_connection_calls", limits.max_connection_calls, 1, 1 << 24);
  range("server.drain_timeout_ms", server.drain_timeout_ms, 0, kYearMs);
  range("server.keepalive_ms", server.keepalive_ms, 100, 86'400'000);
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
  VisitKeys(*this,
            [&](const char* key, const auto& value) { entries.emplace_back(key, TextOf(value)); });
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

bool ChangesAtRunTime(std::string_view key) {
  static const auto& keys =
      *new std::set<std::string_view>{"limits.max_clock_skew_ms", "limits.max_interactions",
                                      "limits.max_item_ids",      "limits.max_stream_batches",
                                      "limits.max_stream_bytes",  "limits.client_metadata",
                                      "server.drain_timeout_ms",  "log.level"};
  return keys.contains(key);
}

bool IsLoopback(const std::string& address) {
  const std::string host = address.substr(0, address.rfind(':'));
  in_addr ip;
  return host == "localhost" || host == "[::1]" ||
         (inet_pton(AF_INET, host.c_str(), &ip) == 1 && ntohl(ip.s_addr) >> 24 == 127);
}

absl::Status SetKeys(const std::map<std::string, std::string>& values, std::string_view source,
                     ServerConfig* config) {
  std::vector<std::string> faults;
  std::map<std::string, std::string> unknown = values;
  VisitKeys(*config, [&](const char* key, auto& member) {
    const auto found = values.find(key);
    if (found == values.end()) return;
    unknown.erase(key);
    std::decay_t<decltype(member)> value{};
    if (Parse(found->second, &value)) {
      member = std::move(value);
    } else {
      faults.push_back(absl::StrCat(key, ": \"", found->second, "\" is not ", KindOf(member)));
    }
  });
  for (const auto& [key, value] : unknown) {
    faults.push_back(absl::StrCat(key, ": unknown key (--print-config lists all)"));
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(source), ": ", absl::StrJoin(faults, "; ")));
}

absl::Status ApplyYaml(std::string_view yaml, std::string_view source, ServerConfig* config) {
  std::map<std::string, std::string> values;
  std::vector<std::string> faults;
  try {
    Flatten(YAML::Load(std::string(yaml)), "", &values, &faults);
  } catch (const std::exception& e) {
    return absl::FailedPreconditionError(absl::StrCat(std::string(source), ": ", e.what()));
  }
  const absl::Status set = SetKeys(values, source, config);
  if (faults.empty()) return set;
  return absl::InvalidArgumentError(
      absl::StrCat(set.ok() ? std::string(source) + ": " : std::string(set.message()) + "; ",
                   absl::StrJoin(faults, "; ")));
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

absl::Status ApplyLayers(const ConfigLayers& layers, ServerConfig* config,
                         std::vector<std::string>* ignored) {
  std::vector<std::string> faults;
  const auto collect = [&](const absl::Status& status) {
    if (!status.ok()) faults.emplace_back(status.message());
  };
  collect(ApplyYaml(DefaultConfigYaml(), "default.yaml", config));
  if (!layers.file.empty()) {
    const absl::Status applied = ApplyFile(layers.file, config);
    if (!applied.ok() && !absl::IsInvalidArgument(applied)) return applied;
    collect(applied);
  }
  auto others = ApplyEnvironment(layers.environment, config);
  collect(others.status());
  if (others.ok()) *ignored = *std::move(others);
  collect(SetKeys(layers.flags, "flags", config));
  return Faults(faults);
}

absl::StatusOr<ServerConfig> LoadConfig(const ConfigLayers& layers,
                                        std::vector<std::string>* ignored) {
  ServerConfig config;
  const absl::Status applied = ApplyLayers(layers, &config, ignored);
  if (!applied.ok() && !absl::IsInvalidArgument(applied)) return applied;
  const absl::Status valid = config.Validate();
  std::vector<std::string> faults;
  for (const absl::Status& status : {applied, valid}) {
    if (!status.ok()) faults.emplace_back(status.message());
  }
  if (!faults.empty()) return Faults(faults);
  return config;
}

}  // namespace tim4rec
