// The service within the test's process, over a real pipeline and store.
#ifndef TIM4REC_TESTS_SERVER_SERVICE_FIXTURE_H_
#define TIM4REC_TESTS_SERVER_SERVICE_FIXTURE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/service/recommender_service.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {

inline void WaitUntil(const std::function<bool()>& holds) {
  for (int i = 0; i < 20'000 && !holds(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(holds());
}

// A call with a deadline of a minute.
struct ShortContext : grpc::ClientContext {
  ShortContext() { set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1)); }
};

class ServiceTest : public PipelineTest {
 protected:
  ~ServiceTest() override { Stop(); }

  void Serve(RequestLimits limits = {}) {
    Stop();
    Start();
    limits_.Set(std::move(limits));
    service_ = std::make_unique<RecommenderService>(
        ServiceDeps{models_.get(), pipeline_.get(), &metrics_, &limits_, &access_, [this] {
                      ++decoded_;
                      return absl::FromUnixMillis(kNow);
                    }});
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Recommender::NewStub(server_->InProcessChannel({}));
  }

  void Stop() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
    WaitUntil([this] { return service_->in_flight() == 0; });
  }

  // A user of the worker that Block stops, or of the other; there are two.
  static std::string UserOfWorker(bool blocked) {
    const uint64_t worker = PartitionOf("the user that blocks") % 2;
    for (int i = 0;; ++i) {
      const std::string user = absl::StrCat("user", i);
      if ((PartitionOf(user) % 2 == worker) == blocked) return user;
    }
  }

  std::atomic<int> decoded_ = 0;  // requests, batches, first messages
  LiveLimits limits_{RequestLimits{}};
  Access access_{std::nullopt, &metrics_};
  std::unique_ptr<RecommenderService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Recommender::Stub> stub_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_SERVER_SERVICE_FIXTURE_H_
