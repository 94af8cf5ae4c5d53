// The server put together: model, store, pipeline, gRPC, admin, metrics.
#ifndef TIM4REC_SERVER_APP_SERVER_H_
#define TIM4REC_SERVER_APP_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config/config.h"

namespace tim4rec {

class Server {
 public:
  // Starts in this order: certificates and tokens, model (checked against its probe), store,
  // pipeline, gRPC, metrics, admin. Serves when it returns. Errors name the part and what to do;
  // then nothing is left running. `request_drain` is Admin.Drain's: it asks the owner to call
  // Drain, at any time from any thread, perhaps more than once, and returns at once.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config,
                                                       std::function<void()> request_drain);

  // Drains.
  ~Server();

  // What SIGHUP asks for: takes the keys of `next` that change at run time, and reads certificates
  // and tokens again. If anything is wrong, `next` itself or a file, all stays as it was and one
  // error lists all faults. One thread; not after Drain.
  absl::Status Reload(const absl::StatusOr<ServerConfig>& next);

  // HOST:PORT with the ports that were bound.
  const std::string& address() const;
  const std::string& metrics_address() const;
  const std::string& admin_address() const;

  // Not ready first (health NOT_SERVING, /readyz 503, new calls UNAVAILABLE), then calls that were
  // taken are answered and changed states written, then connections are closed. A client that does
  // not read its answer is waited for up to server.drain_timeout_ms. The status is the store's.
  // Repeatable.
  absl::Status Drain();

 private:
  struct Rep;
  explicit Server(std::unique_ptr<Rep> rep);
  std::unique_ptr<Rep> rep_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_APP_SERVER_H_
