#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/server/service_fixture.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

void AddEntry(const std::string& user, const std::vector<Event>& events,
              v1::StreamInteractionsRequest* batch) {
  v1::UserInteractions* entry = batch->add_users();
  entry->set_user_id(user);
  for (const Event& event : events) {
    v1::Interaction* interaction = entry->add_interactions();
    interaction->set_item_id(event.item_id);
    interaction->set_timestamp_ms(event.timestamp_ms);
    interaction->set_event_id(event.event_id);
  }
}

v1::StreamInteractionsRequest Batch(uint64_t sequence, const std::string& user,
                                    const std::vector<Event>& events) {
  v1::StreamInteractionsRequest batch;
  batch.set_sequence(sequence);
  AddEntry(user, events, &batch);
  return batch;
}

class Streams : public ServiceTest {
 protected:
  using Stream =
      grpc::ClientReaderWriter<v1::StreamInteractionsRequest, v1::StreamInteractionsResponse>;

  std::unique_ptr<Stream> Open(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    return stub_->StreamInteractions(context);
  }

  // Sends all batches and returns the answers.
  std::vector<v1::StreamInteractionsResponse> Send(
      const std::vector<v1::StreamInteractionsRequest>& batches, grpc::Status* status) {
    grpc::ClientContext context;
    auto stream = Open(&context);
    std::thread writer([&] {
      for (const auto& batch : batches) {
        if (!stream->Write(batch)) break;
      }
      stream->WritesDone();
    });
    std::vector<v1::StreamInteractionsResponse> answers;
    for (v1::StreamInteractionsResponse answer; stream->Read(&answer);) answers.push_back(answer);
    writer.join();
    *status = stream->Finish();
    return answers;
  }
};

std::vector<uint64_t> SequencesOf(const std::vector<v1::StreamInteractionsResponse>& answers) {
  std::vector<uint64_t> sequences;
  for (const auto& answer : answers) sequences.push_back(answer.sequence());
  return sequences;
}

