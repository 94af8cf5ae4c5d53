// The real server on a disk that is full, read-only, failing or lying.
#include <signal.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"
#include "tests/server/http_get.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int kUsers = 40;
constexpr int64_t kStart = 1'600'000'000'000;

std::string UserName(int user) { return absl::StrCat("user", user); }

class Disk : public ServerTest {
 protected:
  Disk() : switch_path_(dir_ + "/switch") {
    std::ofstream(switch_path_) << '-';
    std::ofstream(dir_ + "/server.yaml") << "store: {block_cache_bytes: 1048576}\n"
                                            "pipeline: {checkpoint_interval_ms: 20}\n";
  }

  std::string data() const { return dir_ + "/data"; }
  void SetFault(char how) { std::fstream(switch_path_, std::ios::in | std::ios::out).put(how); }

  std::unique_ptr<ServerProcess> ServeOnFaultyDisk() {
    setenv("LD_PRELOAD", TIM4REC_DISK_FAULTS, 1);
    setenv("DISK_FAULTS_DIR", data().c_str(), 1);
    setenv("DISK_FAULTS_SWITCH", switch_path_.c_str(), 1);
    auto server = Serve(data(), {"--config", dir_ + "/server.yaml"});
    unsetenv("LD_PRELOAD");
    return server;
  }

