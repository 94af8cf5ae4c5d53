// Start, crash, restart, drain and refusal of the real process.
#include <signal.h>

#include <atomic>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "model/weights/package.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/server_process.h"
#include "tests/server/http_get.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kAsOf = 1'600'000'000'000;
constexpr int kUsers = 6;

using Lifecycle = ServerTest;

std::string UserName(int user) { return "user" + std::to_string(user); }

// Requests in the order they are sent: several per user, disorder and repeats among them.
std::vector<v1::RecordInteractionsRequest> Requests() {
  std::mt19937 random(5);
  std::vector<v1::RecordInteractionsRequest> requests;
  for (int r = 0; r < 60; ++r) {
    std::vector<std::pair<std::string, int64_t>> interactions;
    for (int i = 0; i < 4; ++i) {
      interactions.emplace_back("item" + std::to_string(1 + random() % 62),
                                kAsOf - 1 - static_cast<int64_t>(random() % 1000) * 3'600'000);
    }
    requests.push_back(RecordOf(UserName(r % kUsers), interactions));
    requests.back().set_ack(r % 2 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
  }
  return requests;
}

void Send(v1::Recommender::Stub& stub, const std::vector<v1::RecordInteractionsRequest>& requests) {
  for (const auto& request : requests) {
    v1::RecordInteractionsResponse response;
    Context context;
    const grpc::Status status = stub.RecordInteractions(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
}

std::map<std::string, std::vector<std::string>> AllTop(v1::Recommender::Stub& stub) {
  std::map<std::string, std::vector<std::string>> top;
  for (int u = 0; u < kUsers; ++u) top[UserName(u)] = TopOf(stub, UserName(u), kAsOf);
  return top;
}

// Checkpoints of all users as (payload, lineage hash), read after the server's end.
std::map<std::string, std::pair<std::string, uint64_t>> States(const std::string& data) {
  std::map<std::string, std::pair<std::string, uint64_t>> states;
  RocksDbStoreOptions options;
  options.read_only = true;
  const auto store = RocksDbStore::Open(data, options);
  EXPECT_TRUE(store.ok()) << store.status();
  const auto package = ModelPackage::Open(kTinyModel);
  for (int u = 0; store.ok() && u < kUsers; ++u) {
    const auto record = (*store)->Get(UserName(u), (*package)->fingerprint());
    EXPECT_TRUE(record.ok() && record->has_value()) << UserName(u);
    if (record.ok() && record->has_value()) {
      states[UserName(u)] = {(*record)->payload, (*record)->lineage.hash[0]};
    }
  }
  return states;
}

TEST_F(Lifecycle, KillNineLosesNothingAndChangesNoBit) {
  const auto requests = Requests();
  std::map<std::string, std::vector<std::string>> undisturbed;
  {
    auto server = Serve(dir_ + "/a");
    auto stub = Connect(*server);
    Send(*stub, requests);
    undisturbed = AllTop(*stub);
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  // The same, killed twice on the way; small limits make evictions part of it.
  const size_t third = requests.size() / 3;
  for (int part = 0; part < 3; ++part) {
    auto server = Serve(dir_ + "/b");
    auto stub = Connect(*server);
    Send(*stub, {requests.begin() + part * third, requests.begin() + (part + 1) * third});
    if (part < 2) {
      server->Signal(SIGKILL);
      EXPECT_EQ(server->Wait(), -SIGKILL);
      continue;
    }
    EXPECT_EQ(AllTop(*stub), undisturbed);
    server->Signal(SIGKILL);
    server->Wait();
  }
  {
    auto server = Serve(dir_ + "/b");
    auto stub = Connect(*server);
    EXPECT_EQ(AllTop(*stub), undisturbed);
    for (const auto& request : requests) {
      v1::RecordInteractionsResponse response;
      Context context;
      ASSERT_TRUE(stub->RecordInteractions(&context, request, &response).ok());
      for (const auto& result : response.results()) {
        EXPECT_EQ(result.status(), v1::INTERACTION_STATUS_DUPLICATE);
      }
    }
    EXPECT_EQ(AllTop(*stub), undisturbed);
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  EXPECT_EQ(States(dir_ + "/a"), States(dir_ + "/b"));
}

TEST_F(Lifecycle, EvictionsChangeNoBit) {
  const auto requests = Requests();
  std::map<std::string, std::vector<std::string>> top[2];
  for (const int small : {0, 1}) {
    const std::string data = dir_ + (small ? "/small" : "/large");
    std::ofstream(dir_ + "/small.yaml") << "pipeline: {workers: 1, max_resident_users: 2}\n";
    auto server = Serve(data, small ? std::vector<std::string>{"--config", dir_ + "/small.yaml"}
                                    : std::vector<std::string>{});
    auto stub = Connect(*server);
    Send(*stub, requests);
    top[small] = AllTop(*stub);
    server->Signal(SIGINT);
    EXPECT_EQ(server->Wait(), 0);
  }
  EXPECT_EQ(top[0], top[1]);
  EXPECT_EQ(States(dir_ + "/large"), States(dir_ + "/small"));
}

TEST_F(Lifecycle, SigtermFinishesWhatIsInFlightAndKeepsWhatWasAcknowledged) {
  auto server = Serve(dir_ + "/data");
  constexpr int kThreads = 16;
  std::vector<std::vector<int>> acknowledged(kThreads);
  std::vector<std::thread> threads;
  std::atomic<int> total = 0;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto stub = Connect(*server);
      for (int i = 0;; ++i) {
        v1::RecordInteractionsResponse response;
        Context context;
        const grpc::Status status = stub->RecordInteractions(
            &context, RecordOf("thread" + std::to_string(t), {{"item1", i}}), &response);
        if (!status.ok()) {
          // Refused by the server itself: a call that was in flight is answered, never cut off.
          EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
          EXPECT_EQ(status.error_message(), "the server is draining; try another one");
          break;
        }
        acknowledged[t].push_back(i);
        ++total;
      }
    });
  }
  while (total < 200) std::this_thread::yield();
  server->Signal(SIGTERM);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(server->Wait(), 0) << server->errors();

  auto again = Serve(dir_ + "/data");
  auto stub = Connect(*again);
  for (int t = 0; t < kThreads; ++t) {
    std::vector<std::pair<std::string, int64_t>> interactions;
    for (const int i : acknowledged[t]) interactions.emplace_back("item1", i);
    v1::RecordInteractionsResponse response;
    Context context;
    ASSERT_TRUE(stub->RecordInteractions(
                        &context, RecordOf("thread" + std::to_string(t), interactions), &response)
                    .ok());
    for (const auto& result : response.results()) {
      EXPECT_EQ(result.status(), v1::INTERACTION_STATUS_DUPLICATE);
    }
  }
}

TEST_F(Lifecycle, ASecondSignalEndsADrainAtOnce) {
  auto server = Serve(dir_ + "/data");
  auto stub = Connect(*server);
  // A client that does not read its answers, for which a drain waits half a minute.
  Context context;
  auto stream = stub->RecommendBatch(&context);
  v1::RecommendBatchRequest request;
  request.mutable_options()->set_k(60);
  for (int u = 0; u < 1000; ++u) request.add_user_ids(UserName(u));
  ASSERT_TRUE(stream->Write(request));
  v1::RecommendBatchResponse response;
  ASSERT_TRUE(stream->Read(&response));
  server->Signal(SIGTERM);
  while (HttpGet(server->metrics_address(), "/readyz").find(" 503 ") == std::string::npos) {
    std::this_thread::yield();
  }
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), -SIGTERM) << "the first signal's drain had ended";
  context.TryCancel();
}

