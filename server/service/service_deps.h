// What the calls of the service work with.
#ifndef TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_
#define TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_

#include <functional>
#include <string>

#include "absl/time/time.h"
#include "model/engine/engine.h"
#include "server/pipeline/pipeline.h"
#include "server/service/codec.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// All of it outlives the service.
struct ServiceDeps {
  const Engine* engine;
  Pipeline* pipeline;
  Metrics* metrics;
  RequestLimits limits;
  std::string model_name;
  std::function<absl::Time()> clock;  // any thread
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_SERVICE_DEPS_H_
