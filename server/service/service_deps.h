// What the calls of the service work with.
#ifndef TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_
#define TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_

#include <functional>

#include "absl/time/time.h"
#include "server/pipeline/models.h"
#include "server/pipeline/pipeline.h"
#include "server/security/access.h"
#include "server/service/live_limits.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// All of it outlives the service.
struct ServiceDeps {
  const Models* models;
  Pipeline* pipeline;
  Metrics* metrics;
  const LiveLimits* limits;
  const Access* access;
  std::function<absl::Time()> clock;  // any thread
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_
