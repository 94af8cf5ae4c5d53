// kill -9 of the real server at random moments, under random traffic from several clients.
//
//   TIM4REC_CRASH_KILLS=200 build/release/bin/e2e_crash_test     the long run (CI: 10)
//   TIM4REC_TEST_SEED=N                                          the same events again
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/crash_traffic.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"
#include "tests/store/store_fixture.h"
#include "tests/store/use_counts.h"

namespace tim4rec {
namespace {

constexpr int kUsers = 3000;

int Kills() {
  const char* text = std::getenv("TIM4REC_CRASH_KILLS");
  return text == nullptr ? 10 : std::max(1, std::atoi(text));
}

class Crash : public ServerTest {
 protected:
  Crash() : traffic_(kUsers, std::clamp(Kills(), 10, 60), random_) {}

  std::string data() const { return dir_ + "/data"; }

  // Evictions, checkpoints and flushes at every pace.
  std::vector<std::string> RandomArguments() {
    constexpr int kResidents[] = {20, 400, 100'000};
    constexpr int kIntervals[] = {0, 10, 300};
    constexpr int kBuffers[] = {64 << 10, 1 << 20, 64 << 20};
    std::ofstream(dir_ + "/server.yaml")
        << "pipeline: {workers: " << 1 + random_() % 3
        << ", max_resident_users: " << kResidents[random_() % 3]
        << ", checkpoint_interval_ms: " << kIntervals[random_() % 3]
        << "}\nstore: {write_buffer_bytes: " << kBuffers[random_() % 3]
        << ", block_cache_bytes: 4194304}\nlog: {level: warning}\n";
    return {"--config", dir_ + "/server.yaml"};
  }

  // Sends from all clients for a while, then ends the server.
  void Disturb(ServerProcess& server, double share, int signal) {
    std::atomic<bool> stop = false;
    std::vector<std::thread> clients;
    for (int c = 0; c < CrashTraffic::kClients; ++c) {
      clients.emplace_back([&, c] { traffic_.Run(c, server.address(), share, stop); });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random_() % 300'000));
    server.Signal(signal);
    const int ended = server.Wait();
    EXPECT_EQ(ended, signal == SIGKILL ? -SIGKILL : 0) << server.errors();
    stop = true;
    for (std::thread& client : clients) client.join();
  }

  void KillWhileStarting() {
    ServerProcess server({"--config", dir_ + "/server.yaml", "--model", kTinyModel, "--data",
                          data(), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
    std::this_thread::sleep_for(std::chrono::microseconds(random_() % 100'000));
    server.Signal(SIGKILL);
    EXPECT_EQ(server.Wait(), -SIGKILL);
  }

  // Reads the store while no server runs: every acknowledged event is there and nothing that was
  // not sent; a checkpoint whose lineage is that of the log's beginning is the fold of it.
  void CheckStore() {
    RocksDbStoreOptions options;
    options.read_only = true;
    const auto store = RocksDbStore::Open(data(), options);
    ASSERT_TRUE(store.ok()) << store.status();
    EXPECT_EQ(StoredUse(**store), LoggedUse(**store));
    logs_.assign(kUsers, {});
    for (int user = 0; user < kUsers && !HasFailure(); ++user) {
      SCOPED_TRACE(CrashTraffic::UserName(user));
      UserLog& log = logs_[user];
      for (const Event& event : ReadAll(**store, CrashTraffic::UserName(user))) {
        const Position position = PositionOf(event);
        EXPECT_TRUE(log.empty() || log.rbegin()->first < position) << "twice, or out of order";
        const auto planned = traffic_.planned(user).find(position);
        ASSERT_TRUE(planned != traffic_.planned(user).end()) << "nobody's event";
        EXPECT_TRUE(SameEvent(planned->second, event));
        EXPECT_TRUE(traffic_.sent(user, position)) << "not sent so far";
        AddTo(event, &log);
      }
      for (const auto& [position, event] : traffic_.planned(user)) {
        EXPECT_TRUE(!traffic_.acknowledged(user, position) || log.count(position) == 1)
            << "acknowledged and lost";
      }
      EXPECT_GE(log.size(), traffic_.version(user));
      CheckCheckpoint(**store, user);
    }
  }

  void CheckCheckpoint(const RocksDbStore& store, int user) {
    const auto record = store.Get(CrashTraffic::UserName(user), fold_.fingerprint());
    ASSERT_TRUE(record.ok()) << record.status();
    if (!record->has_value()) return;
    const size_t covered = (*record)->lineage.event_count;
    if ((*record)->lineage == LineageOf(logs_[user], covered)) {
      EXPECT_EQ((*record)->payload, fold_.State(logs_[user], covered));
      ++checkpoints_compared_;
      whole_checkpoints_ += covered == logs_[user].size();
    } else {
      ++checkpoints_overtaken_;  // by late events: nothing may be folded onto it
    }
  }

  // What the restarted server serves is the fold of what CheckStore found.
  void CheckServed(v1::Recommender::Stub& stub) {
    for (int n = 0; n < 60; ++n) {
      const int user = static_cast<int>(random_() % kUsers);
      SCOPED_TRACE(CrashTraffic::UserName(user));
      const UserLog& log = logs_[user];
      v1::GetUserRequest get;
      get.set_user_id(CrashTraffic::UserName(user));
      v1::GetUserResponse found;
      Context get_context;
      ASSERT_TRUE(stub.GetUser(&get_context, get, &found).ok());
      const Lineage lineage = LineageOf(log, log.size());
      EXPECT_EQ(found.event_count(), log.size());
      EXPECT_EQ(found.lineage().hash(),
                absl::StrFormat("%016x%016x", lineage.hash[0], lineage.hash[1]));

      v1::RecommendRequest request;
      request.set_user_id(get.user_id());
      request.set_k(10);
      request.set_as_of_ms(CrashTraffic::kNewestMs + 1);
      request.set_min_state_version(traffic_.version(user));
      v1::RecommendResponse answer;
      Context context;
      const grpc::Status status = stub.Recommend(&context, request, &answer);
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(answer.provenance().state_version(), log.size());
      ++tiers_[answer.provenance().tier()];
      if (std::none_of(log.begin(), log.end(),
                       [&](const auto& entry) { return fold_.Knows(entry.second); })) {
        EXPECT_EQ(answer.provenance().tier(), v1::TIER_COLD_START);
        continue;
      }
      std::vector<std::string> top;
      for (const auto& item : answer.items()) {
        top.push_back(item.item_id() + ":" + std::to_string(std::bit_cast<uint32_t>(item.score())));
      }
      EXPECT_EQ(top, fold_.Top(log, request.as_of_ms(), 10));
    }
  }

  std::mt19937_64 random_ = PrintedRandom("crash");
  const PlainFold fold_;
  CrashTraffic traffic_;
  std::vector<UserLog> logs_;  // as found in the store
  int64_t checkpoints_compared_ = 0;
  int64_t checkpoints_overtaken_ = 0;
  int64_t whole_checkpoints_ = 0;  // of the last CheckStore
  std::map<int, int64_t> tiers_;
};

TEST_F(Crash, NoKillLosesRepeatsOrChangesAnything) {
  const int wanted = Kills();
  int terms = 0;
  for (int kills = 0; kills < wanted && !HasFailure();) {
    SCOPED_TRACE("after " + std::to_string(kills) + " kills");
    const std::vector<std::string> arguments = RandomArguments();
    if (kills > 0 && random_() % 8 == 0) {
      KillWhileStarting();
      ++kills;
    }
    auto server = Serve(data(), arguments);
    if (HasFailure()) break;
    if (!logs_.empty()) CheckServed(*Connect(*server));
    const bool term = random_() % 6 == 0;
    Disturb(*server, (kills + 1.0) / (wanted + 1.0), term ? SIGTERM : SIGKILL);
    (term ? terms : kills) += 1;
    CheckStore();
  }
  // All of it once more, whatever had arrived; then every state is the fold of every event.
  {
    auto server = Serve(data(), RandomArguments());
    const grpc::Status sent = traffic_.SendAll(server->address());
    ASSERT_TRUE(sent.ok()) << sent.error_message();
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  whole_checkpoints_ = 0;
  CheckStore();
  EXPECT_EQ(whole_checkpoints_, kUsers);
  size_t events = 0;
  for (int user = 0; user < kUsers; ++user) {
    EXPECT_EQ(logs_[user].size(), traffic_.planned(user).size());
    events += logs_[user].size();
  }
  std::printf(
      "%d kills, %d drains, %zu events of %d users; acknowledged requests of one user: %lld "
      "durable, %lld applied; checkpoints: %lld equal to the fold, %lld overtaken by late events; "
      "answers from tier hot %lld, stored %lld, rebuilt %lld, cold start %lld\n",
      wanted, terms, events, kUsers, static_cast<long long>(traffic_.acknowledged_calls(true)),
      static_cast<long long>(traffic_.acknowledged_calls(false)),
      static_cast<long long>(checkpoints_compared_), static_cast<long long>(checkpoints_overtaken_),
      static_cast<long long>(tiers_[v1::TIER_HOT]), static_cast<long long>(tiers_[v1::TIER_STORED]),
      static_cast<long long>(tiers_[v1::TIER_REBUILT]),
      static_cast<long long>(tiers_[v1::TIER_COLD_START]));
}

}  // namespace
}  // namespace tim4rec
