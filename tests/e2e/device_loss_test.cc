// A server whose device dies under traffic: the same process goes on, its clients notice nothing
// but time, whoever watches it is told, and the store is right afterwards.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "model/weights/package.h"
#include "tests/e2e/server_process.h"
#include "tests/model/tiny_model.h"
#include "tests/paths.h"
#include "tests/server/http_get.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr int64_t kBegin = 1'600'000'000'000;

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// What the health service says of a service: 1 is SERVING, 2 NOT_SERVING.
int HealthOf(const ServerProcess& server, const std::string& service) {
  std::string health;
  const std::string request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  EXPECT_TRUE(CallRaw(server.address(), "/grpc.health.v1.Health/Check", request, &health).ok());
  return health.size() == 2 && health[0] == 8 ? health[1] : -1;
}

class DeviceLoss : public ServerTest {
 protected:
  // One on the device, which is to die at a call of that kind, and one that never had any.
  void Start(const std::string& dies_at) {
    setenv("TEST_DEVICE_DIES_AT", dies_at.c_str(), 1);
    setenv("TIM4REC_PIPELINE_MAX_RESIDENT_USERS", "24", 1);  // of 32: states come and go
    setenv("TIM4REC_PIPELINE_CHECKPOINT_INTERVAL_MS", "50", 1);
    server_ = Serve(dir_ + "/" + dies_at, {}, "device_loss_server");
    other_ = Serve(dir_ + "/" + dies_at + "_other", {"--backend", "cpu"});
    unsetenv("TIM4REC_PIPELINE_MAX_RESIDENT_USERS");
    unsetenv("TIM4REC_PIPELINE_CHECKPOINT_INTERVAL_MS");
  }

