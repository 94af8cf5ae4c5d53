#include "server/app/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "model/backends/builtin.h"
#include "server/app/device_watch.h"
#include "server/app/run_marker.h"
#include "server/app/store_watch.h"
#include "server/pipeline/model_swap.h"
#include "server/pipeline/model_use.h"
#include "server/pipeline/models.h"
#include "server/pipeline/pipeline.h"
#include "server/security/secrets.h"
#include "server/service/admin_service.h"
#include "server/service/live_limits.h"
#include "server/service/recommender_service.h"
#include "server/telemetry/http_endpoint.h"
#include "server/telemetry/log.h"
#include "server/telemetry/metrics.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

// How long clients have to see that their connections end.
constexpr std::chrono::milliseconds kGoodbye(200);

// Until when a connection has to speak HTTP/2: else a descriptor each is held for two minutes.
constexpr int kHandshakeMs = 10'000;

// In gRPC's health service: NOT_SERVING once the device is lost, though the server serves.
constexpr char kDeviceHealth[] = "tim4rec.device";

absl::Status Named(const char* part, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(part, ": ", status.message()));
}

// Debian's gRPC has a reflection plugin in every server that is linked with it.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins, [](const auto& plugin) {
      return dynamic_cast<grpc::reflection::ProtoServerReflectionPlugin*>(plugin.get()) != nullptr;
    });
  }
};

// A gRPC server for one service; `bound` becomes HOST:PORT. UNAVAILABLE naming `key` if the address
// cannot be bound.
absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(
    const char* key, const std::string& address,
    const std::shared_ptr<grpc::ServerCredentials>& credentials, grpc::Service* service,
    const ServerConfig& config, std::string* bound) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address, credentials, &port);
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.limits.max_message_bytes));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(config.limits.max_connection_calls));
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
  // A silent connection is asked whether its peer is still there, also one without calls, and as
  // often as it is silent: by default gRPC asks twice, and nobody who has no call.
  const auto keepalive_ms = static_cast<int>(config.server.keepalive_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, std::max(1, keepalive_ms / 3));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (!config.server.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  // Two servers on one port would share its connections at random.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat(key, ": cannot bind ", address, ": give HOST:PORT of a free port, or port 0"));
  }
  *bound = absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
  return server;
}

RequestLimits LimitsOf(const ServerConfig& config) {
  return {config.limits.max_clock_skew_ms, config.limits.max_interactions,
          config.limits.max_item_ids,      config.limits.max_stream_batches,
          config.limits.max_stream_bytes,  config.limits.client_metadata};
}

RetentionPolicy RetentionOf(const ServerConfig& config) {
  return {config.store.max_events_per_user, absl::Milliseconds(config.store.event_ttl_ms)};
}

// An event is removed at most about this long after its time to live has ended, and a user has at
// most eight cuts in that time.
absl::Duration SweepInterval(absl::Duration event_ttl) {
  if (event_ttl == absl::ZeroDuration()) return absl::Hours(24);
  return std::clamp(event_ttl / 8, absl::Seconds(1), absl::Hours(24));
}

const BackendRegistry& BackendsOf(const ServerConfig& config) {
  return BuiltinBackends(config.model.window_encoding == "bulk" ? WindowEncoding::kBulk
                                                                : WindowEncoding::kExact);
}