TEST_F(Streams, EveryBatchIsAnsweredWithItsCounts) {
  Serve();
  std::vector<v1::StreamInteractionsRequest> batches(4);
  batches[0].set_sequence(70);
  AddEntry("a", {At(10, "item1"), At(20, "item2"), At(10, "item1")}, &batches[0]);
  AddEntry("b", {At(10, "item3"), At(20, "nobody")}, &batches[0]);
  AddEntry("a", {At(30, "item3"), At(20, "item2")}, &batches[0]);
  batches[1].set_sequence(3);
  AddEntry("a", {At(15, "item4"), At(40, "")}, &batches[1]);
  AddEntry("", {At(1, "item1"), At(2, "item2")}, &batches[1]);
  AddEntry("b", {At(kNow + 300'001, "item1"), At(50, "item1")}, &batches[1]);
  AddEntry("c", {}, &batches[1]);
  batches[3].set_ack(v1::ACK_DURABLE);
  AddEntry("a", {At(10, "item1")}, &batches[3]);
  // One after the other: what is folded at once is never late.
  std::vector<v1::StreamInteractionsResponse> answers;
  grpc::ClientContext context;
  auto stream = Open(&context);
  for (const auto& batch : batches) {
    stream->Write(batch);
    ASSERT_TRUE(stream->Read(&answers.emplace_back()));
  }
  stream->WritesDone();
  ASSERT_TRUE(stream->Finish().ok());
  ASSERT_THAT(SequencesOf(answers), ElementsAre(70, 3, 0, 0));
  EXPECT_EQ(answers[0].applied(), 4u);
  EXPECT_EQ(answers[0].duplicates(), 2u);
  EXPECT_EQ(answers[0].unknown_items(), 1u);
  EXPECT_EQ(answers[0].rejected_size(), 0);
  EXPECT_EQ(answers[1].late_refolded(), 1u);
  EXPECT_EQ(answers[1].applied(), 1u);
  std::vector<std::string> rejected;
  for (const auto& r : answers[1].rejected()) {
    rejected.push_back(absl::StrCat(r.user_index(), ".", r.interaction_index(), " ", r.reason()));
  }
  EXPECT_THAT(rejected,
              ElementsAre(HasSubstr("0.1 item_id: is empty"), HasSubstr("1.0 user_id: is empty"),
                          HasSubstr("1.1 user_id: is empty"), HasSubstr("2.0 timestamp_ms: ")));
  EXPECT_EQ(answers[2].ByteSizeLong(), 0u);
  EXPECT_EQ(answers[3].duplicates(), 1u);
  EXPECT_EQ(metrics_.events_rejected->Value(), 4);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("a"),
            Folded({At(10, "item1"), At(15, "item4"), At(20, "item2"), At(30, "item3")}));
  EXPECT_EQ(Stored("b"), Folded({At(10, "item3"), At(50, "item1")}));
}

TEST_F(Streams, AnswersKeepTheOrderOfTheBatches) {
  options_.workers = 2;
  Serve();
  const auto release = Block();
  grpc::ClientContext context;
  auto stream = Open(&context);
  stream->Write(Batch(1, UserOfWorker(true), {At(1, "item1")}));
  stream->Write(Batch(2, UserOfWorker(false), {At(1, "item1")}));
  // The second is complete before the first.
  WaitUntil([this] { return metrics_.events_applied->Value() == 1; });
  release();
  v1::StreamInteractionsResponse answer;
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_EQ(answer.sequence(), 1u);
  ASSERT_TRUE(stream->Read(&answer));
  EXPECT_EQ(answer.sequence(), 2u);
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(Streams, UnansweredBatchesAreBounded) {
  Serve({.max_stream_batches = 3});
  const auto release = Block();
  grpc::ClientContext context;
  auto stream = Open(&context);
  std::thread writer([&] {
    for (int i = 0; i < 20; ++i) stream->Write(Batch(i, "u", {At(i, "item1")}));
    stream->WritesDone();
  });
  WaitUntil([this] { return decoded_ == 3; });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(decoded_, 3);
  release();
  v1::StreamInteractionsResponse answer;
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(stream->Read(&answer));
    EXPECT_EQ(answer.sequence(), i);
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(Streams, AFullQueueMakesTheStreamWait) {
  options_.queue_rows = 2;
  Serve();
  const auto release = Block();
  std::vector<v1::StreamInteractionsRequest> batches(6);
  for (int i = 0; i < 6; ++i) {
    for (int u = 0; u < 7; ++u) AddEntry(absl::StrCat("u", u), {At(i, "item1")}, &batches[i]);
  }
  std::thread later([&] {
    WaitUntil([this] { return decoded_ == 1; });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    // Single calls still find room.
    auto single = Submit(NewRecommend("u"));
    release();
    EXPECT_TRUE(single->Wait().status.ok());
  });
  grpc::Status status;
  const auto answers = Send(batches, &status);
  later.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(answers.size(), 6u);
  for (const auto& answer : answers) EXPECT_EQ(answer.applied(), 7u);
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 0);
}

TEST_F(Streams, DurableBatchesShareSyncs) {
  Serve();
  const auto release = Block();
  std::vector<v1::StreamInteractionsRequest> batches(8);
  for (int i = 0; i < 8; ++i) {
    batches[i].set_ack(v1::ACK_DURABLE);
    for (int u = 0; u < 5; ++u) AddEntry(absl::StrCat("u", u), {At(i, "item1")}, &batches[i]);
  }
  std::thread later([&] {
    WaitUntil([this] { return decoded_ == 8; });
    release();
  });
  grpc::Status status;
  EXPECT_EQ(Send(batches, &status).size(), 8u);
  later.join();
  EXPECT_TRUE(status.ok());
  // The last batch may come after the others have been taken.
  EXPECT_GE(log_->synced_appends, 1);
  EXPECT_LE(log_->synced_appends, 2);
}

TEST_F(Streams, AFaultyBatchEndsTheStreamAfterTheAnswersBeforeIt) {
  Serve({.max_interactions = 3});
  std::vector<v1::StreamInteractionsRequest> batches = {Batch(1, "u", {At(1, "item1")}),
                                                        Batch(2, "u", {At(2, "item1")}),
                                                        Batch(3, "u", {At(3, "item1")})};
  AddEntry("v", {At(1, "item1"), At(2, "item1"), At(3, "item1")}, &batches[1]);
  grpc::Status status;
  EXPECT_THAT(SequencesOf(Send(batches, &status)), ElementsAre(1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("users: have 4 interactions (at most 3"));
  batches[1] = Batch(2, "u", {At(2, "item1")});
  batches[1].set_ack(static_cast<v1::Ack>(9));
  EXPECT_THAT(SequencesOf(Send(batches, &status)), ElementsAre(1));
  EXPECT_THAT(status.error_message(), HasSubstr("ack: 9 is none of"));
}

TEST_F(Streams, AFailedAppendEndsTheStreamAndRepeatingIsHarmless) {
  Serve();
  const std::vector<v1::StreamInteractionsRequest> batches = {Batch(1, "u", {At(1, "item1")}),
                                                              Batch(2, "u", {At(2, "item2")})};
  log_->append_error = absl::ResourceExhaustedError("disk full");
  grpc::Status status;
  EXPECT_TRUE(Send(batches, &status).empty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  log_->append_error = absl::OkStatus();
  EXPECT_THAT(SequencesOf(Send(batches, &status)), ElementsAre(1, 2));
  EXPECT_TRUE(status.ok());
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2")}));
}

TEST_F(Streams, CancelledStreamsEndAndCanBeRepeated) {
  std::mt19937_64 random = PrintedRandom();
  options_.workers = 2;
  options_.queue_rows = 8;
  Serve();
  std::vector<std::vector<Event>> events(30);
  for (auto& of_user : events) of_user = RandomEvents(20, &random);
  std::vector<v1::StreamInteractionsRequest> batches(20);
  for (size_t u = 0; u < events.size(); ++u) {
    for (size_t i = 0; i < 20; ++i) AddEntry(absl::StrCat("u", u), {events[u][i]}, &batches[i]);
  }
  for (int round = 0; round < 30; ++round) {
    grpc::ClientContext context;
    auto stream = Open(&context);
    // Who does not read the answers is not read either, so Write may block until the end.
    std::thread writer([&] {
      for (const auto& batch : batches) {
        if (!stream->Write(batch)) return;
      }
    });
    v1::StreamInteractionsResponse answer;
    for (uint64_t i = random() % 5; i > 0; --i) stream->Read(&answer);
    context.TryCancel();
    writer.join();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  WaitUntil([this] { return service_->in_flight() == 0; });
  grpc::Status status;
  EXPECT_EQ(Send(batches, &status).size(), 20u);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (size_t u = 0; u < events.size(); ++u) {
    EXPECT_EQ(Stored(absl::StrCat("u", u)), Folded(events[u])) << u;
  }
}

TEST_F(Streams, DrainAnswersWhatWasTakenThenEndsEveryStream) {
  Serve();
  grpc::ClientContext idle_context, busy_context, late_context;
  auto idle = Open(&idle_context);
  v1::StreamInteractionsResponse answer;
  idle->Write(Batch(1, "u", {At(1, "item1")}));
  ASSERT_TRUE(idle->Read(&answer));
  const auto release = Block();
  auto busy = Open(&busy_context);
  busy->Write(Batch(2, "u", {At(2, "item2")}));
  WaitUntil([this] { return decoded_ == 2; });
  // The batch is queued soon after it was decoded.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  service_->Drain();
  EXPECT_FALSE(idle->Read(&answer));
  EXPECT_EQ(idle->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  std::thread drain([&] { EXPECT_TRUE(pipeline_->Drain().ok()); });
  release();
  ASSERT_TRUE(busy->Read(&answer));
  EXPECT_EQ(answer.sequence(), 2u);
  EXPECT_FALSE(busy->Read(&answer));
  const grpc::Status status = busy->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("draining"));
  drain.join();
  EXPECT_EQ(Open(&late_context)->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  WaitUntil([this] { return service_->in_flight() == 0; });
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2")}));
}

TEST_F(Streams, AnyOrderAnyRepeatsAnyRestartsEqualThePlainFold) {
  std::mt19937_64 random = PrintedRandom();
  constexpr int kUsers = 2000;
  options_.workers = 2;
  options_.max_resident_users = 500;
  options_.checkpoint_interval = absl::Milliseconds(20);
  std::vector<std::vector<Event>> events(kUsers);
  std::vector<std::pair<int, Event>> all;
  for (int u = 0; u < kUsers; ++u) {
    events[u] = RandomEvents(1 + static_cast<int>(random() % 10), &random);
    for (const Event& event : events[u]) {
      for (uint64_t copies = 1 + random() % 2; copies > 0; --copies) all.emplace_back(u, event);
    }
  }
  std::shuffle(all.begin(), all.end(), random);
  // Three servers one after the other over the same store, two streams each.
  constexpr size_t kParts = 6;
  for (size_t server = 0; server < kParts / 2; ++server) {
    Serve();
    std::vector<std::thread> clients;
    for (size_t part = 2 * server; part < 2 * server + 2; ++part) {
      std::vector<v1::StreamInteractionsRequest> batches;
      const size_t end = all.size() * (part + 1) / kParts;
      for (size_t next = all.size() * part / kParts; next < end;) {
        auto& batch = batches.emplace_back();
        batch.set_ack(random() % 2 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
        for (uint64_t i = 1 + random() % 300; i > 0 && next < end; --i, ++next) {
          AddEntry(absl::StrCat("user", all[next].first), {all[next].second}, &batch);
        }
      }
      clients.emplace_back([this, batches = std::move(batches)] {
        grpc::Status status;
        EXPECT_EQ(Send(batches, &status).size(), batches.size());
        EXPECT_TRUE(status.ok()) << status.error_message();
      });
    }
    for (std::thread& client : clients) client.join();
  }
  Stop();
  // Whoever was evicted may have an older checkpoint and a tail.
  options_.max_resident_users = kUsers + 2;
  Start();
  for (int u = 0; u < kUsers; ++u) Recommend(absl::StrCat("user", u));
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int u = 0; u < kUsers; ++u) {
    const std::string user = absl::StrCat("user", u);
    const bool known = std::any_of(events[u].begin(), events[u].end(), [this](const Event& e) {
      return engine_->catalog().Find(e.item_id).has_value();
    });
    if (!known) continue;
    ASSERT_EQ(Stored(user), Folded(events[u])) << user;
  }
}

// Bytes of the largest batch of the test below; how many streams it has.
constexpr int64_t kBatchBytes = 512 << 10;
constexpr int kStreams = 6;

TEST_F(Streams, HoldNoMoreMemoryTogetherThanAllowed) {
  constexpr int64_t kMost = 4 * kBatchBytes;
  constexpr int kBatches = 8;
  constexpr int kUsers = 400;
  Serve({.max_stream_bytes = kMost});
  const auto release = Block();
  std::vector<v1::StreamInteractionsRequest> batches(kBatches);
  for (int b = 0; b < kBatches; ++b) {
    batches[b].set_sequence(b);
    for (int u = 0; u < kUsers; ++u) {
      AddEntry(absl::StrCat("user", u), {At(b + 1, "item1")}, &batches[b]);
    }
  }
  std::vector<std::thread> clients;
  std::atomic<int> answered = 0;
  for (int c = 0; c < kStreams; ++c) {
    clients.emplace_back([&] {
      grpc::Status status;
      answered += static_cast<int>(Send(batches, &status).size());
      EXPECT_TRUE(status.ok()) << status.error_message();
    });
  }
  // Nothing is done, so what is read stays; one client alone is given half.
  WaitUntil([&] { return metrics_.stream_bytes->Value() >= kMost / 2; });
  const double held = metrics_.stream_bytes->Value();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  // Each of gRPC's threads may have found room before another took it.
  EXPECT_LE(metrics_.stream_bytes->Value(), kMost / 2 + kStreams * kBatchBytes);
  EXPECT_GT(held / kBatchBytes, 0);
  EXPECT_LT(decoded_, kStreams * kBatches);
  release();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered, kStreams * kBatches);
  WaitUntil([&] { return metrics_.stream_bytes->Value() == 0; });
  EXPECT_EQ(metrics_.events_applied->Value(), kBatches * kUsers);
  EXPECT_EQ(metrics_.events_duplicate->Value(), (kStreams - 1) * kBatches * kUsers);
}

TEST_F(Streams, ALargeBatchIsTakenWhereNothingIsHeld) {
  Serve({.max_stream_bytes = 1024});
  std::vector<v1::StreamInteractionsRequest> batches(3);
  for (int u = 0; u < 100; ++u) {
    for (auto& batch : batches) AddEntry(absl::StrCat("user", u), {At(u, "item1")}, &batch);
  }
  grpc::Status status;
  EXPECT_EQ(Send(batches, &status).size(), 3u);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(metrics_.events_applied->Value(), 100);
}

TEST_F(Streams, ACancelledStreamThatWaitsForMemoryHoldsNothing) {
  Serve({.max_stream_bytes = 1024});
  const auto release = Block();
  grpc::ClientContext first_context;
  auto first = Open(&first_context);
  first->Write(Batch(1, "user", {At(1, "item1")}));
  WaitUntil([this] { return metrics_.stream_bytes->Value() > 1024 / 2; });
  const double held = metrics_.stream_bytes->Value();
  grpc::ClientContext second_context;
  auto second = Open(&second_context);
  second->Write(Batch(1, "user", {At(2, "item1")}));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(metrics_.stream_bytes->Value(), held);
  second_context.TryCancel();
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::CANCELLED);
  WaitUntil([this] { return service_->in_flight() == 1; });
  release();
  first->WritesDone();
  v1::StreamInteractionsResponse answer;
  EXPECT_TRUE(first->Read(&answer));
  EXPECT_TRUE(first->Finish().ok());
  WaitUntil([this] { return metrics_.stream_bytes->Value() == 0; });
  EXPECT_EQ(metrics_.events_applied->Value(), 1);
}

}  // namespace
}  // namespace tim4rec
