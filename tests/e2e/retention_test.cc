// kill -9 of the real server while retention cuts logs: nothing that was acknowledged is lost, and
// nothing is counted twice, though the removed events cannot be looked up any more.
//
//   TIM4REC_CRASH_KILLS=200 build/release/bin/e2e_retention_test     the long run (CI: 8)
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"
#include "tests/paths.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

constexpr int kClients = 3;
constexpr int kUsersOfClient = 40;
constexpr int64_t kFirstMs = 1'600'000'000'000;

int Kills() {
  const char* text = std::getenv("TIM4REC_CRASH_KILLS");
  return text == nullptr ? 8 : std::max(1, std::atoi(text));
}

// One client is the only writer of its users and sends their events in order, each request until it
// is answered; so a user's log is always a beginning of what was planned for him.
struct User {
  std::string name;
  std::vector<Event> planned;
  size_t acknowledged = 0;
  size_t sent = 0;
};

class Retention : public ServerTest {
 protected:
  Retention() {
    for (int c = 0; c < kClients; ++c) {
      clients_[c].seed(random_());
      for (int u = 0; u < kUsersOfClient; ++u) {
        User& user = users_[c].emplace_back();
        user.name = absl::StrCat("user", c, "-", u);
        for (int64_t n = 0; n < 40 * Kills(); ++n) {
          // 60 items are known.
          user.planned.push_back({absl::StrCat("item", 1 + random_() % 62), kFirstMs + 60'000 * n,
                                  random_() % 2 == 0 ? absl::StrCat("e", n) : ""});
        }
      }
    }
  }

