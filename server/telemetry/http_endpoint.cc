#include "server/telemetry/http_endpoint.h"

#include <CivetServer.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

struct Answer {
  int code;
  const char* type;
  std::string body;
};

class GetHandler : public CivetHandler {
 public:
  explicit GetHandler(std::function<Answer()> answer) : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Answer answer = answer_();
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
              answer.code, answer.code == 200 ? "OK" : "Service Unavailable", answer.type,
              answer.body.size());
    mg_write(connection, answer.body.data(), answer.body.size());
    return true;
  }

 private:
  std::function<Answer()> answer_;
};

}  // namespace

struct HttpEndpoint::Rep {
  Rep(const std::vector<std::string>& options, const Metrics* metrics,
      std::function<Readiness()> is_ready)
      : metrics_handler([metrics] {
          return Answer{200, "text/plain; version=0.0.4; charset=utf-8", metrics->Text()};
        }),
        health_handler([] {
          return Answer{200, "text/plain", "ok\n"};
        }),
        ready_handler([ready = std::move(is_ready)] {
          const Readiness now = ready();
          return Answer{now.ready ? 200 : 503, "text/plain",
                        absl::StrCat(now.ready ? "ready" : "not ready",
                                     now.note.empty() ? "" : "; ", now.note, "\n")};
        }),
        server(options) {
    server.addHandler("/metrics", metrics_handler);
    server.addHandler("/healthz", health_handler);
    server.addHandler("/readyz", ready_handler);
  }

  GetHandler metrics_handler;
  GetHandler health_handler;
  GetHandler ready_handler;
  CivetServer server;  // last: stops before the handlers go
};

HttpEndpoint::HttpEndpoint(std::unique_ptr<Rep> rep, std::string host, int port)
    : rep_(std::move(rep)),
      host_(std::move(host)),
      port_(port),
      address_(absl::StrCat(host_, ":", port)) {}

HttpEndpoint::~HttpEndpoint() {
  // civetweb's listener looks at its stop flag every two seconds, or when somebody connects.
  std::atomic<bool> closed = false;
  std::thread closer([&] {
    rep_->server.close();
    closed = true;
  });
  while (!closed) {
    char error[100];
    mg_connection* knock = mg_connect_client(host_.c_str(), port_, 0, error, sizeof error);
    if (knock != nullptr) mg_close_connection(knock);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  closer.join();
}

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(
    const std::string& address, const Metrics* metrics, std::function<Readiness()> ready) {
  try {
    const std::vector<std::string> options = {"listening_ports",    address, "num_threads", "2",
                                              "request_timeout_ms", "5000"};
    auto rep = std::make_unique<Rep>(options, metrics, std::move(ready));
    const std::vector<int> ports = rep->server.getListeningPorts();
    if (ports.empty()) {
      return absl::UnavailableError(absl::StrCat("metrics_listen: cannot bind ", address));
    }
    return std::unique_ptr<HttpEndpoint>(
        new HttpEndpoint(std::move(rep), address.substr(0, address.rfind(':')), ports[0]));
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("metrics_listen: cannot bind ", address,
                                               ": give IP:PORT of a free port (", e.what(), ")"));
  }
}

}  // namespace tim4rec
