// RecommendBatch, and RecommendForHistory beside it, through gRPC within this process.
#include <algorithm>
#include <thread>

#include "gmock/gmock.h"
#include "tests/server/service_fixture.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

class BatchStreams : public ServiceTest {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::RecommendBatchRequest, v1::RecommendBatchResponse>;

  static v1::RecommendBatchRequest Message(const std::vector<std::string>& users) {
    v1::RecommendBatchRequest message;
    for (const std::string& user : users) message.add_user_ids(user);
    return message;
  }

  // Sends all messages and returns the users' answers.
  std::vector<v1::UserRecommendation> Send(const std::vector<v1::RecommendBatchRequest>& messages,
                                           grpc::Status* status) {
    ShortContext context;
    auto stream = stub_->RecommendBatch(&context);
    std::thread writer([&] {
      for (const auto& message : messages) {
        if (!stream->Write(message)) break;
      }
      stream->WritesDone();
    });
    std::vector<v1::UserRecommendation> answers;
    for (v1::RecommendBatchResponse answer; stream->Read(&answer);) {
      for (auto& user : *answer.mutable_users()) answers.push_back(std::move(user));
    }
    writer.join();
    *status = stream->Finish();
    return answers;
  }

  // What Recommend says.
  v1::RecommendResponse Ask(v1::RecommendRequest request, const std::string& user) {
    request.set_user_id(user);
    v1::RecommendResponse response;
    ShortContext context;
    const grpc::Status status = stub_->Recommend(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

std::vector<std::string> Bytes(const google::protobuf::RepeatedPtrField<v1::ScoredItem>& items) {
  std::vector<std::string> bytes;
  for (const v1::ScoredItem& item : items) bytes.push_back(item.SerializeAsString());
  return bytes;
}

TEST_F(BatchStreams, AnswerEveryUserInOrderAsRecommendDoes) {
  std::mt19937_64 random = PrintedRandom();
  options_.workers = 2;
  options_.max_resident_users = 30;
  Serve();
  std::vector<std::string> users;
  for (int u = 0; u < 300; ++u) {
    users.push_back(absl::StrCat("u", u));
    if (u % 7 != 0) Record(users.back(), RandomEvents(1 + u % 9, &random));
  }
  std::shuffle(users.begin(), users.end(), random);
  users.insert(users.end(), users.begin(), users.begin() + 20);  // some twice
  std::vector<v1::RecommendBatchRequest> messages;
  for (size_t at = 0; at < users.size();) {
    const size_t end = std::min<size_t>(users.size(), at + random() % 50);
    messages.push_back(Message({users.begin() + at, users.begin() + end}));  // or none
    at = end;
  }
  v1::RecommendRequest options;
  options.set_k(7);
  options.set_as_of_ms(kNow);
  options.add_exclude_item_ids("item3");
  *messages[0].mutable_options() = options;
  messages.back().mutable_options()->set_k(0);  // of the first message only
  grpc::Status status;
  const auto answers = Send(messages, &status);
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(answers.size(), users.size());
  for (size_t i = 0; i < users.size(); ++i) {
    EXPECT_EQ(answers[i].user_id(), users[i]);
    EXPECT_EQ(answers[i].error_code(), 0) << answers[i].error_message();
    const v1::RecommendResponse alone = Ask(options, users[i]);
    EXPECT_EQ(Bytes(answers[i].items()), Bytes(alone.items())) << users[i];
    EXPECT_EQ(answers[i].items_size(), 7);
    EXPECT_EQ(answers[i].provenance().state_version(), alone.provenance().state_version());
    EXPECT_EQ(answers[i].provenance().model(), alone.provenance().model());
  }
}

TEST_F(BatchStreams, AnErrorOfAUserIsInItsPlace) {
  Serve();
  Record("good", {At(1, "item1")});
  v1::RecommendBatchRequest message =
      Message({"good", "", std::string(257, 'x'), "stranger", "good"});
  message.mutable_options()->set_min_state_version(1);
  grpc::Status status;
  const auto answers = Send({message}, &status);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<int> codes;
  for (const auto& answer : answers) codes.push_back(answer.error_code());
  // A version that is not reached is an answer at once: the others do not wait for it.
  EXPECT_THAT(codes,
              ElementsAre(0, grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::INVALID_ARGUMENT,
                          grpc::StatusCode::FAILED_PRECONDITION, 0));
  EXPECT_THAT(answers[1].error_message(), HasSubstr("user_id: is empty (1 to 256 bytes"));
  EXPECT_THAT(answers[2].error_message(), HasSubstr("user_id: has 257 bytes (at most 256)"));
  EXPECT_THAT(answers[3].error_message(), HasSubstr("1 is not reached, the user is at 0"));
  EXPECT_EQ(answers[2].user_id(), "");
  EXPECT_EQ(answers[3].user_id(), "stranger");
  EXPECT_EQ(answers[4].items_size(), 10);

  log_->read_error = absl::DataLossError("event of user cold fails its checksum");
  const auto damaged = Send({Message({"good", "cold"})}, &status);
  EXPECT_TRUE(status.ok());
  ASSERT_EQ(damaged.size(), 2u);
  EXPECT_EQ(damaged[0].error_code(), 0);
  EXPECT_EQ(damaged[1].error_code(), grpc::StatusCode::DATA_LOSS);
}

TEST_F(BatchStreams, FaultyOptionsEndTheStreamWithAllViolations) {
  Serve();
  v1::RecommendBatchRequest message = Message({"u"});
  message.mutable_options()->set_k(1001);
  message.mutable_options()->set_user_id("u");
  message.mutable_options()->add_category_any_of("");
  grpc::Status status;
  EXPECT_TRUE(Send({message}, &status).empty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(
      status.error_message(),
      testing::AllOf(HasSubstr("options.k: 1001"), HasSubstr("options.user_id: is not empty"),
                     HasSubstr("options.category_any_of[0]: is empty")));
  message = Message({"u"});
  message.mutable_options()->set_model("another");
  EXPECT_TRUE(Send({message}, &status).empty());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_message(), HasSubstr("options.model: "));
  // What came before a message that is too long is answered.
  const std::vector<std::string> many(1001, "v");
  EXPECT_EQ(Send({Message({"u", "v"}), Message(many)}, &status).size(), 2u);
  EXPECT_THAT(status.error_message(), HasSubstr("user_ids: has 1001 ids (at most 1000"));
}

TEST_F(BatchStreams, AFullQueueMakesTheStreamWait) {
  options_.queue_rows = 4;
  Serve();
  const auto release = Block();
  std::vector<std::string> users;
  for (int u = 0; u < 100; ++u) users.push_back(absl::StrCat("u", u));
  std::thread later([&] {
    WaitUntil([this] { return decoded_ == 1; });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    auto single = Submit(NewRecommend("u"));  // still finds room
    release();
    EXPECT_TRUE(single->Wait().status.ok());
  });
  grpc::Status status;
  const auto answers = Send({Message(users)}, &status);
  later.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(answers.size(), 100u);
  for (size_t u = 0; u < 100; ++u) EXPECT_EQ(answers[u].user_id(), users[u]);
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 0);
}

TEST_F(BatchStreams, AClientThatDoesNotReadIsNotRead) {
  Serve();
  ShortContext context;
  auto stream = stub_->RecommendBatch(&context);
  std::atomic<int> written = 0;
  v1::RecommendBatchRequest message = Message(std::vector<std::string>(1000, "stranger"));
  message.mutable_options()->set_k(59);
  std::thread writer([&] {
    while (written < 200 && stream->Write(message)) ++written;
  });
  int before = -1;
  WaitUntil([&] {  // until nothing moves any more
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return std::exchange(before, written) == written && written > 0;
  });
  EXPECT_LT(written, 100);
  // As many users as were computed, and not all that were sent.
  EXPECT_LT(metrics_.lookups_cold_start->Value(), 50'000);
  context.TryCancel();
  writer.join();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  WaitUntil([this] { return service_->in_flight() == 0; });
}

TEST_F(BatchStreams, CancellationFreesEverything) {
  std::mt19937_64 random = PrintedRandom();
  options_.workers = 2;
  options_.queue_rows = 64;
  Serve();
  for (int u = 0; u < 200; ++u) Record(absl::StrCat("u", u), RandomEvents(3, &random));
  std::vector<std::string> users;
  for (int i = 0; i < 1000; ++i) users.push_back(absl::StrCat("u", random() % 300));
  for (int round = 0; round < 30; ++round) {
    ShortContext context;
    auto stream = stub_->RecommendBatch(&context);
    std::thread writer([&] {
      for (int i = 0; i < 20; ++i) {
        if (!stream->Write(Message(users))) return;
      }
    });
    v1::RecommendBatchResponse answer;
    for (uint64_t i = random() % 5; i > 0; --i) stream->Read(&answer);
    context.TryCancel();
    writer.join();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  WaitUntil([this] { return service_->in_flight() == 0; });
  grpc::Status status;
  EXPECT_EQ(Send({Message(users)}, &status).size(), 1000u);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(BatchStreams, DrainAnswersWhatWasTakenThenEndsTheStream) {
  Serve();
  ShortContext idle_context, busy_context;
  auto idle = stub_->RecommendBatch(&idle_context);
  v1::RecommendBatchResponse answer;
  idle->Write(Message({"u"}));
  ASSERT_TRUE(idle->Read(&answer));
  const auto release = Block();
  auto busy = stub_->RecommendBatch(&busy_context);
  busy->Write(Message({"v", "w"}));
  WaitUntil([this] { return decoded_ == 2; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  service_->Drain();
  EXPECT_FALSE(idle->Read(&answer));
  EXPECT_EQ(idle->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  std::thread drain([&] { EXPECT_TRUE(pipeline_->Drain().ok()); });
  release();
  int answered = 0;
  while (busy->Read(&answer)) answered += answer.users_size();
  EXPECT_EQ(answered, 2);
  EXPECT_EQ(busy->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  drain.join();
}

TEST_F(BatchStreams, AScanDoesNotPushOutThoseWhoComeAgain) {
  options_.max_resident_users = 64;
  options_.max_batch = 8;  // far fewer than can be resident, as ever
  Serve();
  std::vector<std::string> all;
  for (int u = 0; u < 500; ++u) {
    all.push_back(absl::StrCat("u", u));
    Record(all.back(), {At(1, "item1"), At(2, "item2")});
  }
  std::vector<std::string> hot;
  for (int u = 0; u < 30; ++u) hot.push_back(absl::StrCat("u", 10 * u));
  for (const std::string& user : hot) Recommend(user);
  grpc::Status status;
  // Those who are hot are not asked for: the scan is over the others.
  std::vector<std::string> cold;
  for (const std::string& user : all) {
    if (std::find(hot.begin(), hot.end(), user) == hot.end()) cold.push_back(user);
  }
  EXPECT_EQ(Send({Message(cold)}, &status).size(), cold.size());
  EXPECT_TRUE(status.ok());
  for (const std::string& user : hot) EXPECT_EQ(Recommend(user).tier, Tier::kHot) << user;
}

}  // namespace
}  // namespace tim4rec