  std::vector<std::string> RandomArguments() {
    constexpr int kMost[] = {1, 10, 30};
    constexpr int kResidents[] = {10, 100'000};
    std::ofstream(dir_ + "/server.yaml")
        << "pipeline: {workers: " << 1 + random_() % 3
        << ", max_resident_users: " << kResidents[random_() % 2]
        << ", checkpoint_interval_ms: " << random_() % 2 * 5
        << ", queue_delay_ms: 10000"  // nobody is refused, however slow all is
        << "}\nstore: {max_events_per_user: " << kMost[random_() % 3]
        << ", write_buffer_bytes: " << (random_() % 2 == 0 ? 64 << 10 : 64 << 20)
        << "}\nlog: {level: warning}\n";
    return {"--config", dir_ + "/server.yaml"};
  }

  // Events, some of them repeated, until a call fails.
  void Run(int c, const std::string& address, const std::atomic<bool>& stop) {
    std::mt19937_64& random = clients_[c];
    auto stub =
        v1::Recommender::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    while (!stop) {
      User& user = users_[c][random() % users_[c].size()];
      const size_t end = std::min(user.planned.size(), user.acknowledged + 1 + random() % 6);
      // A retry may go back beyond the cut.
      const size_t begin =
          user.acknowledged - random() % (1 + std::min<size_t>(user.acknowledged, 50));
      user.sent = std::max(user.sent, end);
      v1::RecordInteractionsRequest request;
      request.set_user_id(user.name);
      request.set_ack(random() % 4 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
      for (size_t n = begin; n < end; ++n) {
        v1::Interaction* interaction = request.add_interactions();
        interaction->set_item_id(user.planned[n].item_id);
        interaction->set_timestamp_ms(user.planned[n].timestamp_ms);
        interaction->set_event_id(user.planned[n].event_id);
      }
      v1::RecordInteractionsResponse response;
      Context context;
      const grpc::Status status = stub->RecordInteractions(&context, request, &response);
      if (!status.ok()) {
        EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
        return;
      }
      for (size_t n = begin; n < end; ++n) {
        const auto outcome = response.results(static_cast<int>(n - begin)).status();
        const bool repeat = outcome == v1::INTERACTION_STATUS_DUPLICATE ||
                            outcome == v1::INTERACTION_STATUS_EXPIRED;
        const bool stored = outcome == v1::INTERACTION_STATUS_APPLIED ||
                            outcome == v1::INTERACTION_STATUS_UNKNOWN_ITEM;
        EXPECT_TRUE(n < user.acknowledged ? repeat : repeat || stored) << outcome;
        expired_ += outcome == v1::INTERACTION_STATUS_EXPIRED;
      }
      // Stored so far: what was sent before and not answered, or nothing of it, and these.
      EXPECT_GE(response.state_version(), end);
      EXPECT_LE(response.state_version(), user.sent);
      user.acknowledged = std::max(user.acknowledged, end);
      ++answered_;
    }
  }

  void CheckStore() {
    RocksDbStoreOptions options;
    options.read_only = true;
    const auto store = RocksDbStore::Open(dir_ + "/data", options);
    ASSERT_TRUE(store.ok()) << store.status();
    for (const auto& users : users_) {
      for (const User& user : users) {
        SCOPED_TRACE(user.name);
        CheckUser(**store, user);
        if (HasFailure()) return;
      }
    }
  }

  void CheckUser(const RocksDbStore& store, const User& user) {
    UserLog log;
    for (const Event& event : user.planned) AddTo(event, &log);
    const auto lineage_of = [&](size_t events) {
      Lineage lineage = LineageOf(log, events);
      lineage.log_truncated = true;
      return lineage;
    };
    const auto truncation = store.ReadTruncation(user.name);
    ASSERT_TRUE(truncation.ok()) << truncation.status();
    const auto base = store.GetBase(user.name, fold_.fingerprint());
    ASSERT_TRUE(base.ok()) << base.status();
    ASSERT_EQ(base->has_value(), truncation->has_value());
    size_t removed = 0;
    if (*truncation) {
      removed = (*truncation)->lineage.event_count;
      ASSERT_LE(removed, user.planned.size());
      EXPECT_EQ((*truncation)->lineage, lineage_of(removed));
      EXPECT_EQ((*truncation)->last_event_ms, user.planned[removed - 1].timestamp_ms);
      EXPECT_EQ((*base)->lineage, (*truncation)->lineage);
      EXPECT_EQ((*base)->payload, fold_.State(log, removed));
      ++cut_users_;
    }
    size_t next = removed;
    for (const Event& event : ReadAll(store, user.name)) {
      ASSERT_LT(next, user.planned.size());
      EXPECT_TRUE(SameEvent(event, user.planned[next++]));
    }
    EXPECT_GE(next, user.acknowledged) << "acknowledged and lost";
    EXPECT_LE(next, user.sent);
    const auto checkpoint = store.Get(user.name, fold_.fingerprint());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    if (!*checkpoint) return;
    const size_t covered = (*checkpoint)->lineage.event_count;
    const Lineage expected = removed > 0 ? lineage_of(covered) : LineageOf(log, covered);
    // A stale one is never used.
    if (covered < removed || !((*checkpoint)->lineage == expected)) return;
    EXPECT_EQ((*checkpoint)->payload, fold_.State(log, covered));
    ++checkpoints_;
  }

  void ExpectServed(v1::Recommender::Stub& stub, const User& user) {
    SCOPED_TRACE(user.name);
    v1::RecommendRequest request;
    request.set_user_id(user.name);
    v1::RecommendResponse answer;
    Context context;
    const grpc::Status status = stub.Recommend(&context, request, &answer);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const auto stored = static_cast<int64_t>(answer.provenance().state_version());
    EXPECT_GE(stored, static_cast<int64_t>(user.acknowledged));
    const auto known = std::count_if(user.planned.begin(), user.planned.begin() + stored,
                                     [&](const Event& event) { return fold_.Knows(event); });
    EXPECT_EQ(static_cast<int64_t>(answer.provenance().event_count()), known);
    v1::GetUserRequest get;
    get.set_user_id(user.name);
    v1::GetUserResponse found;
    Context get_context;
    ASSERT_TRUE(stub.GetUser(&get_context, get, &found).ok());
    EXPECT_EQ(found.lineage().log_truncated(), found.removed_events() > 0);
    EXPECT_EQ(static_cast<int64_t>(found.event_count()), stored);
  }

  int RunVerify() {
    const std::string command = BinaryDir() + "/bin/tim4rec verify --store " + dir_ +
                                "/data --model " + kTinyModel + " --backend cpu 2>/dev/null";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::mt19937_64 random_ = PrintedRandom("retention");
  const PlainFold fold_;
  std::mt19937_64 clients_[kClients];
  std::vector<User> users_[kClients];
  std::atomic<int64_t> answered_ = 0;
  std::atomic<int64_t> expired_ = 0;
  int64_t cut_users_ = 0;
  int64_t checkpoints_ = 0;
};

TEST_F(Retention, NoKillLosesOrRepeatsAnything) {
  for (int kills = 0; kills < Kills() && !HasFailure(); ++kills) {
    SCOPED_TRACE("after " + std::to_string(kills) + " kills");
    auto server = Serve(dir_ + "/data", RandomArguments());
    if (HasFailure()) break;
    const bool term = random_() % 6 == 0;
    std::atomic<bool> stop = false;
    std::vector<std::thread> clients;
    for (int c = 0; c < kClients; ++c) {
      clients.emplace_back([&, c] { Run(c, server->address(), stop); });
    }
    // At least so many calls where all is slow, as under a sanitizer.
    const int64_t enough = answered_ + 200;
    std::this_thread::sleep_for(std::chrono::microseconds(50'000 + random_() % 400'000));
    for (int wait = 0; answered_ < enough && wait < 1000; ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    server->Signal(term ? SIGTERM : SIGKILL);
    EXPECT_EQ(server->Wait(), term ? 0 : -SIGKILL) << server->errors();
    stop = true;
    for (std::thread& client : clients) client.join();
    CheckStore();
  }
  EXPECT_EQ(RunVerify(), 0);
  EXPECT_GT(cut_users_, 0);
  EXPECT_GT(expired_, 0);
  // What is served is the fold of all events, removed ones included.
  {
    auto server = Serve(dir_ + "/data");
    auto stub = Connect(*server);
    for (const auto& users : users_) {
      for (const User& user : users) ExpectServed(*stub, user);
    }
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  checkpoints_ = 0;
  CheckStore();
  int64_t with_events = 0;
  for (const auto& users : users_) {
    with_events += std::count_if(users.begin(), users.end(),
                                 [](const User& user) { return user.acknowledged > 0; });
  }
  EXPECT_GE(checkpoints_, with_events);
  std::printf("%d kills; %lld users seen with a cut log, %lld interactions expired\n", Kills(),
              static_cast<long long>(cut_users_), static_cast<long long>(expired_));
}

TEST_F(Retention, NeedsABackendWhoseFoldsMayBeKept) {
  // LeakSanitizer crashes itself over libtorch's threads in a process that ends so early.
  ASSERT_EQ(setenv("LSAN_OPTIONS", "detect_leaks=0", 1), 0);
  ServerProcess server({"--config", RandomArguments()[1], "--model", kTinyModel, "--data",
                        dir_ + "/data", "--backend", "torch", "--listen", "127.0.0.1:0",
                        "--metrics-listen", "127.0.0.1:0"});
  EXPECT_FALSE(server.WaitUntilServing());
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_NE(server.errors().find("store.max_events_per_user"), std::string::npos)
      << server.errors();
}

}  // namespace
}  // namespace tim4rec
