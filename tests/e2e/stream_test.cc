// StreamInteractions against the real process: killed, drained, resumed.
#include <signal.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {
namespace {

constexpr int64_t kStart = 1'600'000'000'000;
constexpr int kUsers = 200;

using Streaming = ServerTest;

std::vector<v1::StreamInteractionsRequest> Batches(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<v1::StreamInteractionsRequest> batches(count);
  for (int b = 0; b < count; ++b) {
    batches[b].set_sequence(b);
    batches[b].set_ack(b % 3 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
    for (int e = 0; e < 40; ++e) {
      auto* entry = batches[b].add_users();
      entry->set_user_id("user" + std::to_string(random() % kUsers));
      auto* interaction = entry->add_interactions();
      interaction->set_item_id("item" + std::to_string(1 + random() % 62));
      // Mostly in order.
      interaction->set_timestamp_ms(kStart + (b * 40 + e) * 1000 -
                                    (random() % 10 == 0 ? random() % 100'000 : 0));
    }
  }
  return batches;
}

// Sends batches from `first` on until the stream ends or all are answered. Calls `on_answer` with
// each answered sequence. Returns the first batch without an answer.
size_t SendFrom(v1::Recommender::Stub& stub,
                const std::vector<v1::StreamInteractionsRequest>& batches, size_t first,
                const std::function<void(size_t)>& on_answer, grpc::Status* status) {
  Context context;
  auto stream = stub.StreamInteractions(&context);
  std::thread writer([&] {
    for (size_t b = first; b < batches.size(); ++b) {
      if (!stream->Write(batches[b])) return;
    }
    stream->WritesDone();
  });
  size_t next = first;
  for (v1::StreamInteractionsResponse answer; stream->Read(&answer); ++next) {
    EXPECT_EQ(answer.sequence(), next);
    EXPECT_EQ(
        answer.applied() + answer.duplicates() + answer.late_refolded() + answer.unknown_items(),
        40u);
    on_answer(next);
  }
  writer.join();
  *status = stream->Finish();
  return next;
}

// The checkpoints in `data` are what folding all events in order gives.
void ExpectPlainFolds(const std::string& data,
                      const std::vector<v1::StreamInteractionsRequest>& batches) {
  std::map<std::string, UserLog> logs;
  for (const auto& batch : batches) {
    for (const auto& entry : batch.users()) {
      AddTo({entry.interactions(0).item_id(), entry.interactions(0).timestamp_ms(), ""},
            &logs[entry.user_id()]);
    }
  }
  const PlainFold fold;
  RocksDbStoreOptions options;
  options.read_only = true;
  const auto store = RocksDbStore::Open(data, options);
  ASSERT_TRUE(store.ok()) << store.status();
  for (const auto& [user, log] : logs) {
    const auto record = (*store)->Get(user, fold.fingerprint());
    ASSERT_TRUE(record.ok() && record->has_value()) << user;
    EXPECT_EQ((*record)->lineage.event_count, log.size()) << user;
    EXPECT_EQ((*record)->payload, fold.State(log, log.size())) << user;
  }
}

TEST_F(Streaming, AStreamThatIsKilledAndResumedEqualsThePlainFold) {
  const uint64_t seed = std::random_device()();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto batches = Batches(300, seed);
  size_t next = 0;
  int kills = 0;
  while (next < batches.size()) {
    auto server = Serve(dir_ + "/data");
    auto stub = Connect(*server);
    const size_t kill_at = kills < 5 ? next + random() % 50 : batches.size();
    grpc::Status status;
    next = SendFrom(
        *stub, batches, next,
        [&](size_t sequence) {
          if (sequence == kill_at) server->Signal(SIGKILL);
        },
        &status);
    if (kill_at < batches.size()) {
      ++kills;
      EXPECT_FALSE(status.ok());
      EXPECT_EQ(server->Wait(), -SIGKILL);
      continue;
    }
    EXPECT_TRUE(status.ok()) << status.error_message();
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  EXPECT_EQ(kills, 5);
  // Users who were not touched after the last kill have no checkpoint of their whole log yet.
  {
    auto server = Serve(dir_ + "/data");
    auto stub = Connect(*server);
    grpc::Status status;
    EXPECT_EQ(SendFrom(
                  *stub, batches, 0, [](size_t) {}, &status),
              batches.size());
    EXPECT_TRUE(status.ok()) << status.error_message();
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  ExpectPlainFolds(dir_ + "/data", batches);
}

TEST_F(Streaming, ATerminatedServerEndsTheStreamAndKeepsWhatItAnswered) {
  const auto batches = Batches(3000, 7);
  auto server = Serve(dir_ + "/data");
  auto stub = Connect(*server);
  Context idle_context;
  auto idle = stub->StreamInteractions(&idle_context);
  grpc::Status status;
  const size_t next = SendFrom(
      *stub, batches, 0,
      [&](size_t sequence) {
        if (sequence == 20) server->Signal(SIGTERM);
      },
      &status);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_EQ(idle->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(server->Wait(), 0) << server->errors();
  ASSERT_LT(next, batches.size());

  auto again = Serve(dir_ + "/data");
  auto stub_again = Connect(*again);
  Context context;
  auto stream = stub_again->StreamInteractions(&context);
  for (size_t b = 0; b < next; ++b) {
    stream->Write(batches[b]);
    v1::StreamInteractionsResponse answer;
    ASSERT_TRUE(stream->Read(&answer));
    EXPECT_EQ(answer.duplicates(), 40u);
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

}  // namespace
}  // namespace tim4rec
