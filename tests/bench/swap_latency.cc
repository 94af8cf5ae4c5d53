// Latency of Recommend while models are swapped: a client for a running server.
//
//   swap_latency --write-models DIR                              DIR/a and DIR/b, random, D 64
//   swap_latency HOST:PORT ADMIN_HOST:PORT DIR [RATE] [ROUNDS] [USERS] [HISTORY]
//
// The server serves DIR/a. Calls are sent RATE times a second whether answers come or not (three of
// four are Recommend, the others RecordInteractions) and measured from when they were due. A round:
// some seconds of that, then the other model is loaded, promoted, and the old one unloaded under
// the same load. Printed: p99 over whole seconds before, from the start of loading to a second
// after the promotion, and after; their medians over all rounds, which a machine with other work on
// it disturbs least.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "model/weights/package.h"
#include "tests/model/tiny_model.h"
#include "tim4rec/v1/admin.grpc.pb.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kItems = 3400;
constexpr auto kSecond = std::chrono::seconds(1);
constexpr auto kCalm = 4 * kSecond;

int WriteModels(const std::string& dir) {
  for (const uint64_t seed : {1, 2}) {
    ModelConfig config;
    config.n_items = kItems + 1;
    config.hidden_size = 64;
    const absl::Status written =
        WritePackage(dir + (seed == 1 ? "/a" : "/b"), MakeTinyModel(config, seed));
    if (written.ok()) continue;
    std::fprintf(stderr, "%s\n", written.ToString().c_str());
    return 1;
  }
  return 0;
}

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void AddInteraction(std::mt19937_64* random, int64_t timestamp_ms,
                    v1::RecordInteractionsRequest* request) {
  v1::Interaction* interaction = request->add_interactions();
  interaction->set_item_id("item" + std::to_string(1 + (*random)() % kItems));
  interaction->set_timestamp_ms(timestamp_ms);
}

void Check(const grpc::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.error_message().c_str());
  std::exit(1);
}