  // Writes to users of its own and asks for them, of both servers, until `stop`. Every call goes
  // well, and every answer is the other's, bit for bit.
  void Run(int client, uint64_t seed, const std::atomic<bool>& stop) {
    std::mt19937_64 random(seed);
    const auto stub = Connect(*server_), other = Connect(*other_);
    for (int64_t step = 0; !stop; ++step) {
      const int user = client * kUsersEach + static_cast<int>(random() % kUsersEach);
      std::vector<std::pair<std::string, int64_t>> events;
      for (uint64_t i = 0; i <= random() % 3; ++i) {
        events.emplace_back(absl::StrCat("item", 1 + random() % 59),
                            kBegin + 1000 * (4 * step + static_cast<int64_t>(i)));
      }
      v1::RecordInteractionsRequest request = RecordOf(absl::StrCat("u", user), events);
      request.set_ack(random() % 2 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
      for (v1::Recommender::Stub* to : {stub.get(), other.get()}) {
        Context context;
        v1::RecordInteractionsResponse response;
        const grpc::Status status = to->RecordInteractions(&context, request, &response);
        ASSERT_TRUE(status.ok()) << status.error_message();
        for (const auto& result : response.results()) {
          ASSERT_EQ(result.status(), v1::INTERACTION_STATUS_APPLIED);
        }
      }
      acknowledged_[user] += static_cast<int64_t>(events.size());
      const int64_t now_ms = kBegin + 1000 * 4 * (step + 1);
      const std::string asked =
          absl::StrCat("u", client * kUsersEach + static_cast<int>(random() % kUsersEach));
      ASSERT_EQ(TopOf(*stub, asked, now_ms), TopOf(*other, asked, now_ms)) << asked;
      ++steps_;
    }
  }

  // What `tim4rec verify` finds; what it says is in dir_/err.
  std::string Verify(const std::string& model, const std::string& store) const {
    const std::string command =
        absl::StrCat(BinaryDir(), "/bin/tim4rec verify --backend cpu --model ", model, " --store ",
                     store, " >", dir_, "/out 2>", dir_, "/err");
    EXPECT_EQ(std::system(command.c_str()), 0);
    return Read(dir_ + "/out");
  }

  void WaitForSteps(int64_t more) const {
    const int64_t until = steps_ + more;
    while (steps_ < until && !HasFailure()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  static constexpr int kClients = 4, kUsersEach = 8;
  std::unique_ptr<ServerProcess> server_, other_;
  std::atomic<int64_t> steps_ = 0;
  int64_t acknowledged_[kClients * kUsersEach] = {};  // events, each by its client
};

TEST_F(DeviceLoss, TheSameProcessGoesOnAndNothingIsLost) {
  uint64_t seed = std::random_device()();
  if (const char* text = std::getenv("TIM4REC_TEST_SEED")) seed = std::strtoull(text, nullptr, 10);
  std::cout << "TIM4REC_TEST_SEED=" << seed << std::endl;
  for (const std::string dies_at : {"Fold", "Rank", "CopyRecords"}) {
    SCOPED_TRACE(dies_at);
    Start(dies_at);
    EXPECT_EQ(HealthOf(*server_, "tim4rec.device"), 1);
    EXPECT_THAT(HttpGet(server_->metrics_address(), "/metrics"),
                HasSubstr("\ntim4rec_device_lost 0\n"));
    std::fill(std::begin(acknowledged_), std::end(acknowledged_), 0);
    std::atomic<bool> stop = false;
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] { Run(c, seed + static_cast<uint64_t>(c), stop); });
    }
    WaitForSteps(100);
    server_->Signal(SIGUSR2);
    for (int i = 0; i < 600 && HealthOf(*server_, "tim4rec.device") == 1; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    WaitForSteps(100);
    stop = true;
    for (std::thread& client : clients) client.join();
    ASSERT_FALSE(HasFailure()) << server_->errors();

    // Balancers go on sending; who watches is told why.
    EXPECT_EQ(HealthOf(*server_, "tim4rec.device"), 2);
    EXPECT_EQ(HealthOf(*server_, "tim4rec.v1.Recommender"), 1);
    EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"),
                AllOf(StartsWith("HTTP/1.1 200"),
                      HasSubstr("the CPU serves, the device is lost: an illegal memory access")));
    // The alert's expression, for a server that has it.
    EXPECT_THAT(Read(SourceDir() + "/deploy/prometheus/rules.yaml"),
                HasSubstr("- alert: Tim4recDeviceLost\n        expr: tim4rec_device_lost == 1\n"));
    EXPECT_THAT(HttpGet(server_->metrics_address(), "/metrics"),
                AllOf(HasSubstr("\ntim4rec_device_lost 1\n"), HasSubstr("\ntim4rec_ready 1\n"),
                      HasSubstr("\ntim4rec_device_states 0\n"),
                      Not(HasSubstr("\ntim4rec_recovered_states_total 0\n"))));

    // Nobody's events are missing, asked of the process that goes on and of what it leaves.
    const auto stub = Connect(*server_), other = Connect(*other_);
    int64_t users = 0, events = 0;
    for (int user = 0; user < kClients * kUsersEach; ++user) {
      if (acknowledged_[user] == 0) continue;
      ++users;
      events += acknowledged_[user];
      v1::GetUserRequest request;
      request.set_user_id(absl::StrCat("u", user));
      v1::GetUserResponse response;
      Context context;
      ASSERT_TRUE(stub->GetUser(&context, request, &response).ok());
      EXPECT_EQ(static_cast<int64_t>(response.event_count()), acknowledged_[user]) << user;
      EXPECT_EQ(TopOf(*stub, request.user_id(), kBegin + 1'000'000'000),
                TopOf(*other, request.user_id(), kBegin + 1'000'000'000));
    }
    server_->Signal(SIGTERM);
    EXPECT_EQ(server_->Wait(), 0);
    const std::string log = server_->errors();
    const size_t said = log.find("the device is lost; the CPU serves");
    EXPECT_NE(said, std::string::npos) << log;
    EXPECT_EQ(log.find("the device is lost; the CPU serves", said + 1), std::string::npos) << log;
    EXPECT_EQ(Verify(kTinyModel, dir_ + "/" + dies_at), "");
    EXPECT_THAT(Read(dir_ + "/err"), HasSubstr(absl::StrCat(users, " users, ", events, " events")));
  }
}

// With model.window_encoding: bulk. The device's answers are near those of a server that is exact,
// and theirs once it is lost; states are the same all along.
TEST_F(DeviceLoss, WindowsEncodedInBulkAreEncodedExactlyThen) {
  ModelConfig config;
  config.variant = Variant::kPublished;
  config.is_time = true;
  config.n_items = 61;
  config.hidden_size = 16;
  config.head_dim = 8;
  config.time_write = config.time_decay = config.time_query = false;
  config.max_item_list_length = 10;
  const std::string model = dir_ + "/model", data = dir_ + "/data";
  ASSERT_TRUE(WritePackage(model, MakeTinyModel(config, 5)).ok());
  const auto start = [&](const std::string& store, const std::string& program) {
    auto server = std::make_unique<ServerProcess>(
        std::vector<std::string>{"--model", model, "--data", store, "--listen", "127.0.0.1:0",
                                 "--metrics-listen", "127.0.0.1:0"},
        program);
    EXPECT_TRUE(server->WaitUntilServing()) << server->errors();
    return server;
  };
  setenv("TEST_DEVICE_DIES_AT", "EncodeWindows", 1);
  setenv("TIM4REC_MODEL_WINDOW_ENCODING", "bulk", 1);
  server_ = start(data, "device_loss_server");
  unsetenv("TIM4REC_MODEL_WINDOW_ENCODING");
  setenv("TIM4REC_MODEL_BACKEND", "cpu", 1);
  other_ = start(dir_ + "/other", "tim4rec-server");
  unsetenv("TIM4REC_MODEL_BACKEND");
  EXPECT_THAT(server_->errors(), HasSubstr("\"window_encoding\":\"bulk\""));
  EXPECT_THAT(other_->errors(), HasSubstr("\"window_encoding\":\"exact\""));

  const auto stub = Connect(*server_), other = Connect(*other_);
  const auto scores = [](v1::Recommender::Stub& of, const std::string& user) {
    v1::RecommendRequest request;
    request.set_user_id(user);
    request.set_as_of_ms(kBegin + 1'000'000);
    request.set_k(60);
    request.set_exclude_seen(false);
    v1::RecommendResponse response;
    Context context;
    EXPECT_TRUE(of.Recommend(&context, request, &response).ok());
    std::map<std::string, double> found;
    for (const auto& item : response.items()) found[item.item_id()] = item.score();
    return found;
  };
  bool differ = false;
  for (int user = 0; user < 6; ++user) {
    std::vector<std::pair<std::string, int64_t>> events;
    for (int i = 0; i <= 4 * user; ++i) {
      events.emplace_back(absl::StrCat("item", 1 + (7 * user + 5 * i) % 60), kBegin + 900 * i);
    }
    const std::string name = absl::StrCat("u", user);
    for (v1::Recommender::Stub* to : {stub.get(), other.get()}) {
      Context context;
      v1::RecordInteractionsResponse response;
      ASSERT_TRUE(to->RecordInteractions(&context, RecordOf(name, events), &response).ok());
    }
    const auto near = scores(*stub, name), exact = scores(*other, name);
    ASSERT_EQ(near.size(), 60u);
    double most = 0;
    for (const auto& [item, score] : exact) most = std::max(most, std::fabs(score));
    for (const auto& [item, score] : exact) {
      EXPECT_NEAR(near.at(item), score, 0.05 * most) << name << " " << item;
      differ = differ || near.at(item) != score;
    }
  }
  EXPECT_TRUE(differ);
  server_->Signal(SIGUSR2);
  for (int i = 0; i < 600 && HealthOf(*server_, "tim4rec.device") == 1; ++i) {
    scores(*stub, "u0");  // until the signal has arrived
  }
  EXPECT_EQ(HealthOf(*server_, "tim4rec.device"), 2);
  for (int user = 0; user < 6; ++user) {
    const std::string name = absl::StrCat("u", user);
    EXPECT_EQ(scores(*stub, name), scores(*other, name)) << name;
  }
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/metrics"),
              HasSubstr("\ntim4rec_device_lost 1\n"));
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_EQ(Verify(model, data), "");
}

}  // namespace
}  // namespace tim4rec
