// RecommendBatch and RecommendForHistory against the real process.
#include <signal.h>

#include <atomic>
#include <fstream>
#include <map>
#include <thread>

#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr int64_t kDay = 86'400'000;

class BatchServing : public ServerTest {
 protected:
  BatchServing() : server_(Serve(dir_ + "/data")), stub_(Connect(*server_)) {}

  grpc::Status AskHistory(const v1::RecommendForHistoryRequest& request,
                          v1::RecommendForHistoryResponse* response) {
    Context context;
    return stub_->RecommendForHistory(&context, request, response);
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<v1::Recommender::Stub> stub_;
};

std::vector<std::string> Bytes(const google::protobuf::RepeatedPtrField<v1::ScoredItem>& items) {
  std::vector<std::string> bytes;
  for (const v1::ScoredItem& item : items) bytes.push_back(item.SerializeAsString());
  return bytes;
}

TEST_F(BatchServing, AHistoryIsAnsweredAsAUserWhoHasIt) {
  const int64_t now = NowMs();
  const auto record = RecordOf("u", {{"item5", now - 2 * kDay},
                                     {"item2", now - 3 * kDay},
                                     {"nobody", now - kDay},
                                     {"item5", now - 2 * kDay}});
  v1::RecommendForHistoryRequest request;
  *request.mutable_interactions() = record.interactions();
  request.mutable_options()->set_as_of_ms(now);
  request.mutable_options()->add_category_none_of("even");
  v1::RecommendForHistoryResponse ours;
  grpc::Status status = AskHistory(request, &ours);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::RecordInteractionsResponse recorded;
  Context record_context, ask_context, get_context;
  ASSERT_TRUE(stub_->RecordInteractions(&record_context, record, &recorded).ok());
  v1::RecommendRequest ask = request.options();
  ask.set_user_id("u");
  v1::RecommendResponse theirs;
  ASSERT_TRUE(stub_->Recommend(&ask_context, ask, &theirs).ok());
  EXPECT_EQ(Bytes(ours.items()), Bytes(theirs.items()));
  EXPECT_EQ(ours.items_size(), 10);
  EXPECT_EQ(ours.provenance().state_version(), 3u);
  EXPECT_EQ(ours.provenance().event_count(), 2u);
  EXPECT_EQ(ours.provenance().last_event_ms(), now - kDay);
  EXPECT_EQ(ours.provenance().tier(), v1::TIER_REBUILT);
  EXPECT_EQ(ours.provenance().model(), theirs.provenance().model());
  ASSERT_TRUE(AskHistory({}, &ours).ok());
  EXPECT_EQ(ours.provenance().tier(), v1::TIER_COLD_START);
  EXPECT_EQ(ours.items_size(), 10);
}

TEST_F(BatchServing, AFaultyHistoryIsAnsweredWithAllViolations) {
  const int64_t now = NowMs();
  v1::RecommendForHistoryRequest request;
  *request.mutable_interactions() =
      RecordOf("u", {{"item1", 1}, {"", 2}, {"item1", now + kDay}, {"~~~~", 3}}).interactions();
  request.mutable_interactions(0)->set_event_id(std::string(257, 'e'));
  request.mutable_options()->set_user_id("u");
  request.mutable_options()->set_k(0);
  request.mutable_options()->set_min_state_version(1);
  std::string bytes = request.SerializeAsString();
  bytes[bytes.find("~~~~")] = '\xff';
  std::string ignored;
  const grpc::Status status =
      CallRaw(server_->address(), "/tim4rec.v1.Recommender/RecommendForHistory", bytes, &ignored);
  EXPECT_THAT(ViolationsOf(status),
              UnorderedElementsAre(
                  HasSubstr("interactions[0].event_id: has 257 bytes (at most 256)"),
                  HasSubstr("interactions[1].item_id: is empty"),
                  HasSubstr("ms in the future (at most 300000, limits.max_clock_skew_ms)"),
                  HasSubstr("interactions[3].item_id: is not valid UTF-8"),
                  HasSubstr("options.user_id: is not empty"), HasSubstr("options.k: 0 is outside"),
                  HasSubstr("options.min_state_version: 1 is not 0")));
  v1::RecommendForHistoryRequest longest;
  for (int i = 0; i <= 10'000; ++i) longest.add_interactions()->set_item_id("item1");
  v1::RecommendForHistoryResponse response;
  EXPECT_THAT(ViolationsOf(AskHistory(longest, &response)),
              ElementsAre("interactions: has 10001 entries (at most 10000, "
                          "limits.max_interactions)"));
  longest.mutable_interactions()->RemoveLast();
  EXPECT_TRUE(AskHistory(longest, &response).ok());
  longest.mutable_options()->set_model("another");
  EXPECT_EQ(AskHistory(longest, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(BatchServing, AnswersAHundredThousandUsersInOneStream) {
  constexpr int kUsers = 100'000;
  constexpr int kKnown = 3000;
  const int64_t now = NowMs();
  const auto name = [](int u) { return "user" + std::to_string(u); };
  {
    Context context;
    auto stream = stub_->StreamInteractions(&context);
    v1::StreamInteractionsRequest batch;
    for (int u = 0; u < kKnown; ++u) {
      auto* entry = batch.add_users();
      entry->set_user_id(name(u * (kUsers / kKnown)));
      *entry->mutable_interactions() =
          RecordOf("", {{"item" + std::to_string(1 + u % 60), now - kDay},
                        {"item" + std::to_string(1 + u % 7), now - kDay / 2}})
              .interactions();
    }
    v1::StreamInteractionsResponse answer;
    ASSERT_TRUE(stream->Write(batch) && stream->Read(&answer));
    EXPECT_EQ(answer.applied(), 2u * kKnown);
    stream->WritesDone();
    ASSERT_TRUE(stream->Finish().ok());
  }
  v1::RecommendRequest options;
  options.set_k(5);
  options.set_as_of_ms(now);
  Context context;
  auto stream = stub_->RecommendBatch(&context);
  std::thread writer([&] {
    for (int u = 0; u < kUsers;) {
      v1::RecommendBatchRequest message;
      *message.mutable_options() = options;
      for (const int end = std::min(kUsers, u + 999); u < end; ++u) message.add_user_ids(name(u));
      if (!stream->Write(message)) break;
    }
    stream->WritesDone();
  });
  int next = 0;
  int cold = 0;
  std::map<std::string, std::vector<std::string>> sample;
  for (v1::RecommendBatchResponse answer; stream->Read(&answer);) {
    for (const auto& user : answer.users()) {
      ASSERT_EQ(user.user_id(), name(next));
      ASSERT_EQ(user.error_code(), 0) << user.error_message();
      ASSERT_EQ(user.items_size(), 5);
      cold += user.provenance().tier() == v1::TIER_COLD_START;
      if (next % 1111 == 0) sample[user.user_id()] = Bytes(user.items());
      ++next;
    }
  }
  writer.join();
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(next, kUsers);
  EXPECT_EQ(cold, kUsers - kKnown);
  for (const auto& [user, items] : sample) {
    options.set_user_id(user);
    v1::RecommendResponse alone;
    Context one;
    ASSERT_TRUE(stub_->Recommend(&one, options, &alone).ok());
    EXPECT_EQ(Bytes(alone.items()), items) << user;
  }
}

TEST_F(BatchServing, AConnectionHasSoManyCallsUnderWayAndOthersGoOn) {
  std::ofstream(dir_ + "/two.yaml") << "limits: {max_connection_calls: 2}\n";
  auto server = Serve(dir_ + "/other", {"--config", dir_ + "/two.yaml"});
  grpc::ChannelArguments own;
  own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto connect = [&] {
    return v1::Recommender::NewStub(
        grpc::CreateCustomChannel(server->address(), grpc::InsecureChannelCredentials(), own));
  };
  const auto full = connect();
  const auto other = connect();
  // Two streams that stay open.
  Context contexts[2];
  std::unique_ptr<grpc::ClientReaderWriter<v1::RecommendBatchRequest, v1::RecommendBatchResponse>>
      streams[2];
  v1::RecommendBatchRequest message;
  message.add_user_ids("u");
  v1::RecommendBatchResponse answer;
  for (int i = 0; i < 2; ++i) {
    streams[i] = full->RecommendBatch(&contexts[i]);
    ASSERT_TRUE(streams[i]->Write(message) && streams[i]->Read(&answer));
  }
  v1::GetUserRequest request;
  request.set_user_id("u");
  v1::GetUserResponse response;
  grpc::ClientContext short_context;
  short_context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
  EXPECT_EQ(full->GetUser(&short_context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  Context other_context;
  EXPECT_TRUE(other->GetUser(&other_context, request, &response).ok());
  streams[0]->WritesDone();
  EXPECT_TRUE(streams[0]->Finish().ok());
  Context full_context;
  EXPECT_TRUE(full->GetUser(&full_context, request, &response).ok());
  contexts[1].TryCancel();
}

TEST_F(BatchServing, ATerminatedServerEndsTheStreamAfterWhatItHasTaken) {
  Context context;
  auto stream = stub_->RecommendBatch(&context);
  std::atomic<int> sent = 0;
  std::thread writer([&] {
    v1::RecommendBatchRequest message;
    for (int u = 0; u < 1000; ++u) message.add_user_ids("user" + std::to_string(u));
    while (stream->Write(message)) ++sent;
  });
  int answered = 0;
  bool terminated = false;
  for (v1::RecommendBatchResponse answer; stream->Read(&answer);) {
    for (const auto& user : answer.users()) {
      ASSERT_EQ(user.user_id(), "user" + std::to_string(answered % 1000));
      EXPECT_EQ(user.error_code(), 0);
      ++answered;
    }
    if (answered > 3000 && !std::exchange(terminated, true)) server_->Signal(SIGTERM);
  }
  writer.join();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_GT(answered, 3000);
  EXPECT_EQ(server_->Wait(), 0) << server_->errors();
}

}  // namespace
}  // namespace tim4rec
