// What the models' backends tell of their devices, as metrics, and whether one is lost.
#ifndef TIM4REC_SERVER_APP_DEVICE_WATCH_H_
#define TIM4REC_SERVER_APP_DEVICE_WATCH_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "server/pipeline/models.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// Thread-safe.
class DeviceWatch {
 public:
  // `on_lost` is called from Look, once for each model whose device is lost, with why. Models and
  // metrics outlive the watch.
  DeviceWatch(const Models* models, Metrics* metrics,
              std::function<void(const LoadedModel& model, const std::string& fault)> on_lost)
      : models_(models), metrics_(metrics), on_lost_(std::move(on_lost)) {}

  // Brings the metrics up to date.
  void Look();

  // Why the serving model's device is lost; "" if it is not, or there is none.
  std::string fault() const;

 private:
  using Seen = std::map<std::weak_ptr<LoadedModel>, DeviceStats, std::owner_less<>>;

  void Count(const DeviceStats& now, const DeviceStats& before);

  const Models* const models_;
  Metrics* const metrics_;
  const std::function<void(const LoadedModel& model, const std::string& fault)> on_lost_;

  std::mutex mutex_;
  Seen seen_;  // guarded by mutex_
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_APP_DEVICE_WATCH_H_
