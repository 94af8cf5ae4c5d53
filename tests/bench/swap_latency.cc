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
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "model/weights/package.h"
#include "tests/bench/open_loop.h"
#include "tests/model/tiny_model.h"
#include "tim4rec/v1/admin.grpc.pb.h"

namespace tim4rec {
namespace {

constexpr auto kSecond = std::chrono::seconds(1);
constexpr auto kCalm = 4 * kSecond;

int WriteModels(const std::string& dir) {
  for (const uint64_t seed : {1, 2}) {
    ModelConfig config;
    config.n_items = OpenLoop::kItems + 1;
    config.hidden_size = 64;
    const absl::Status written =
        WritePackage(dir + (seed == 1 ? "/a" : "/b"), MakeTinyModel(config, seed));
    if (written.ok()) continue;
    std::fprintf(stderr, "%s\n", written.ToString().c_str());
    return 1;
  }
  return 0;
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
    CheckCall(stub_->LoadModel(&context, request, &response), "LoadModel");
    return response.model().version();
  }
  std::string Promote(const std::string& version) {
    v1::PromoteModelRequest request;
    request.set_version(version);
    v1::PromoteModelResponse response;
    grpc::ClientContext context;
    CheckCall(stub_->PromoteModel(&context, request, &response), "PromoteModel");
    return response.previous_version();
  }
  void Unload(const std::string& version) {
    v1::UnloadModelRequest request;
    request.set_version(version);
    v1::UnloadModelResponse response;
    grpc::ClientContext context;
    CheckCall(stub_->UnloadModel(&context, request, &response), "UnloadModel");
  }

 private:
  const std::unique_ptr<v1::Admin::Stub> stub_;
};

int Measure(const std::string& address, const std::string& admin_address, const std::string& dir,
            double rate, int rounds, int users, int history) {
  OpenLoop load(address, rate, users, history);
  load.Start();
  Admin admin(admin_address);
  std::vector<double> before, during, after;
  const auto add = [&](Clock::time_point begin, Clock::time_point end, std::vector<double>* all) {
    const std::vector<double> seconds = P99BySecond(load.Between(begin, end));
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
