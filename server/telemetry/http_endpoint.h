// /metrics, /healthz and /readyz over HTTP.
#ifndef TIM4REC_SERVER_TELEMETRY_HTTP_ENDPOINT_H_
#define TIM4REC_SERVER_TELEMETRY_HTTP_ENDPOINT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

struct Readiness {
  bool ready = false;
  std::string note;  // added to the answer; one line
};

// Listens from Start to destruction, on threads of its own.
//   /metrics  200, Prometheus text
//   /healthz  200 while the process runs
//   /readyz   200 if `ready()` says so, else 503; with its note
class HttpEndpoint {
 public:
  // `address`: IP:PORT, port 0 picks a free one. UNAVAILABLE if it cannot be bound. `metrics`
  // outlives the endpoint; `ready` is called from any thread.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const std::string& address,
                                                             const Metrics* metrics,
                                                             std::function<Readiness()> ready);
  ~HttpEndpoint();

  // IP:PORT with the port that was bound.
  const std::string& address() const { return address_; }

 private:
  struct Rep;
  HttpEndpoint(std::unique_ptr<Rep> rep, std::string host, int port);

  std::unique_ptr<Rep> rep_;
  std::string host_;
  int port_;
  std::string address_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_TELEMETRY_HTTP_ENDPOINT_H_
