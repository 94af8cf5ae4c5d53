#include "server/service/codec.h"

#include <grpcpp/support/byte_buffer.h>

#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr int64_t kNow = 1'700'000'000'000;

class Codec : public testing::Test {
 protected:
  Codec() {
    std::vector<Item> items(4);
    for (int i = 1; i < 4; ++i) items[i].id = absl::StrCat("item", i);
    catalog_ = *ItemCatalog::Create(std::move(items));
    context_.limits = &limits_;
    context_.catalog = &catalog_;
    context_.now_ms = kNow;
    context_.broken = &broken_;
  }

  std::vector<std::string> Reject(const v1::RecordInteractionsRequest& request) {
    std::vector<std::string> rejections;
    command_ = {};
    DecodeRecord(request, context_, &command_, &rejections, &faults_);
    return rejections;
  }

  absl::Status Recommend(const v1::RecommendRequest& request) {
    recommend_ = {};
    DecodeRecommend(request, context_, &recommend_, &faults_);
    return faults_.ToStatus();
  }

  RequestLimits limits_{.max_clock_skew_ms = 1000, .max_interactions = 5, .max_item_ids = 3};
  ItemCatalog catalog_;
  BrokenText broken_;
  DecodeContext context_{};
  RecordCommand command_;
  RecommendCommand recommend_;
  Violations faults_;
};

