// The server's configuration: embedded defaults < file < environment < flags.
#ifndef TIM4REC_SERVER_CONFIG_CONFIG_H_
#define TIM4REC_SERVER_CONFIG_CONFIG_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

// Meaning, unit and limits of every key: default.yaml, which a test keeps equal to the in-class
// defaults. A key's path is the member's: pipeline.max_batch.
struct ServerConfig {
  std::string listen = "127.0.0.1:50051";
  std::string metrics_listen = "127.0.0.1:9464";
  std::string admin_listen = "127.0.0.1:50052";

  struct Model {
    std::string dir;
    std::string backend = "auto";
    std::string window_encoding = "exact";
    int64_t keep_states_ms = 3600000;
  } model;

  struct Store {
    std::string dir;
    int64_t block_cache_bytes = 268435456;
    int64_t write_buffer_bytes = 67108864;
    int64_t max_events_per_user = 0;
    int64_t event_ttl_ms = 0;
    double user_share = 1;
  } store;

  struct Pipeline {
    int64_t workers = 0;
    int64_t queue_rows = 16384;
    int64_t queue_bytes = 67108864;
    int64_t queue_delay_ms = 250;
    int64_t max_batch = 256;
    int64_t max_resident_users = 100000;
    int64_t checkpoint_interval_ms = 30000;
    int64_t checkpoint_group = 2;
    std::string late_policy = "refold";
  } pipeline;

  struct Limits {
    int64_t max_clock_skew_ms = 300000;
    int64_t max_interactions = 10000;
    int64_t max_item_ids = 10000;
    int64_t max_message_bytes = 4194304;
    int64_t max_stream_batches = 8;
    int64_t max_stream_bytes = 268435456;
    std::string client_metadata;
    int64_t max_connection_calls = 1000;
  } limits;

  struct Tls {
    std::string certificate;
    std::string key;
    std::string client_ca;
  } tls;

  struct Auth {
    std::string tokens_file;
  } auth;

  struct Server {
    int64_t drain_timeout_ms = 30000;
    int64_t keepalive_ms = 60000;
    bool reflection = true;
  } server;

  struct Log {
    std::string level = "info";
  } log;

  // INVALID_ARGUMENT listing every fault, each with its key, value and limit.
  absl::Status Validate() const;

  // Every key with its value, in the order of default.yaml.
  std::vector<std::pair<std::string, std::string>> Entries() const;
  std::string ToYaml() const;
};

// Text of the embedded default.yaml.
std::string_view DefaultConfigYaml();

// Whether a running server can take a new value of the key.
bool ChangesAtRunTime(std::string_view key);

// Whether HOST:PORT is of this machine alone: localhost, 127.0.0.0/8, [::1].
bool IsLoopback(const std::string& address);

// Sets keys by path ("pipeline.max_batch" → "64"). INVALID_ARGUMENT listing every unknown key and
// every value that does not parse, prefixed with `source`; the other keys are set.
absl::Status SetKeys(const std::map<std::string, std::string>& values, std::string_view source,
                     ServerConfig* config);

// Applies YAML text, nested maps with scalar leaves. Errors as SetKeys, or FAILED_PRECONDITION,
// with line and column, for what is no YAML.
absl::Status ApplyYaml(std::string_view yaml, std::string_view source, ServerConfig* config);

// TIM4REC_PIPELINE_MAX_BATCH sets pipeline.max_batch. Other variables that begin with TIM4REC_ are
// no error, since Kubernetes injects such for every service of that name; they are returned.
absl::StatusOr<std::vector<std::string>> ApplyEnvironment(const char* const* environment,
                                                          ServerConfig* config);

// Where the values of a process come from.
struct ConfigLayers {
  std::string file;  // YAML; empty: none
  const char* const* environment = nullptr;
  std::map<std::string, std::string> flags;  // by key
};

// The defaults and all layers over them; `ignored` as ApplyEnvironment returns. INVALID_ARGUMENT
// listing every fault of every layer, with all else applied, or the error of a file that cannot be
// read or is no YAML.
absl::Status ApplyLayers(const ConfigLayers& layers, ServerConfig* config,
                         std::vector<std::string>* ignored);

// Likewise, and what Validate finds is among the faults.
absl::StatusOr<ServerConfig> LoadConfig(const ConfigLayers& layers,
                                        std::vector<std::string>* ignored);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_CONFIG_CONFIG_H_
