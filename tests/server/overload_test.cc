// More calls than the queue takes, through gRPC within this process.
#include <algorithm>
#include <deque>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/server/service_fixture.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

class Overload : public ServiceTest {
 protected:
  struct Call {
    ShortContext context;
    std::string user;
    v1::RecordAndRecommendResponse response;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<v1::RecordAndRecommendResponse>> reader;
    bool done = false;
  };

  ~Overload() override {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  // Records one event of a user and recommends: two rows.
  Call* Send(const std::string& user, const std::string& client) {
    Call& call = calls_.emplace_back();
    call.user = user;
    if (!client.empty()) call.context.AddMetadata("x-client", client);
    v1::RecordAndRecommendRequest request;
    request.mutable_record()->set_user_id(user);
    auto* interaction = request.mutable_record()->add_interactions();
    interaction->set_item_id("item1");
    interaction->set_timestamp_ms(1);
    call.reader = stub_->AsyncRecordAndRecommend(&call.context, request, &queue_);
    call.reader->Finish(&call.response, &call.status, &call);
    return &call;
  }

  void WaitFor(int answers) {
    for (; answers > 0; --answers) {
      void* tag;
      bool ok;
      ASSERT_TRUE(queue_.Next(&tag, &ok));
      static_cast<Call*>(tag)->done = true;
    }
  }

  // Whether nothing is answered for a while.
  bool Silent() {
    void* tag;
    bool ok;
    return queue_.AsyncNext(&tag, &ok,
                            std::chrono::system_clock::now() + std::chrono::milliseconds(30)) ==
           grpc::CompletionQueue::TIMEOUT;
  }

  static int64_t RetryDelayMs(const grpc::Status& status) {
    google::rpc::Status details;
    google::rpc::RetryInfo retry;
    if (!details.ParseFromString(status.error_details()) || details.details_size() != 1 ||
        !details.details(0).UnpackTo(&retry)) {
      return -1;
    }
    return retry.retry_delay().seconds() * 1000 + retry.retry_delay().nanos() / 1'000'000;
  }

  grpc::CompletionQueue queue_;
  std::deque<Call> calls_;
};

TEST_F(Overload, WhatIsBeyondTheQueueIsRefusedAtOnceAndTheRestIsRight) {
  constexpr int kCalls = 200;
  constexpr int kTaken = 20;
  options_.queue_rows = 2 * kTaken;
  Serve({.client_metadata = "x-client"});
  const auto release = Block();
  for (int i = 0; i < kCalls; ++i) Send(absl::StrCat("u", i), absl::StrCat("client", i));
  // While the worker does nothing.
  WaitFor(kCalls - kTaken);
  EXPECT_TRUE(Silent());
  for (const Call& call : calls_) {
    if (!call.done) continue;
    EXPECT_EQ(call.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(call.status.error_message(), HasSubstr("queue full: 40 rows of 40"));
    EXPECT_GE(RetryDelayMs(call.status), 5);
    EXPECT_LE(RetryDelayMs(call.status), 5000);
  }
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), kCalls - kTaken);
  release();
  WaitFor(kTaken);
  // Who was taken has his event and his answer, who was refused nothing.
  std::vector<std::string> refused;
  v1::RecordAndRecommendResponse first;
  for (const Call& call : calls_) {
    const bool taken = call.status.ok();
    EXPECT_EQ(GetUser(call.user).lineage.event_count, taken ? 1u : 0u) << call.user;
    if (!taken) {
      refused.push_back(call.user);
      continue;
    }
    if (first.recommend().items_size() == 0) first = call.response;
    EXPECT_EQ(call.response.record().results(0).status(), v1::INTERACTION_STATUS_APPLIED);
    EXPECT_EQ(call.response.recommend().items_size(), 10);
    EXPECT_EQ(call.response.recommend().SerializeAsString(), first.recommend().SerializeAsString());
  }
  ASSERT_EQ(refused.size(), kCalls - static_cast<size_t>(kTaken));
  // Tried again they are taken, and nothing is there twice.
  calls_.clear();
  for (const std::string& user : refused) {
    Send(user, "");
    WaitFor(1);
    ASSERT_TRUE(calls_.back().status.ok()) << calls_.back().status.error_message();
  }
  EXPECT_EQ(metrics_.events_applied->Value(), kCalls);
  EXPECT_EQ(metrics_.events_duplicate->Value(), 0);
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int i = 0; i < kCalls; ++i) {
    EXPECT_EQ(Stored(absl::StrCat("u", i)), Folded({At(1, "item1")}));
  }
}

TEST_F(Overload, OneClientDoesNotTakeTheRoomOfOthers) {
  options_.queue_rows = 64;
  Serve({.client_metadata = "x-client"});
  const auto release = Block();
  int users = 0;
  const auto flood = [&](const std::string& client, int calls, int taken) {
    for (int i = 0; i < calls; ++i) Send(absl::StrCat("u", users++), client);
    WaitFor(calls - taken);
    EXPECT_TRUE(Silent()) << client;
  };
  // Half of 32 calls, half of what is left, ….
  flood("noisy", 100, 16);
  flood("second", 50, 8);
  flood("third", 10, 4);
  flood("noisy", 30, 0);
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 0);
  EXPECT_EQ(metrics_.dropped_queue_share->Value(), 84 + 42 + 6 + 30);
  for (const Call& call : calls_) {
    if (!call.done) continue;
    EXPECT_EQ(call.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(call.status.error_message(), HasSubstr("rows of this client wait"));
    EXPECT_GE(RetryDelayMs(call.status), 5);
  }
  release();
  WaitFor(16 + 8 + 4);
  int ok = 0;
  for (const Call& call : calls_) ok += call.status.ok();
  EXPECT_EQ(ok, 16 + 8 + 4);
}

TEST_F(Overload, WithoutAKeyTheAddressIsTheClient) {
  options_.queue_rows = 64;
  Serve();
  const auto release = Block();
  for (int i = 0; i < 40; ++i) Send(absl::StrCat("u", i), absl::StrCat("claims to be ", i));
  WaitFor(40 - 16);
  EXPECT_TRUE(Silent());
  EXPECT_EQ(metrics_.dropped_queue_share->Value(), 40 - 16);
  release();
  WaitFor(16);
}

}  // namespace
}  // namespace tim4rec