grpc::ByteBuffer Bytes(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// The wire form of `message` with every "~" in it replaced by a byte that is no UTF-8.
grpc::ByteBuffer Broken(const google::protobuf::Message& message) {
  std::string bytes = message.SerializeAsString();
  for (char& c : bytes) {
    if (c == '~') c = '\xff';
  }
  return Bytes(bytes);
}

void AddInteraction(const std::string& item, int64_t timestamp_ms, const std::string& event,
                    v1::RecordInteractionsRequest* request) {
  auto* interaction = request->add_interactions();
  interaction->set_item_id(item);
  interaction->set_timestamp_ms(timestamp_ms);
  interaction->set_event_id(event);
}

TEST_F(Codec, FaultyInteractionsAreLeftOutAndTheRestGoesIn) {
  v1::RecordInteractionsRequest request;
  AddInteraction("item1", kNow + 1000, "", &request);
  AddInteraction("", kNow, "", &request);
  AddInteraction(std::string(257, 'a'), kNow, "", &request);
  AddInteraction("item2", kNow + 1001, "", &request);
  AddInteraction(std::string(256, 'b'), kNow, std::string(257, 'e'), &request);
  EXPECT_THAT(Reject(request), ElementsAre("", "item_id: is empty (1 to 256 bytes of UTF-8)",
                                           "item_id: has 257 bytes (at most 256)",
                                           HasSubstr("is 1001 ms in the future (at most 1000"),
                                           "event_id: has 257 bytes (at most 256)"));
  ASSERT_EQ(command_.events.size(), 1u);
  EXPECT_EQ(command_.events[0].item_id, "item1");
  EXPECT_TRUE(faults_.empty());
}

TEST_F(Codec, TimestampsBeyondAnyCalendarAreRejected) {
  v1::RecordInteractionsRequest request;
  AddInteraction("item1", std::numeric_limits<int64_t>::min(), "", &request);
  AddInteraction("item1", std::numeric_limits<int64_t>::max(), "", &request);
  AddInteraction("item1", -kMostTimestampMs, "", &request);
  EXPECT_THAT(Reject(request),
              ElementsAre(HasSubstr("timestamp_ms"), HasSubstr("timestamp_ms"), ""));
}

TEST_F(Codec, TooManyInteractionsAndUnknownAcksAreFaultsOfTheRequest) {
  v1::RecordInteractionsRequest request;
  for (int i = 0; i < 6; ++i) AddInteraction("item1", i, "", &request);
  request.set_ack(static_cast<v1::Ack>(9));
  context_.path = "record.";
  Reject(request);
  const std::string message(faults_.ToStatus().message());
  EXPECT_THAT(message, HasSubstr("record.interactions: has 6 entries (at most 5"));
  EXPECT_THAT(message, HasSubstr("record.ack: 9"));
}

TEST_F(Codec, DefaultsOfARecommendation) {
  ASSERT_TRUE(Recommend({}).ok());
  EXPECT_EQ(recommend_.k, 10);
  EXPECT_TRUE(recommend_.exclude_seen);
  EXPECT_FALSE(recommend_.as_of_ms.has_value());
  EXPECT_FALSE(recommend_.candidates_only);
}

TEST_F(Codec, AnExplicitKOutsideItsLimitsIsAFault) {
  for (const uint32_t k : {0u, 1001u, 4'000'000'000u}) {
    faults_ = {};
    v1::RecommendRequest request;
    request.set_k(k);
    const absl::Status status = Recommend(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), absl::StrCat("k: ", k, " is outside 1…1000"));
  }
  faults_ = {};
  v1::RecommendRequest request;
  request.set_k(1000);
  EXPECT_TRUE(Recommend(request).ok());
}

TEST_F(Codec, ItemListsBecomeSortedIndicesOfKnownItems) {
  v1::RecommendRequest request;
  for (const char* id : {"item3", "nobody", "item1"}) request.add_exclude_item_ids(id);
  for (const char* id : {"item2", "item2", "nobody"}) request.add_candidate_item_ids(id);
  ASSERT_TRUE(Recommend(request).ok());
  EXPECT_THAT(recommend_.excluded, ElementsAre(1, 3));
  EXPECT_TRUE(recommend_.candidates_only);
  EXPECT_THAT(recommend_.candidates, ElementsAre(2));
}

TEST_F(Codec, CandidatesThatAreAllUnknownStillRestrict) {
  v1::RecommendRequest request;
  request.add_candidate_item_ids("nobody");
  ASSERT_TRUE(Recommend(request).ok());
  EXPECT_TRUE(recommend_.candidates_only);
  EXPECT_THAT(recommend_.candidates, IsEmpty());
}

TEST_F(Codec, FaultyItemListsNameTheElement) {
  v1::RecommendRequest request;
  request.add_exclude_item_ids("item1");
  request.add_exclude_item_ids("");
  for (int i = 0; i < 4; ++i) request.add_candidate_item_ids("item1");
  const std::string message(Recommend(request).message());
  EXPECT_THAT(message, HasSubstr("exclude_item_ids[1]: is empty"));
  EXPECT_THAT(message, HasSubstr("candidate_item_ids: has 4 ids (at most 3"));
}

TEST_F(Codec, ABatchCountsInteractionsOverAllUsersAndRejectsFaultyUsersWhole) {
  v1::StreamInteractionsRequest request;
  for (const std::string& user : {std::string(), std::string("good"), std::string(257, 'u')}) {
    v1::UserInteractions* entry = request.add_users();
    entry->set_user_id(user);
    entry->add_interactions()->set_item_id("item1");
    entry->add_interactions();
  }
  Durability durability;
  DecodeBatch(request, context_, &durability, &faults_);
  EXPECT_THAT(std::string(faults_.ToStatus().message()),
              HasSubstr("users: have 6 interactions (at most 5"));
  faults_ = {};
  request.mutable_users(0)->mutable_interactions()->RemoveLast();
  request.set_ack(v1::ACK_DURABLE);
  DecodeBatch(request, context_, &durability, &faults_);
  EXPECT_TRUE(faults_.empty());
  EXPECT_EQ(durability, Durability::kSynced);

  broken_ = {"users[1].interactions[0].item_id"};
  v1::StreamInteractionsResponse response;
  for (int u = 0; u < 3; ++u) {
    context_.path = absl::StrCat("users[", u, "].");
    command_ = {};
    std::vector<std::string> rejections;
    DecodeBatchEntry(request.users(u), context_, &command_, &rejections);
    EXPECT_TRUE(command_.events.empty());
    EncodeBatchEntry(command_, rejections, u, &response);
  }
  std::vector<std::string> rejected;
  for (const auto& r : response.rejected()) {
    rejected.push_back(absl::StrCat(r.user_index(), ".", r.interaction_index(), " ", r.reason()));
  }
  EXPECT_THAT(
      rejected,
      ElementsAre(HasSubstr("0.0 user_id: is empty"), HasSubstr("1.0 item_id: is not valid UTF-8"),
                  HasSubstr("1.1 item_id: is empty"), HasSubstr("2.0 user_id: has 257"),
                  HasSubstr("2.1 user_id: has 257")));
}

TEST_F(Codec, RejectedLateEventsSayWhatTheyLieBefore) {
  RecordCommand command;
  command.events = {{"item1", 5, ""}, {"item2", 30, ""}};
  command.outcomes = {EventOutcome::kLateRejected, EventOutcome::kApplied};
  command.last_event_ms = 20;
  const std::vector<std::string> rejections = {"item_id: is empty", "", ""};
  v1::RecordInteractionsResponse response;
  EncodeRecord(command, rejections, &response);
  EXPECT_EQ(response.results(1).status(), v1::INTERACTION_STATUS_REJECTED);
  EXPECT_THAT(response.results(1).reason(),
              HasSubstr("timestamp_ms: 5 lies before the user's last event, which is at 20"));
  EXPECT_EQ(response.results(2).status(), v1::INTERACTION_STATUS_APPLIED);
  v1::StreamInteractionsResponse batch;
  EncodeBatchEntry(command, rejections, 4, &batch);
  ASSERT_EQ(batch.rejected_size(), 2);
  EXPECT_EQ(batch.rejected(1).user_index(), 4u);
  EXPECT_EQ(batch.rejected(1).interaction_index(), 1u);
  EXPECT_THAT(batch.rejected(1).reason(), HasSubstr("lies before"));
  EXPECT_EQ(batch.applied(), 1u);
}

TEST_F(Codec, ExpiredEventsAreAStatusOfTheirOwn) {
  RecordCommand command;
  command.events = {{"item1", 5, ""}, {"item2", 30, ""}};
  command.outcomes = {EventOutcome::kExpired, EventOutcome::kApplied};
  v1::RecordInteractionsResponse response;
  EncodeRecord(command, {"", ""}, &response);
  EXPECT_EQ(response.results(0).status(), v1::INTERACTION_STATUS_EXPIRED);
  EXPECT_THAT(response.results(0).reason(),
              AllOf(HasSubstr("timestamp_ms: 5 is not behind"), HasSubstr("store.event_ttl_ms")));
  EXPECT_EQ(response.results(1).status(), v1::INTERACTION_STATUS_APPLIED);
  v1::StreamInteractionsResponse batch;
  EncodeBatchEntry(command, {"", ""}, 0, &batch);
  EXPECT_EQ(batch.expired(), 1u);
  EXPECT_EQ(batch.applied(), 1u);
  EXPECT_EQ(batch.rejected_size(), 0);

  GetUserCommand user;
  user.removed = 3;
  user.lineage.event_count = 5;
  user.lineage.log_truncated = true;
  v1::GetUserResponse found;
  EncodeUser(user, &found);
  EXPECT_EQ(found.removed_events(), 3u);
  EXPECT_EQ(found.event_count(), 5u);
  EXPECT_TRUE(found.lineage().log_truncated());
}

TEST_F(Codec, CategoriesSayWhichItemsMayBeRanked) {
  std::vector<Item> items(70);
  for (int i = 1; i < 70; ++i) {
    items[i].id = absl::StrCat("item", i);
    auto& categories = items[i].categories;
    if (i % 3 == 0) categories.insert(categories.end(), 2, "third");
    if (i % 2 == 0) categories.emplace_back("even");
  }
  catalog_ = *ItemCatalog::Create(std::move(items));
  const auto eligible = [&](const std::vector<std::string>& any,
                            const std::vector<std::string>& none) {
    v1::RecommendRequest request;
    for (const auto& category : any) request.add_category_any_of(category);
    for (const auto& category : none) request.add_category_none_of(category);
    EXPECT_TRUE(Recommend(request).ok());
    std::vector<bool> bits;
    for (int i = 0; i < 70 && !recommend_.eligible.empty(); ++i) {
      bits.push_back(recommend_.eligible[i / 64] >> (i % 64) & 1);
    }
    return bits;
  };
  EXPECT_TRUE(eligible({}, {}).empty());
  for (int i = 1; i < 70; ++i) {
    const bool even = i % 2 == 0, third = i % 3 == 0;
    EXPECT_EQ(eligible({"even"}, {})[i], even) << i;
    EXPECT_EQ(eligible({"even", "third", "unknown"}, {})[i], even || third) << i;
    EXPECT_EQ(eligible({}, {"third"})[i], !third) << i;
    EXPECT_EQ(eligible({"even"}, {"third", "unknown"})[i], even && !third) << i;
    EXPECT_FALSE(eligible({"unknown"}, {})[i]) << i;
  }
}

TEST_F(Codec, FaultyCategoriesAreNamed) {
  v1::RecommendRequest request;
  request.add_category_any_of();
  for (int i = 0; i < 101; ++i) request.add_category_none_of()->assign(3, 'c');
  EXPECT_THAT(std::string(Recommend(request).message()),
              AllOf(HasSubstr("category_any_of[0]: is empty"),
                    HasSubstr("category_none_of: has 101 categories (at most 100)")));
}

TEST_F(Codec, UserIdsHaveTheirLimits) {
  CheckUserId("u", context_, &faults_);
  CheckUserId(std::string(256, 'u'), context_, &faults_);
  EXPECT_TRUE(faults_.empty());
  CheckUserId("", context_, &faults_);
  CheckUserId(std::string(257, 'u'), context_, &faults_);
  const std::string message(faults_.ToStatus().message());
  EXPECT_EQ(message,
            "user_id: is empty (1 to 256 bytes of UTF-8); user_id: has 257 bytes (at most 256)");
}

TEST_F(Codec, AnswersKeepTheOrderOfTheRequest) {
  RecordCommand command;
  command.outcomes = {EventOutcome::kApplied, EventOutcome::kUnknownItem};
  command.state_version = 7;
  v1::RecordInteractionsResponse response;
  EncodeRecord(command, {"", "item_id: is empty", ""}, &response);
  ASSERT_EQ(response.results_size(), 3);
  EXPECT_EQ(response.results(0).status(), v1::INTERACTION_STATUS_APPLIED);
  EXPECT_EQ(response.results(1).status(), v1::INTERACTION_STATUS_REJECTED);
  EXPECT_EQ(response.results(1).reason(), "item_id: is empty");
  EXPECT_EQ(response.results(2).status(), v1::INTERACTION_STATUS_UNKNOWN_ITEM);
  EXPECT_EQ(response.state_version(), 7u);
}

TEST(Parse, BrokenTextIsEmptiedAndNamed) {
  v1::RecordInteractionsRequest request;
  request.set_user_id("~");
  AddInteraction("item1", 1, "", &request);
  AddInteraction("it~m", 2, "e", &request);
  AddInteraction("item2", 3, "~", &request);
  v1::RecordInteractionsRequest parsed;
  BrokenText broken;
  ASSERT_TRUE(ParseRequest(Broken(request), &parsed, &broken).ok());
  EXPECT_THAT(broken, UnorderedElementsAre("user_id", "interactions[1].item_id",
                                           "interactions[2].event_id"));
  EXPECT_EQ(parsed.interactions_size(), 3);
  EXPECT_EQ(parsed.interactions(0).item_id(), "item1");
  EXPECT_EQ(parsed.interactions(1).item_id(), "");
  EXPECT_EQ(parsed.interactions(1).event_id(), "e");
  EXPECT_EQ(parsed.interactions(2).timestamp_ms(), 3);
}

TEST(Parse, BrokenTextInNestedRequestsHasItsWholePath) {
  v1::RecordAndRecommendRequest request;
  AddInteraction("~", 1, "", request.mutable_record());
  request.mutable_recommend()->add_exclude_item_ids("ok");
  request.mutable_recommend()->add_exclude_item_ids("~");
  v1::RecordAndRecommendRequest parsed;
  BrokenText broken;
  ASSERT_TRUE(ParseRequest(Broken(request), &parsed, &broken).ok());
  EXPECT_THAT(broken, UnorderedElementsAre("record.interactions[0].item_id",
                                           "recommend.exclude_item_ids[1]"));
}

TEST(Parse, BytesThatAreNoMessageAreAnError) {
  v1::RecommendRequest parsed;
  BrokenText broken;
  const absl::Status status = ParseRequest(Bytes("\x0a\x7fshort"), &parsed, &broken);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tim4rec.v1.RecommendRequest"));
}

TEST(Parse, KnowsUtf8) {
  for (const char* good :
       {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << testing::PrintToString(good);
  }
  for (const char* bad :
       {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "a\xffz", "\xe2\x82"}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << testing::PrintToString(bad);
  }
}

TEST(Status, InvalidArgumentCarriesFieldViolations) {
  Violations faults;
  faults.Add("k", "0 is outside 1…1000");
  const grpc::Status status = ToGrpcStatus(faults.ToStatus());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), 3);
  google::rpc::BadRequest bad;
  ASSERT_TRUE(details.details(0).UnpackTo(&bad));
  ASSERT_EQ(bad.field_violations_size(), 1);
  EXPECT_EQ(bad.field_violations(0).field(), "k");
}

TEST(Status, RetryDelayAndLongMessages) {
  absl::Status full = absl::ResourceExhaustedError("queue full");
  SetRetryDelay(absl::Milliseconds(1500), &full);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(ToGrpcStatus(full).error_details()));
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(details.details(0).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 500'000'000);
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "é";
  const std::string cut = ToGrpcStatus(absl::InternalError(text)).error_message();
  EXPECT_LE(cut.size(), 2000u);
  EXPECT_TRUE(IsValidUtf8(cut));
}

TEST_F(Codec, BoundsTheEntriesOfABatchThatHoldNothing) {
  v1::StreamInteractionsRequest request;
  for (int u = 0; u < 5; ++u) request.add_users();
  Durability durability;
  DecodeBatch(request, context_, &durability, &faults_);
  EXPECT_TRUE(faults_.empty());
  request.add_users();
  DecodeBatch(request, context_, &durability, &faults_);
  EXPECT_EQ(faults_.ToStatus().message(),
            "users: has 6 entries (at most 5, limits.max_interactions)");
}

}  // namespace
}  // namespace tim4rec