TEST_F(Lifecycle, ACrashLoopShows) {
  const auto unclean_starts = [](const ServerProcess& server) {
    const std::string text = HttpGet(server.metrics_address(), "/metrics");
    const std::string name = "\ntim4rec_unclean_starts ";
    const size_t at = text.find(name);
    return at == std::string::npos ? -1 : std::stoi(text.substr(at + name.size()));
  };
  for (int start = 0; start < 3; ++start) {
    auto server = Serve(dir_ + "/data");
    EXPECT_EQ(unclean_starts(*server), start);
    server->Signal(SIGKILL);
    server->Wait();
  }
  // A start that fails is no drain: it counts too.
  auto other = Serve(dir_ + "/other");
  ServerProcess refused({"--model", kTinyModel, "--data", dir_ + "/data", "--listen",
                         other->address(), "--metrics-listen", "127.0.0.1:0"});
  EXPECT_EQ(refused.Wait(), 1);
  for (const int expected : {4, 0}) {
    auto server = Serve(dir_ + "/data");
    EXPECT_EQ(unclean_starts(*server), expected);
    const std::string line =
        "\"message\":\"the run before this one did not drain\",\"unclean_starts\":4}";
    EXPECT_EQ(server->errors().find(line) != std::string::npos, expected == 4);
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
}

TEST_F(Lifecycle, ASecondServerOnTheSameDataRefuses) {
  auto first = Serve(dir_ + "/data");
  ServerProcess second({"--model", kTinyModel, "--data", dir_ + "/data", "--listen", "127.0.0.1:0",
                        "--metrics-listen", "127.0.0.1:0"});
  EXPECT_FALSE(second.WaitUntilServing());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.errors(), AllOf(HasSubstr("tim4rec-server: store: "), HasSubstr("/data")));
}