int WorkerCount(const ServerConfig& config) {
  if (config.pipeline.workers > 0) return static_cast<int>(config.pipeline.workers);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

struct Server::Rep {
  // In order of construction; each part uses only those above it.
  mutable std::mutex config_mutex;
  ServerConfig config;  // keys that change at run time: guarded by config_mutex
  Metrics metrics;
  std::unique_ptr<Secrets> secrets;
  std::unique_ptr<LiveLimits> limits;
  std::atomic<bool> ready = false;
  std::unique_ptr<Models> models;
  std::unique_ptr<DeviceWatch> device_watch;
  std::atomic<bool> device_lost = false;
  std::unique_ptr<RocksDbStore> store;
  std::optional<RunMarker> run;
  bool served = false;
  std::unique_ptr<Pipeline> pipeline;
  ServiceDeps service_deps;
  std::unique_ptr<RecommenderService> service;
  std::unique_ptr<grpc::Server> grpc;
  std::string address;
  std::unique_ptr<HttpEndpoint> http;
  std::function<void()> request_drain;
  std::atomic<int64_t> drain_timeout_ms = 0;
  std::unique_ptr<ModelSwap> swap;
  std::unique_ptr<AdminService> admin_service;
  std::unique_ptr<grpc::Server> admin;
  std::string admin_address;
  std::unique_ptr<StoreWatch> store_watch;
  bool drained = false;

  absl::Status OpenSecrets();
  absl::Status OpenConfiguredModel();
  absl::Status OpenStore();
  absl::Status Follow(LoadedModel* model);
  void UpdateMetrics();
  void StartPipeline();
  absl::Status StartGrpc();
  absl::Status StartAdmin();
  void Apply(const ServerConfig& next);
  void SetServing(bool serving);
  void OnStoreChange(const absl::Status& writable);
  void OnDeviceLost(const LoadedModel& model, const std::string& fault);
  void SetDeviceHealth();
};

absl::Status Server::Rep::OpenSecrets() {
  auto opened = Secrets::Open(
      {config.tls.certificate, config.tls.key, config.tls.client_ca, config.auth.tokens_file},
      &metrics);
  if (!opened.ok()) return opened.status();
  secrets = *std::move(opened);
  if (config.tls.certificate.empty() && !IsLoopback(config.listen)) {
    Log(LogLevel::kWarning,
        "listens in clear text: who can see the network can read and change requests and answers; "
        "set tls.certificate and tls.key, or see that only those you trust reach it",
        {{"listen", config.listen}});
  }
  return absl::OkStatus();
}

absl::Status Server::Rep::OpenConfiguredModel() {
  auto opened = OpenModel(config.model.dir, "", BackendsOf(config), config.model.backend);
  if (!opened.ok()) return Named("model", opened.status());
  const LoadedModel& model = **opened;
  if (RetentionOf(config).on()) {
    if (absl::Status exact = CheckExact(model); !exact.ok()) return exact;
  }
  const Backend& backend = model.engine->backend();
  metrics.SetModel(model.name(), model.fingerprint(), model.variant(), std::string(backend.name()));
  Log(LogLevel::kInfo, "model ready",
      {{"model", model.name()},
       {"fingerprint", model.fingerprint()},
       {"variant", model.variant()},
       {"backend", backend.name()},
       {"items", model.engine->catalog().size() - 1},
       {"state_bytes", backend.state_bytes()},
       {"window_encoding", backend.window_encoding() == WindowEncoding::kBulk ? "bulk" : "exact"}});
  if (!model.engine->passed_over().empty()) {
    Log(LogLevel::kInfo, "preferred backends do not serve",
        {{"reason", model.engine->passed_over()}});
  }
  models = std::make_unique<Models>(*std::move(opened));
  device_watch = std::make_unique<DeviceWatch>(
      models.get(), &metrics,
      [this](const LoadedModel& of, const std::string& fault) { OnDeviceLost(of, fault); });
  return absl::OkStatus();
}

absl::Status Server::Rep::OpenStore() {
  RocksDbStoreOptions options;
  options.block_cache_bytes = config.store.block_cache_bytes;
  options.write_buffer_bytes = config.store.write_buffer_bytes;
  auto opened = RocksDbStore::Open(config.store.dir, options);
  if (!opened.ok()) return Named("store", opened.status());
  store = *std::move(opened);
  if (absl::Status writable = store->CheckWritable(); !writable.ok()) {
    return Named("store", writable);
  }
  auto begun = RunMarker::Begin(config.store.dir);
  if (!begun.ok()) return Named("store", begun.status());
  run = *std::move(begun);
  metrics.unclean_starts->Set(static_cast<double>(run->unclean_starts()));
  if (run->unclean_starts() > 0) {
    Log(LogLevel::kWarning, "the run before this one did not drain",
        {{"unclean_starts", run->unclean_starts()}});
  }
  metrics.resident_users_limit->Set(static_cast<double>(config.pipeline.max_resident_users));
  metrics.OnScrape([this] { UpdateMetrics(); });
  return Follow(models->serving().get());
}

absl::Status Server::Rep::Follow(LoadedModel* model) {
  absl::Status follows = FollowUse(*store, config.store.user_share, model);
  return follows.ok() ? follows : Named("store: trend of items", follows);
}

void Server::Rep::UpdateMetrics() {
  const auto set = [](prometheus::Gauge* gauge, auto value) {
    gauge->Set(static_cast<double>(value));
  };
  const StoreStats stats = store->stats();
  set(metrics.corrupt_states, stats.corrupt_states);
  set(metrics.corrupt_bases, stats.corrupt_bases);
  set(metrics.use_recounts, stats.recounts);
  const StoreSizes sizes = store->sizes();
  set(metrics.store_table_bytes, sizes.table_bytes);
  set(metrics.store_memtable_bytes, sizes.memtable_bytes);
  set(metrics.store_cache_bytes, sizes.cache_bytes);
  set(metrics.store_compaction_bytes, sizes.pending_compaction_bytes);
  set(metrics.store_writes_slowed, sizes.writes_slowed);
  set(metrics.loaded_models, models->List().size());
  device_watch->Look();
}

void Server::Rep::StartPipeline() {
  PipelineOptions options;
  options.workers = WorkerCount(config);
  options.queue_rows = config.pipeline.queue_rows;
  options.queue_bytes = config.pipeline.queue_bytes;
  options.queue_delay = absl::Milliseconds(config.pipeline.queue_delay_ms);
  options.max_batch = config.pipeline.max_batch;
  options.max_resident_users = config.pipeline.max_resident_users;
  options.checkpoint_interval = absl::Milliseconds(config.pipeline.checkpoint_interval_ms);
  options.checkpoint_group = config.pipeline.checkpoint_group;
  options.late_policy = config.pipeline.late_policy == "append"   ? LatePolicy::kAppend
                        : config.pipeline.late_policy == "reject" ? LatePolicy::kReject
                                                                  : LatePolicy::kRefold;
  options.retention = RetentionOf(config);
  options.sweep_interval = SweepInterval(options.retention.event_ttl);
  options.clock = absl::Now;
  pipeline = std::make_unique<Pipeline>(
      options,
      PipelineDeps{models.get(), store.get(), store.get(),
                   [this](std::string_view user) { return store->DeleteUser(user); },
                   [this](std::string_view user) { return store->PurgeDeleted(user); }, &metrics,
                   [this](std::span<const UserTruncation> users) { return store->Truncate(users); },
                   [this] { device_watch->Look(); }});
  limits = std::make_unique<LiveLimits>(LimitsOf(config));
  service_deps = {models.get(), pipeline.get(),     &metrics,
                  limits.get(), &secrets->access(), absl::Now};
  service = std::make_unique<RecommenderService>(service_deps);
}

absl::Status Server::Rep::StartGrpc() {
  auto started = Listen("listen", config.listen, secrets->CredentialsOfListener(), service.get(),
                        config, &address);
  if (!started.ok()) return started.status();
  grpc = *std::move(started);
  grpc->GetHealthCheckService()->SetServingStatus(v1::Recommender::service_full_name(), true);
  return absl::OkStatus();
}

absl::Status Server::Rep::StartAdmin() {
  swap = std::make_unique<ModelSwap>(
      ModelSwap::Options{config.model.backend, absl::Milliseconds(config.model.keep_states_ms),
                         RetentionOf(config).on()},
      ModelSwap::Deps{models.get(), pipeline.get(), store.get(), &metrics, &BackendsOf(config),
                      [this](LoadedModel* model) { return Follow(model); }});
  admin_service = std::make_unique<AdminService>(
      AdminDeps{service_deps, swap.get(),
                [this] {
                  std::lock_guard lock(config_mutex);
                  return config.ToYaml();
                },
                [this](const std::string& dir) { return store->CreateBackup(dir); },
                [this](absl::Duration timeout) {
                  drain_timeout_ms = absl::ToInt64Milliseconds(timeout);
                  request_drain();
                },
                [this] {
                  std::lock_guard lock(config_mutex);
                  return absl::Milliseconds(config.server.drain_timeout_ms);
                }});
  auto started = Listen("admin_listen", config.admin_listen, secrets->CredentialsOfListener(),
                        admin_service.get(), config, &admin_address);
  if (!started.ok()) return started.status();
  admin = *std::move(started);
  return absl::OkStatus();
}

// With config_mutex held for the configuration itself, since the Admin service reads it.
void Server::Rep::Apply(const ServerConfig& next) {
  std::map<std::string, std::string> changes;
  std::vector<std::string> applied;
  std::vector<std::string> kept;
  const auto now = config.Entries();
  const auto then = next.Entries();
  for (size_t i = 0; i < now.size(); ++i) {
    const auto& [key, value] = then[i];
    if (value == now[i].second) continue;
    if (ChangesAtRunTime(key)) {
      changes[key] = value;
      applied.push_back(absl::StrCat(key, "=", value));
    } else {
      kept.push_back(key);
    }
  }
  {
    std::lock_guard lock(config_mutex);
    (void)SetKeys(changes, "", &config);  // they were read from a valid one
  }
  SetLogLevel(*ParseLogLevel(config.log.level));
  if (LimitsOf(config) != limits->now()) limits->Set(LimitsOf(config));
  drain_timeout_ms = config.server.drain_timeout_ms;
  Log(LogLevel::kInfo, "configuration read again", {{"changed", absl::StrJoin(applied, " ")}});
  if (!kept.empty()) {
    Log(LogLevel::kWarning, "these keys have new values, which take a restart",
        {{"keys", absl::StrJoin(kept, ", ")}});
  }
}

void Server::Rep::SetServing(bool serving) {
  ready = serving;
  metrics.ready->Set(serving ? 1 : 0);
  if (grpc != nullptr) grpc->GetHealthCheckService()->SetServingStatus(serving);
  SetDeviceHealth();
}

void Server::Rep::SetDeviceHealth() {
  if (grpc == nullptr || !models->serving()->engine->backend().device_stats()) return;
  grpc->GetHealthCheckService()->SetServingStatus(kDeviceHealth, ready && !device_lost);
}

// The CPU goes on with the same states; whoever relies on the device's speed is told.
void Server::Rep::OnDeviceLost(const LoadedModel& model, const std::string& fault) {
  Log(LogLevel::kError, "the device is lost; the CPU serves, and the store rebuilds the states",
      {{"model", model.version}, {"error", fault}});
  device_lost = true;
  SetDeviceHealth();
}

// Reads that can go on do; load balancers are told to prefer others.
void Server::Rep::OnStoreChange(const absl::Status& writable) {
  if (writable.ok()) {
    Log(LogLevel::kInfo, "the store takes writes again; serving");
  } else {
    Log(LogLevel::kError, "the store takes no writes; not serving", {{"error", LogText(writable)}});
  }
  metrics.store_writable->Set(writable.ok() ? 1 : 0);
  SetServing(writable.ok());
}

Server::Server(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}

Server::~Server() { (void)Drain(); }

const std::string& Server::address() const { return rep_->address; }
const std::string& Server::metrics_address() const { return rep_->http->address(); }
const std::string& Server::admin_address() const { return rep_->admin_address; }

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& config,
                                                      std::function<void()> request_drain) {
  auto server = std::unique_ptr<Server>(new Server(std::make_unique<Rep>()));
  Rep& rep = *server->rep_;
  rep.config = config;
  rep.drain_timeout_ms = config.server.drain_timeout_ms;
  rep.request_drain = std::move(request_drain);
  // Debian's abseil is built to look for cycles at each of gRPC's locks.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  if (absl::Status s = rep.OpenSecrets(); !s.ok()) return s;
  if (absl::Status s = rep.OpenConfiguredModel(); !s.ok()) return s;
  if (absl::Status s = rep.OpenStore(); !s.ok()) return s;
  rep.StartPipeline();
  if (absl::Status s = rep.StartGrpc(); !s.ok()) return s;
  auto http = HttpEndpoint::Start(config.metrics_listen, &rep.metrics, [&rep] {
    const std::string fault = rep.device_watch->fault();
    return Readiness{rep.ready, fault.empty()
                                    ? ""
                                    : absl::StrCat("the CPU serves, the device is lost: ", fault)};
  });
  if (!http.ok()) return http.status();
  rep.http = *std::move(http);
  if (absl::Status s = rep.StartAdmin(); !s.ok()) return s;
  rep.metrics.store_writable->Set(1);
  rep.SetServing(true);
  rep.served = true;
  rep.store_watch = std::make_unique<StoreWatch>(
      rep.store.get(), [&rep](const absl::Status& writable) { rep.OnStoreChange(writable); });
  return server;
}