class Load {
 public:
  Load(const std::string& address, double rate, int users, int history)
      : stub_(v1::Recommender::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        rate_(rate),
        users_(users) {
    for (int u = 0; u < users; ++u) {
      v1::RecordInteractionsRequest request;
      request.set_user_id(User(u));
      for (int i = 0; i < history; ++i) {
        AddInteraction(&random_, NowMs() - (history - i) * 60'000LL, &request);
      }
      v1::RecordInteractionsResponse response;
      grpc::ClientContext context;
      Check(stub_->RecordInteractions(&context, request, &response), "history");
    }
    thread_ = std::thread([this] { Run(); });
  }

  ~Load() {
    done_ = true;
    thread_.join();
    while (in_flight_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  // The p99, in ms, of the Recommends that were due in each whole second from `begin` to `end`.
  std::vector<double> P99BySecond(Clock::time_point begin, Clock::time_point end) {
    std::vector<double> seconds;
    for (auto second = begin; second + kSecond <= end; second += kSecond) {
      std::vector<double> ms;
      {
        std::lock_guard lock(mutex_);
        for (const Sample& sample : samples_) {
          if (sample.due >= second && sample.due < second + kSecond) ms.push_back(sample.ms);
        }
      }
      if (ms.empty()) continue;
      std::sort(ms.begin(), ms.end());
      seconds.push_back(ms[static_cast<size_t>(0.99 * static_cast<double>(ms.size() - 1))]);
    }
    return seconds;
  }

  void Forget() {
    std::lock_guard lock(mutex_);
    samples_.clear();
  }

 private:
  struct Sample {
    Clock::time_point due;
    double ms;
  };
  template <typename Request, typename Response>
  struct Call {
    grpc::ClientContext context;
    Request request;
    Response response;
  };

  static std::string User(uint64_t user) { return "user" + std::to_string(user); }

  void Run() {
    const auto start = Clock::now();
    for (int64_t i = 0; !done_; ++i) {
      const auto due = start + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double>(static_cast<double>(i) / rate_));
      std::this_thread::sleep_until(due);
      ++in_flight_;
      if (i % 4 == 0) {
        Record();
      } else {
        Recommend(due);
      }
    }
  }

  void Record() {
    auto* call = new Call<v1::RecordInteractionsRequest, v1::RecordInteractionsResponse>;
    call->request.set_user_id(User(random_() % users_));
    AddInteraction(&random_, NowMs(), &call->request);
    stub_->async()->RecordInteractions(&call->context, &call->request, &call->response,
                                       [this, call](const grpc::Status& status) {
                                         Check(status, "RecordInteractions");
                                         delete call;
                                         --in_flight_;
                                       });
  }

  void Recommend(Clock::time_point due) {
    auto* call = new Call<v1::RecommendRequest, v1::RecommendResponse>;
    call->request.set_user_id(User(random_() % users_));
    stub_->async()->Recommend(&call->context, &call->request, &call->response,
                              [this, call, due](const grpc::Status& status) {
                                Check(status, "Recommend");
                                const std::chrono::duration<double, std::milli> ms =
                                    Clock::now() - due;
                                delete call;
                                {
                                  std::lock_guard lock(mutex_);
                                  samples_.push_back({due, ms.count()});
                                }
                                --in_flight_;
                              });
  }

  const std::unique_ptr<v1::Recommender::Stub> stub_;
  const double rate_;
  const int users_;
  std::mt19937_64 random_{1};
  std::atomic<bool> done_ = false;
  std::atomic<int64_t> in_flight_ = 0;
  std::mutex mutex_;
  std::vector<Sample> samples_;
  std::thread thread_;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Admin {
 public:
  explicit Admin(const std::string& address)
      : stub_(
            v1::Admin::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}

  std::string Load(const std::string& directory) {
    v1::LoadModelRequest request;
    request.set_directory(directory);
    v1::LoadModelResponse response;
    grpc::ClientContext context;
    Check(stub_->LoadModel(&context, request, &response), "LoadModel");
    return response.model().version();
  }
  std::string Promote(const std::string& version) {
    v1::PromoteModelRequest request;
    request.set_version(version);
    v1::PromoteModelResponse response;
    grpc::ClientContext context;
    Check(stub_->PromoteModel(&context, request, &response), "PromoteModel");
    return response.previous_version();
  }
  void Unload(const std::string& version) {
    v1::UnloadModelRequest request;
    request.set_version(version);
    v1::UnloadModelResponse response;
    grpc::ClientContext context;
    Check(stub_->UnloadModel(&context, request, &response), "UnloadModel");
  }

 private:
  const std::unique_ptr<v1::Admin::Stub> stub_;
};

int Measure(const std::string& address, const std::string& admin_address, const std::string& dir,
            double rate, int rounds, int users, int history) {
  Load load(address, rate, users, history);
  Admin admin(admin_address);
  std::vector<double> before, during, after;
  const auto add = [&](Clock::time_point begin, Clock::time_point end, std::vector<double>* all) {
    const std::vector<double> seconds = load.P99BySecond(begin, end);
    all->insert(all->end(), seconds.begin(), seconds.end());
    std::printf("  %6.2f (%2zu s)", Median(seconds), seconds.size());
  };
  std::printf("medians of p99 by seconds, in ms\nround  before         during         after\n");
  for (int round = 0; round < rounds; ++round) {
    load.Forget();
    const auto start = Clock::now();
    std::this_thread::sleep_for(kCalm);
    const auto swap = Clock::now();
    const std::string previous = admin.Promote(admin.Load(dir + (round % 2 == 0 ? "/b" : "/a")));
    std::this_thread::sleep_for(kSecond);
    const auto end = Clock::now();
    std::this_thread::sleep_for(kCalm);
    std::printf("%5d", round);
    add(start, swap, &before);
    add(swap, end, &during);
    add(end, Clock::now() - kSecond / 2, &after);
    std::printf("\n");
    std::fflush(stdout);
    admin.Unload(previous);
  }
  std::printf("all rounds: before %.2f, during %.2f, after %.2f ms; during / before %.2f\n",
              Median(before), Median(during), Median(after), Median(during) / Median(before));
  return 0;
}

int Main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "--write-models") return WriteModels(arguments[1]);
  if (arguments.size() < 3 || arguments.size() > 7) {
    std::fprintf(stderr,
                 "usage: swap_latency --write-models DIR\n"
                 "       swap_latency HOST:PORT ADMIN_HOST:PORT DIR [RATE] [ROUNDS] [USERS] "
                 "[HISTORY]\n");
    return 2;
  }
  const auto number = [&](size_t i, int otherwise) {
    return i < arguments.size() ? std::max(1, std::atoi(arguments[i].c_str())) : otherwise;
  };
  return Measure(arguments[0], arguments[1], arguments[2], number(3, 1000), number(4, 8),
                 number(5, 1000), number(6, 100));
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main(argc, argv); }