TEST_F(Lifecycle, PortsInUseRefuse) {
  auto first = Serve(dir_ + "/data");
  ServerProcess grpc({"--model", kTinyModel, "--data", dir_ + "/other", "--listen",
                      first->address(), "--metrics-listen", "127.0.0.1:0"});
  EXPECT_EQ(grpc.Wait(), 1);
  EXPECT_THAT(grpc.errors(), HasSubstr("listen: cannot bind " + first->address()));
  ServerProcess metrics({"--model", kTinyModel, "--data", dir_ + "/other", "--listen",
                         "127.0.0.1:0", "--metrics-listen", first->metrics_address()});
  EXPECT_EQ(metrics.Wait(), 1);
  EXPECT_THAT(metrics.errors(), HasSubstr("metrics_listen: cannot bind"));
}

TEST_F(Lifecycle, BadFlagsAndConfigurationsExitWithTwo) {
  std::ofstream(dir_ + "/bad.yaml") << "pipeline: {max_bach: 3}\nlisten: nowhere\n";
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--nonsense"}, "nonsense"},
      {{"--model", kTinyModel}, "store.dir: is empty"},
      {{"--data", dir_}, "model.dir: is empty"},
      {{"--config", dir_ + "/bad.yaml"}, "pipeline.max_bach: unknown key"},
      {{"--config", dir_ + "/absent.yaml"}, "absent.yaml"},
      {{"--model", kTinyModel, "--data", dir_, "--listen", "nowhere"}, "listen: \"nowhere\""},
  };
  for (const auto& [arguments, message] : cases) {
    ServerProcess server(arguments);
    EXPECT_EQ(server.Wait(), 2) << message;
    EXPECT_THAT(server.errors(), HasSubstr(message));
  }
}

TEST_F(Lifecycle, ModelsThatDoNotOpenExitWithOne) {
  for (const auto& [model, backend, message] :
       {std::tuple{dir_ + "/absent", "auto", "absent"}, {kTinyModel, "abacus", "abacus"}}) {
    ServerProcess server({"--model", model, "--data", dir_ + "/data", "--backend", backend,
                          "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
    EXPECT_EQ(server.Wait(), 1);
    EXPECT_THAT(server.errors(), AllOf(HasSubstr("tim4rec-server: model: "), HasSubstr(message)));
  }
}

TEST_F(Lifecycle, PrintConfigShowsTheEffectiveOne) {
  std::ofstream(dir_ + "/my.yaml") << "pipeline: {max_batch: 17}\n";
  ServerProcess server({"--config", dir_ + "/my.yaml", "--model", "m", "--print-config"});
  EXPECT_EQ(server.Wait(), 0);
  EXPECT_THAT(server.output(), AllOf(HasSubstr("max_batch: 17"), HasSubstr("dir: m"),
                                     HasSubstr("max_clock_skew_ms: 300000")));
}

}  // namespace
}  // namespace tim4rec
