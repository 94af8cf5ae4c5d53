// The server's Prometheus metrics (list: server/README.md). Handles are resolved once; labels never
// hold user or item ids.
#ifndef TIM4REC_SERVER_TELEMETRY_METRICS_H_
#define TIM4REC_SERVER_TELEMETRY_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace prometheus {
class Registry;
}

namespace tim4rec {

enum class Method {
  kRecordInteractions,
  kRecommend,
  kRecordAndRecommend,
  kRecommendForHistory,
  kStreamInteractions,
  kRecommendBatch,
  kGetUser,
  kDeleteUser,
  kListModels,
  kLoadModel,
  kPromoteModel,
  kUnloadModel,
  kVerifyUser,
  kCreateBackup,
  kGetConfig,
  kDrain,
};
inline constexpr int kMethods = 16;
std::string_view MethodName(Method method);

// Thread-safe.
class Metrics {
 public:
  Metrics();
  ~Metrics();

  // One call: `code` is a grpc::StatusCode.
  void CountRequest(Method method, int code, double seconds);

  // One per worker, to be kept by it.
  prometheus::Gauge& QueueDepth(int worker);

  // The model that serves from now on.
  void SetModel(const std::string& model, const std::string& fingerprint,
                const std::string& variant, const std::string& backend);

  // Called at every scrape, before the text is made.
  void OnScrape(std::function<void()> update);
  // The Prometheus text format.
  std::string Text() const;

 private:
  prometheus::Counter& CounterOf(int method, int code);
  void AddDeviceMetrics();
  // What the process takes of the machine, from /proc/self.
  void UpdateProcess() const;

  // Declared first: the handles below belong to it.
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Counter>* requests_;
  std::array<std::array<std::atomic<prometheus::Counter*>, 17>, kMethods> requests_by_code_{};
  std::array<prometheus::Histogram*, kMethods> latency_;
  prometheus::Counter* process_cpu_seconds_;
  prometheus::Gauge* process_memory_bytes_;
  prometheus::Gauge* process_open_fds_;
  prometheus::Gauge* process_max_fds_;
  prometheus::Family<prometheus::Gauge>* queue_depth_;
  prometheus::Family<prometheus::Gauge>* model_info_;
  prometheus::Gauge* model_ = nullptr;  // in model_info_
  std::function<void()> on_scrape_;
  mutable std::mutex scrape_mutex_;

 public:
  // tim4rec_events_total{outcome}
  prometheus::Counter* events_applied;
  prometheus::Counter* events_duplicate;
  prometheus::Counter* events_late_refolded;
  prometheus::Counter* events_unknown_item;
  prometheus::Counter* events_rejected;
  prometheus::Counter* events_expired;
  // tim4rec_state_lookups_total{tier}
  prometheus::Counter* lookups_hot;
  prometheus::Counter* lookups_stored;
  prometheus::Counter* lookups_rebuilt;
  prometheus::Counter* lookups_cold_start;
  // tim4rec_dropped_requests_total{reason}
  prometheus::Counter* dropped_queue_full;
  prometheus::Counter* dropped_queue_share;
  prometheus::Counter* dropped_deadline;
  prometheus::Counter* dropped_cancelled;
  prometheus::Counter* dropped_draining;
  prometheus::Counter* refused_no_token;
  prometheus::Counter* refused_unknown_token;
  prometheus::Counter* refused_role;
  // tim4rec_store_failures_total{operation}
  prometheus::Counter* failed_append;
  prometheus::Counter* failed_read;
  prometheus::Counter* failed_put;
  prometheus::Counter* failed_delete;
  prometheus::Counter* failed_truncate;
  prometheus::Counter* events_removed;
  prometheus::Counter* checkpoints;
  prometheus::Counter* evictions;
  prometheus::Counter* stale_checkpoints;
  prometheus::Counter* promotions;
  prometheus::Counter* states_refolded;
  prometheus::Gauge* states_to_refold;
  // Of the devices on which backends compute; all 0 where none does.
  struct DeviceWorkCounters {
    prometheus::Counter* launches;
    prometheus::Counter* rows;
    prometheus::Counter* seconds;
  };
  // tim4rec_device_{launches,rows,busy_seconds}_total{kind}
  DeviceWorkCounters device_fold, device_query, device_rank, device_export;
  // tim4rec_device_lookups_total{memory}
  prometheus::Counter* lookups_on_device;
  prometheus::Counter* lookups_in_main_memory;
  // tim4rec_device_state_bytes_total{direction}
  prometheus::Counter* device_bytes_in;
  prometheus::Counter* device_bytes_out;
  prometheus::Counter* states_recovered;
  prometheus::Gauge* device_states;
  prometheus::Gauge* device_states_limit;
  prometheus::Gauge* overflow_states;
  prometheus::Gauge* device_memory_used_bytes;
  prometheus::Gauge* device_memory_bytes;
  prometheus::Gauge* device_lost;
  prometheus::Gauge* corrupt_states;
  prometheus::Gauge* corrupt_bases;
  prometheus::Gauge* use_recounts;
  prometheus::Gauge* resident_users;
  prometheus::Gauge* resident_users_limit;
  prometheus::Gauge* loaded_models;
  prometheus::Gauge* stream_bytes;
  prometheus::Gauge* ready;
  prometheus::Gauge* unclean_starts;
  prometheus::Gauge* store_writable;
  // RocksDB's
  prometheus::Gauge* store_table_bytes;
  prometheus::Gauge* store_memtable_bytes;
  prometheus::Gauge* store_cache_bytes;
  prometheus::Gauge* store_compaction_bytes;
  prometheus::Gauge* store_writes_slowed;
  prometheus::Histogram* queue_wait_seconds;
  prometheus::Gauge* certificate_expiry;
  // tim4rec_secrets_unusable{kind}
  prometheus::Gauge* unusable_tls;
  prometheus::Gauge* unusable_tokens;
  prometheus::Histogram* batch_requests;
  prometheus::Histogram* batch_seconds;
  // tim4rec_batch_stage_duration_seconds{stage}
  prometheus::Histogram* append_seconds;
  prometheus::Histogram* load_seconds;
  prometheus::Histogram* fold_seconds;
  prometheus::Histogram* rank_seconds;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_TELEMETRY_METRICS_H_