  // One event for the user, later than all before it; kept if it was acknowledged or might be
  // there.
  grpc::Status Record(v1::Recommender::Stub& stub, int user, const std::string& item) {
    const Event event{item, kStart + static_cast<int64_t>(logs_[user].size()) * 3'600'000, ""};
    auto request = RecordOf(UserName(user), {{event.item_id, event.timestamp_ms}});
    request.set_ack(user % 2 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
    v1::RecordInteractionsResponse response;
    Context context;
    const grpc::Status status = stub.RecordInteractions(&context, request, &response);
    if (status.ok()) {
      AddTo(event, &logs_[user]);
      EXPECT_EQ(response.state_version(), logs_[user].size());
    }
    return status;
  }

  void RecordForAll(v1::Recommender::Stub& stub, int round) {
    for (int user = 0; user < kUsers; ++user) {
      const grpc::Status status =
          Record(stub, user, absl::StrCat("item", 1 + (user * 7 + round * 13) % 60));
      ASSERT_TRUE(status.ok()) << status.error_message();
    }
  }

  void ExpectFolds(v1::Recommender::Stub& stub) {
    for (int user = 0; user < kUsers; ++user) {
      v1::RecommendRequest request;
      request.set_user_id(UserName(user));
      request.set_as_of_ms(kStart + 86'400'000);
      v1::RecommendResponse answer;
      Context context;
      const grpc::Status status = stub.Recommend(&context, request, &answer);
      ASSERT_TRUE(status.ok()) << status.error_message();
      std::vector<std::string> top;
      for (const auto& item : answer.items()) {
        top.push_back(item.item_id() + ":" + std::to_string(std::bit_cast<uint32_t>(item.score())));
      }
      EXPECT_EQ(top, fold_.Top(logs_[user], request.as_of_ms(), 10)) << UserName(user);
    }
  }

  static bool Serving(const ServerProcess& server) {
    std::string health;
    // A HealthCheckRequest for the one service.
    const std::string name(v1::Recommender::service_full_name());
    const std::string request = std::string("\x0a") + static_cast<char>(name.size()) + name;
    EXPECT_TRUE(CallRaw(server.address(), "/grpc.health.v1.Health/Check", request, &health).ok());
    const bool serving = health == "\x08\x01";
    EXPECT_TRUE(serving || health == "\x08\x02");
    return serving;
  }

  // Health, readiness and metrics all say so, in time.
  static void ExpectServing(const ServerProcess& server, bool serving) {
    for (int wait = 0; wait < 600 && Serving(server) != serving; ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    EXPECT_EQ(Serving(server), serving) << server.errors();
    EXPECT_THAT(HttpGet(server.metrics_address(), "/readyz"),
                StartsWith(serving ? "HTTP/1.1 200" : "HTTP/1.1 503"));
    EXPECT_THAT(HttpGet(server.metrics_address(), "/healthz"), StartsWith("HTTP/1.1 200"));
    EXPECT_EQ(Metric(server, "tim4rec_ready"), serving);
    EXPECT_EQ(Metric(server, "tim4rec_store_writable"), serving);
  }

  void ExpectStoredFolds() {
    RocksDbStoreOptions options;
    options.read_only = true;
    const auto store = RocksDbStore::Open(data(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    for (int user = 0; user < kUsers; ++user) {
      EXPECT_EQ(ReadAll(**store, UserName(user)).size(), logs_[user].size());
      const auto record = (*store)->Get(UserName(user), fold_.fingerprint());
      ASSERT_TRUE(record.ok() && record->has_value()) << UserName(user);
      EXPECT_EQ((*record)->payload, fold_.State(logs_[user], logs_[user].size()));
    }
  }

  void WritesStopAndComeBack(char fault, grpc::StatusCode refused) {
    auto server = ServeOnFaultyDisk();
    auto stub = Connect(*server);
    RecordForAll(*stub, 0);
    ExpectServing(*server, true);
    for (int round = 1; round < 3; ++round) {
      SetFault(fault);
      for (int user = 0; user < kUsers; user += 4) {
        const grpc::Status status = Record(*stub, user, "item5");
        EXPECT_EQ(status.error_code(), refused) << status.error_message();
      }
      ExpectServing(*server, false);
      EXPECT_GT(Metric(*server, "tim4rec_store_failures_total{operation=\"append\"}"), 0);
      ExpectFolds(*stub);
      SetFault('-');
      ExpectServing(*server, true);
      // What was refused may have reached the disk: the answer says, and no state is without it.
      for (int user = 0; user < kUsers; user += 4) {
        const grpc::Status status = Record(*stub, user, "item5");
        ASSERT_TRUE(status.ok()) << status.error_message();
      }
      ExpectFolds(*stub);
      RecordForAll(*stub, round);
      ExpectFolds(*stub);
    }
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0) << server->errors();
    ExpectStoredFolds();
  }

  static double Metric(const ServerProcess& server, const std::string& name) {
    const std::string text = HttpGet(server.metrics_address(), "/metrics");
    const size_t at = text.find(absl::StrCat("\n", name, " "));
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + name.size() + 2);
  }

  // Flips a bit of the first of `bytes` in a file whose name ends so, and which is no table of
  // counts: those have the items too.
  void FlipBit(const std::string& extension, const std::string& bytes) {
    for (const auto& entry : std::filesystem::directory_iterator(data())) {
      if (entry.path().extension() != extension) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
      const size_t at = content.find(bytes);
      if (at == std::string::npos || content.find("tim4rec.UseSum") != std::string::npos) {
        continue;
      }
      content[at] ^= 1;
      std::ofstream(entry.path(), std::ios::binary) << content;
      return;
    }
    FAIL() << "no " << extension << " file has it";
  }

  const std::string switch_path_;
  const PlainFold fold_;
  std::vector<UserLog> logs_ = std::vector<UserLog>(kUsers);
};

TEST_F(Disk, FullStopsWritesUntilThereIsRoom) {
  WritesStopAndComeBack('f', grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(Disk, ReadOnlyStopsWritesUntilItIsNot) {
  WritesStopAndComeBack('o', grpc::StatusCode::UNAVAILABLE);
}

TEST_F(Disk, FailingWritesStopThemUntilTheyDoNot) {
  WritesStopAndComeBack('w', grpc::StatusCode::UNAVAILABLE);
}

TEST_F(Disk, FailingSyncsStopWritesUntilTheyDoNot) {
  // Every request of WritesStopAndComeBack during the fault is a durable one.
  WritesStopAndComeBack('s', grpc::StatusCode::UNAVAILABLE);
}

TEST_F(Disk, FailingReadsFailTheirUsersOnlyAndPass) {
  for (int start = 0; start < 2; ++start) {
    auto server = ServeOnFaultyDisk();
    RecordForAll(*Connect(*server), start);
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  auto server = ServeOnFaultyDisk();
  auto stub = Connect(*server);
  SetFault('r');
  v1::RecommendRequest request;
  request.set_user_id(UserName(3));
  v1::RecommendResponse answer;
  Context context;
  EXPECT_EQ(stub->Recommend(&context, request, &answer).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_GT(Metric(*server, "tim4rec_store_failures_total{operation=\"read\"}"), 0);
  SetFault('-');
  ExpectFolds(*stub);
  RecordForAll(*stub, 2);
  ExpectFolds(*stub);
}

TEST_F(Disk, FlippedBitsAreRebuiltOrNamedAndServedNever) {
  // An unknown item whose name does not compress and can be found in the table.
  const std::string marker = "marker 8fq2Zx71LmWc0";
  for (int start = 0; start < 2; ++start) {
    auto server = ServeOnFaultyDisk();
    auto stub = Connect(*server);
    RecordForAll(*stub, start);
    if (start == 0) {
      ASSERT_TRUE(Record(*stub, 7, marker).ok());
    }
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  const std::string state = fold_.State(logs_[9], logs_[9].size());
  FlipBit(".sst", state.substr(state.size() / 2, 48));
  {
    auto server = ServeOnFaultyDisk();
    auto stub = Connect(*server);
    ExpectFolds(*stub);
    EXPECT_GT(Metric(*server, "tim4rec_corrupt_states"), 0);
    server->Signal(SIGKILL);
    server->Wait();
  }
  FlipBit(".sst", marker);
  auto server = ServeOnFaultyDisk();
  auto stub = Connect(*server);
  int damaged = 0;
  for (int user = 0; user < kUsers; ++user) {
    v1::RecommendRequest request;
    request.set_user_id(UserName(user));
    v1::RecommendResponse answer;
    Context context;
    const grpc::Status status = stub->Recommend(&context, request, &answer);
    if (status.ok()) continue;
    // Those whose events lie in the same 4 KiB.
    ++damaged;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("'", UserName(user), "'")));
  }
  EXPECT_GT(damaged, 0);
  v1::RecordInteractionsResponse recorded;
  Context context;
  EXPECT_TRUE(
      stub->RecordInteractions(&context, RecordOf("another", {{"item1", 1}}), &recorded).ok());
  EXPECT_TRUE(Serving(*server));
}

TEST_F(Disk, AFlippedBitInTheLogRefusesToStart) {
  {
    auto server = ServeOnFaultyDisk();
    auto stub = Connect(*server);
    RecordForAll(*stub, 0);
    ASSERT_TRUE(Record(*stub, 4, "marker").ok());
    RecordForAll(*stub, 1);
    server->Signal(SIGKILL);
    server->Wait();
  }
  FlipBit(".log", "marker");
  ServerProcess server({"--model", kTinyModel, "--data", data(), "--listen", "127.0.0.1:0",
                        "--metrics-listen", "127.0.0.1:0"});
  EXPECT_FALSE(server.WaitUntilServing());
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.errors(), AllOf(HasSubstr("tim4rec-server: store: "), HasSubstr("orrupt")));
}

}  // namespace
}  // namespace tim4rec