absl::Status Server::Reload(const absl::StatusOr<ServerConfig>& next) {
  const SecretTexts texts = rep_->secrets->Read();
  std::vector<std::string> faults;
  for (const absl::Status& status : {next.status(), texts.status()}) {
    if (!status.ok()) faults.emplace_back(status.message());
  }
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
  rep_->secrets->Take(texts);
  rep_->Apply(*next);
  return absl::OkStatus();
}

absl::Status Server::Drain() {
  Rep& rep = *rep_;
  if (std::exchange(rep.drained, true)) return absl::OkStatus();
  rep.store_watch.reset();
  rep.SetServing(false);
  if (rep.service != nullptr) rep.service->Drain();
  absl::Status drained = rep.pipeline == nullptr ? absl::OkStatus() : rep.pipeline->Drain();
  if (rep.grpc != nullptr) {
    const absl::Time give_up = absl::Now() + absl::Milliseconds(rep.drain_timeout_ms.load());
    while (rep.service->in_flight() > 0 && absl::Now() < give_up) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    // Only idle connections and health watches are left, which would wait for ever.
    rep.grpc->Shutdown(std::chrono::system_clock::now() + kGoodbye);
    rep.grpc->Wait();
  }
  if (rep.admin != nullptr) {
    rep.admin->Shutdown(std::chrono::system_clock::now() + kGoodbye);
    rep.admin->Wait();
  }
  // A start that failed leaves the marker: over and over again it is a crash loop too.
  if (drained.ok() && rep.served) drained = rep.run->End();
  return drained;
}

}  // namespace tim4rec
