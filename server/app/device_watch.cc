#include "server/app/device_watch.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace tim4rec {
namespace {

// Counts from the start of a backend, of several backends one after the other.
void Add(double now, double before, prometheus::Counter* counter) {
  counter->Increment(std::max(0.0, now - before));
}

void Add(const DeviceWork& now, const DeviceWork& before, const Metrics::DeviceWorkCounters& to) {
  Add(static_cast<double>(now.launches), static_cast<double>(before.launches), to.launches);
  Add(static_cast<double>(now.rows), static_cast<double>(before.rows), to.rows);
  Add(now.seconds, before.seconds, to.seconds);
}

}  // namespace

void DeviceWatch::Count(const DeviceStats& now, const DeviceStats& before) {
  Add(now.fold, before.fold, metrics_->device_fold);
  Add(now.query, before.query, metrics_->device_query);
  Add(now.rank, before.rank, metrics_->device_rank);
  Add(now.exported, before.exported, metrics_->device_export);
  const auto add = [](int64_t n, int64_t b, prometheus::Counter* counter) {
    Add(static_cast<double>(n), static_cast<double>(b), counter);
  };
  add(now.device_lookups, before.device_lookups, metrics_->lookups_on_device);
  add(now.host_lookups, before.host_lookups, metrics_->lookups_in_main_memory);
  add(now.bytes_in, before.bytes_in, metrics_->device_bytes_in);
  add(now.bytes_out, before.bytes_out, metrics_->device_bytes_out);
}

void DeviceWatch::Look() {
  const std::lock_guard lock(mutex_);
  Seen seen;
  DeviceStats total;  // of what is not counted from the start
  int64_t room = 0;   // all models' states share the device
  for (const ModelHandle& model : models_->List()) {
    if (model->engine == nullptr) continue;
    std::optional<DeviceStats> stats = model->engine->backend().device_stats();
    if (!stats) continue;
    const auto before = seen_.find(model);
    const DeviceStats last = before == seen_.end() ? DeviceStats() : before->second;
    Count(*stats, last);
    if (stats->lost && !last.lost) on_lost_(*model, stats->fault);
    total.lost = total.lost || stats->lost;
    total.slots_used += stats->slots_used;
    total.overflow_slots += stats->overflow_slots;
    total.memory_bytes = std::max(total.memory_bytes, stats->memory_bytes);
    total.memory_used_bytes = std::max(total.memory_used_bytes, stats->memory_used_bytes);
    room = std::max(room, stats->slots_limit - stats->slots_used);
    seen.emplace(model, *std::move(stats));
  }
  seen_ = std::move(seen);
  const auto set = [](prometheus::Gauge* gauge, int64_t value) {
    gauge->Set(static_cast<double>(value));
  };
  set(metrics_->device_states, total.slots_used);
  set(metrics_->device_states_limit, total.slots_used + room);
  set(metrics_->overflow_states, total.overflow_slots);
  set(metrics_->device_memory_bytes, total.memory_bytes);
  set(metrics_->device_memory_used_bytes, total.memory_used_bytes);
  set(metrics_->device_lost, total.lost ? 1 : 0);
}

std::string DeviceWatch::fault() const {
  const auto stats = models_->serving()->engine->backend().device_stats();
  return stats && stats->lost ? stats->fault : "";
}

}  // namespace tim4rec
