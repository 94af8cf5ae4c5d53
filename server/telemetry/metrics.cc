#include "server/telemetry/metrics.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>

namespace tim4rec {
namespace {

constexpr std::string_view kMethodNames[kMethods] = {"RecordInteractions",
                                                     "Recommend",
                                                     "RecordAndRecommend",
                                                     "RecommendForHistory",
                                                     "StreamInteractions",
                                                     "RecommendBatch",
                                                     "GetUser",
                                                     "DeleteUser",
                                                     "ListModels",
                                                     "LoadModel",
                                                     "PromoteModel",
                                                     "UnloadModel",
                                                     "VerifyUser",
                                                     "CreateBackup",
                                                     "GetConfig",
                                                     "Drain"};

// gRPC's codes by number.
constexpr const char* kCodeNames[17] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Those that alerts ask for: a counter that is born with the first failure hides it from
// increase().
constexpr int kCodesFromStart[] = {0, 2, 4, 13, 14, 15};

const prometheus::Histogram::BucketBoundaries& Seconds() {
  static const auto& bounds = *new prometheus::Histogram::BucketBoundaries{
      5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10};
  return bounds;
}

prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

prometheus::Gauge* OneGauge(prometheus::Registry& registry, const char* name, const char* help) {
  return &prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

}  // namespace

std::string_view MethodName(Method method) { return kMethodNames[static_cast<int>(method)]; }

Metrics::Metrics() : registry_(std::make_shared<prometheus::Registry>()) {
  prometheus::Registry& r = *registry_;
  requests_ = &CounterFamily(r, "tim4rec_requests_total", "Calls by method and gRPC code");
  auto& latency = prometheus::BuildHistogram()
                      .Name("tim4rec_request_duration_seconds")
                      .Help("From the decoded request to the answer handed to gRPC")
                      .Register(r);
  for (int m = 0; m < kMethods; ++m) {
    latency_[m] = &latency.Add({{"method", std::string(kMethodNames[m])}}, Seconds());
    for (const int code : kCodesFromStart) CounterOf(m, code);
  }
  queue_depth_ = &prometheus::BuildGauge()
                      .Name("tim4rec_queue_depth")
                      .Help("Requests waiting, by worker")
                      .Register(r);

  model_info_ = &prometheus::BuildGauge()
                     .Name("tim4rec_model_info")
                     .Help("The model that serves; always 1")
                     .Register(r);

  auto& events = CounterFamily(r, "tim4rec_events_total", "Recorded interactions by outcome");
  events_applied = &events.Add({{"outcome", "applied"}});
  events_duplicate = &events.Add({{"outcome", "duplicate"}});
  events_late_refolded = &events.Add({{"outcome", "late_refolded"}});
  events_unknown_item = &events.Add({{"outcome", "unknown_item"}});
  events_rejected = &events.Add({{"outcome", "rejected"}});
  events_expired = &events.Add({{"outcome", "expired"}});

  auto& lookups = CounterFamily(r, "tim4rec_state_lookups_total",
                                "Where the states of users in a batch came from");
  lookups_hot = &lookups.Add({{"tier", "hot"}});
  lookups_stored = &lookups.Add({{"tier", "stored"}});
  lookups_rebuilt = &lookups.Add({{"tier", "rebuilt"}});
  lookups_cold_start = &lookups.Add({{"tier", "cold_start"}});

  auto& dropped = CounterFamily(r, "tim4rec_dropped_requests_total",
                                "Requests that were answered without being computed");
  dropped_queue_full = &dropped.Add({{"reason", "queue_full"}});
  dropped_queue_share = &dropped.Add({{"reason", "queue_share"}});
  dropped_deadline = &dropped.Add({{"reason", "deadline"}});
  dropped_cancelled = &dropped.Add({{"reason", "cancelled"}});
  dropped_draining = &dropped.Add({{"reason", "draining"}});
  refused_no_token = &dropped.Add({{"reason", "no_token"}});
  refused_unknown_token = &dropped.Add({{"reason", "unknown_token"}});
  refused_role = &dropped.Add({{"reason", "role"}});

  auto& failures = CounterFamily(r, "tim4rec_store_failures_total",
                                 "Store operations that failed, by operation");
  failed_append = &failures.Add({{"operation", "append"}});
  failed_read = &failures.Add({{"operation", "read"}});
  failed_put = &failures.Add({{"operation", "put"}});
  failed_delete = &failures.Add({{"operation", "delete"}});
  failed_truncate = &failures.Add({{"operation", "truncate"}});
  events_removed = &CounterFamily(r, "tim4rec_removed_events_total",
                                  "Events that retention removed from the front of logs")
                        .Add({});

  checkpoints =
      &CounterFamily(r, "tim4rec_checkpoints_total", "States written to the store").Add({});
  evictions = &CounterFamily(r, "tim4rec_evictions_total", "States removed from memory").Add({});
  stale_checkpoints = &CounterFamily(r, "tim4rec_stale_checkpoints_total",
                                     "Checkpoints that did not match the log and were not used")
                           .Add({});
  promotions =
      &CounterFamily(r, "tim4rec_model_promotions_total", "Models made the serving one").Add({});
  states_refolded = &CounterFamily(r, "tim4rec_model_states_refolded_total",
                                   "States folded for a model that is being promoted")
                         .Add({});
  states_to_refold = OneGauge(r, "tim4rec_model_states_to_refold",
                              "States still to be folded for the model that is being promoted");
  corrupt_states = OneGauge(r, "tim4rec_corrupt_states",
                            "Checkpoints that failed a check of their envelope since start");
  corrupt_bases = OneGauge(r, "tim4rec_corrupt_bases",
                           "Bases of truncated logs that failed a check since start");
  use_recounts = OneGauge(r, "tim4rec_use_recounts",
                          "Times that damaged counts of the items' use were counted anew from the "
                          "logs since start");
  resident_users = OneGauge(r, "tim4rec_resident_users", "States in memory");
  resident_users_limit = OneGauge(r, "tim4rec_resident_users_limit", "States that memory may hold");
  loaded_models =
      OneGauge(r, "tim4rec_loaded_models", "Models in memory, the serving one included");
  stream_bytes =
      OneGauge(r, "tim4rec_stream_bytes", "Memory of what streams have read and not yet answered");
  ready = OneGauge(r, "tim4rec_ready", "1 while the server takes requests");
  unclean_starts = OneGauge(r, "tim4rec_unclean_starts",
                            "Starts in a row, this one included, after a run that did not drain");
  store_writable = OneGauge(r, "tim4rec_store_writable", "1 while the store takes writes");
  store_table_bytes = OneGauge(r, "tim4rec_store_table_bytes", "RocksDB's table files on disk");
  store_memtable_bytes =
      OneGauge(r, "tim4rec_store_memtable_bytes", "What RocksDB has not yet flushed, in memory");
  store_cache_bytes = OneGauge(r, "tim4rec_store_cache_bytes", "RocksDB's block cache in use");
  store_compaction_bytes = OneGauge(r, "tim4rec_store_pending_compaction_bytes",
                                    "What RocksDB has still to rewrite, estimated");
  store_writes_slowed = OneGauge(r, "tim4rec_store_writes_slowed",
                                 "1 while RocksDB delays or stops writes for compaction");
  process_cpu_seconds_ =
      &CounterFamily(r, "process_cpu_seconds_total", "Processor time, user and system").Add({});
  process_memory_bytes_ = OneGauge(r, "process_resident_memory_bytes", "Resident memory");
  process_open_fds_ = OneGauge(r, "process_open_fds", "Open file descriptors");
  process_max_fds_ = OneGauge(r, "process_max_fds", "Most file descriptors that may be open");
  OneGauge(r, "process_start_time_seconds", "When the process began, Unix time")
      ->Set(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
                .count());
  queue_wait_seconds =
      &prometheus::BuildHistogram()
           .Name("tim4rec_queue_wait_seconds")
           .Help("How long the first request of each micro-batch had waited; not those of streams")
           .Register(r)
           .Add({}, Seconds());
  certificate_expiry = OneGauge(r, "tim4rec_certificate_expiry_timestamp_seconds",
                                "When the server's certificate ends, in Unix time; 0 without TLS");
  auto& unusable = prometheus::BuildGauge()
                       .Name("tim4rec_secrets_unusable")
                       .Help(
                           "1 while certificates or tokens on disk cannot be used, and those "
                           "read before are")
                       .Register(r);
  unusable_tls = &unusable.Add({{"kind", "tls"}});
  unusable_tokens = &unusable.Add({{"kind", "tokens"}});
  batch_requests =
      &prometheus::BuildHistogram()
           .Name("tim4rec_batch_requests")
           .Help("Requests in a micro-batch")
           .Register(r)
           .Add({}, prometheus::Histogram::BucketBoundaries{1, 2, 4, 8, 16, 32, 64, 128, 256, 512});
  batch_seconds = &prometheus::BuildHistogram()
                       .Name("tim4rec_batch_duration_seconds")
                       .Help("From a micro-batch's first request taken to its last answer")
                       .Register(r)
                       .Add({}, Seconds());
  auto& stages = prometheus::BuildHistogram()
                     .Name("tim4rec_batch_stage_duration_seconds")
                     .Help("Parts of a micro-batch, where there was something to do")
                     .Register(r);
  append_seconds = &stages.Add({{"stage", "append"}}, Seconds());
  load_seconds = &stages.Add({{"stage", "load"}}, Seconds());
  fold_seconds = &stages.Add({{"stage", "fold"}}, Seconds());
  rank_seconds = &stages.Add({{"stage", "rank"}}, Seconds());
  AddDeviceMetrics();
}

void Metrics::AddDeviceMetrics() {
  prometheus::Registry& r = *registry_;
  auto& launches =
      CounterFamily(r, "tim4rec_device_launches_total", "Launches on a device by kind");
  auto& rows = CounterFamily(r, "tim4rec_device_rows_total",
                             "Runs, queries, rankings and states that launches did, by kind");
  auto& seconds = CounterFamily(r, "tim4rec_device_busy_seconds_total",
                                "How long a device took for launches, by kind");
  const auto work = [&](const char* kind) {
    const std::map<std::string, std::string> labels = {{"kind", kind}};
    return DeviceWorkCounters{&launches.Add(labels), &rows.Add(labels), &seconds.Add(labels)};
  };
  device_fold = work("fold");
  device_query = work("query");
  device_rank = work("rank");
  device_export = work("export");
  auto& lookups =
      CounterFamily(r, "tim4rec_device_lookups_total",
                    "Folds and queries of a backend with a device, by where the state was");
  lookups_on_device = &lookups.Add({{"memory", "device"}});
  lookups_in_main_memory = &lookups.Add({{"memory", "main"}});
  auto& bytes = CounterFamily(r, "tim4rec_device_state_bytes_total",
                              "States copied to a device and back, in bytes");
  device_bytes_in = &bytes.Add({{"direction", "in"}});
  device_bytes_out = &bytes.Add({{"direction", "out"}});
  states_recovered = &CounterFamily(r, "tim4rec_recovered_states_total",
                                    "States loaded again because their device was lost")
                          .Add({});
  device_states = OneGauge(r, "tim4rec_device_states", "States on a device");
  device_states_limit =
      OneGauge(r, "tim4rec_device_states_limit", "States that its free memory leaves room for");
  overflow_states = OneGauge(r, "tim4rec_overflow_states",
                             "States in main memory that found no room on a device");
  device_memory_used_bytes =
      OneGauge(r, "tim4rec_device_memory_used_bytes", "A device's memory in use, by whomever");
  device_memory_bytes = OneGauge(r, "tim4rec_device_memory_bytes", "A device's memory");
  device_lost = OneGauge(r, "tim4rec_device_lost",
                         "1 once a device has failed: its model is served by the CPU");
}

Metrics::~Metrics() = default;

prometheus::Counter& Metrics::CounterOf(int m, int code) {
  std::atomic<prometheus::Counter*>& handle = requests_by_code_[m][code];
  prometheus::Counter* counter = handle.load(std::memory_order_acquire);
  if (counter == nullptr) {
    // Adding the same labels twice gives the same counter.
    counter =
        &requests_->Add({{"method", std::string(kMethodNames[m])}, {"code", kCodeNames[code]}});
    handle.store(counter, std::memory_order_release);
  }
  return *counter;
}

void Metrics::CountRequest(Method method, int code, double seconds) {
  const int m = static_cast<int>(method);
  CounterOf(m, code < 0 || code > 16 ? 2 : code).Increment();
  latency_[m]->Observe(seconds);
}

void Metrics::UpdateProcess() const {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  const double cpu = seconds(used.ru_utime) + seconds(used.ru_stime);
  process_cpu_seconds_->Increment(std::max(0.0, cpu - process_cpu_seconds_->Value()));
  int64_t pages = 0;
  std::ifstream("/proc/self/statm").ignore(64, ' ') >> pages;
  process_memory_bytes_->Set(static_cast<double>(pages * sysconf(_SC_PAGESIZE)));
  std::error_code unreadable;
  int64_t fds = 0;
  for (std::filesystem::directory_iterator at("/proc/self/fd", unreadable), end; at != end;
       at.increment(unreadable)) {
    ++fds;
  }
  process_open_fds_->Set(static_cast<double>(fds));
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  process_max_fds_->Set(static_cast<double>(limit.rlim_cur));
}

prometheus::Gauge& Metrics::QueueDepth(int worker) {
  return queue_depth_->Add({{"worker", std::to_string(worker)}});
}

void Metrics::SetModel(const std::string& model, const std::string& fingerprint,
                       const std::string& variant, const std::string& backend) {
  if (model_ != nullptr) model_info_->Remove(model_);
  model_ = &model_info_->Add(
      {{"model", model}, {"fingerprint", fingerprint}, {"variant", variant}, {"backend", backend}});
  model_->Set(1);
}

void Metrics::OnScrape(std::function<void()> update) { on_scrape_ = std::move(update); }

std::string Metrics::Text() const {
  std::lock_guard lock(scrape_mutex_);
  UpdateProcess();
  if (on_scrape_) on_scrape_();
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

}  // namespace tim4rec
