// Calls to a running server.
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include "gmock/gmock.h"
#include "model/weights/package.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/tiny_model_seed.h"
#include "tests/model/tiny_model.h"
#include "tests/server/http_get.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int64_t kDay = 86'400'000;

class Serving : public ServerTest {
 protected:
  Serving() : server_(Serve(dir_ + "/data")), stub_(Connect(*server_)) {}

  v1::RecordInteractionsResponse Record(const v1::RecordInteractionsRequest& request) {
    v1::RecordInteractionsResponse response;
    Context context;
    const grpc::Status status = stub_->RecordInteractions(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  grpc::Status Recommend(const v1::RecommendRequest& request,
                         v1::RecommendResponse* response = nullptr) {
    v1::RecommendResponse ignored;
    Context context;
    return stub_->Recommend(&context, request, response == nullptr ? &ignored : response);
  }

  v1::GetUserResponse GetUser(const std::string& user, uint32_t max_events = 0) {
    v1::GetUserRequest request;
    request.set_user_id(user);
    request.set_max_events(max_events);
    v1::GetUserResponse response;
    Context context;
    const grpc::Status status = stub_->GetUser(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  static std::vector<v1::InteractionStatus> StatusesOf(const v1::RecordInteractionsResponse& r) {
    std::vector<v1::InteractionStatus> statuses;
    for (const auto& result : r.results()) statuses.push_back(result.status());
    return statuses;
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<v1::Recommender::Stub> stub_;
};

v1::RecommendRequest RecommendFor(const std::string& user) {
  v1::RecommendRequest request;
  request.set_user_id(user);
  return request;
}

// The wire form of `message` with "~" replaced by a byte that is no UTF-8.
std::string Broken(const google::protobuf::Message& message) {
  std::string bytes = message.SerializeAsString();
  std::replace(bytes.begin(), bytes.end(), '~', '\xff');
  return bytes;
}

TEST(TinyModel, IsWhatItsToolWrites) {
  const auto committed = ModelPackage::Open(kTinyModel);
  ASSERT_TRUE(committed.ok()) << committed.status();
  const auto made = ModelPackage::FromContents(MakeTinyModel(kTinyModelSeed));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*committed)->fingerprint(), (*made)->fingerprint());
}

TEST_F(Serving, RecordsAndRecommends) {
  const int64_t now = NowMs();
  const auto recorded =
      Record(RecordOf("u", {{"item1", now - 2 * kDay}, {"item2", now - kDay}, {"nobody", now}}));
  EXPECT_THAT(StatusesOf(recorded),
              ElementsAre(v1::INTERACTION_STATUS_APPLIED, v1::INTERACTION_STATUS_APPLIED,
                          v1::INTERACTION_STATUS_UNKNOWN_ITEM));
  EXPECT_EQ(recorded.state_version(), 3u);
  v1::RecommendRequest request = RecommendFor("u");
  request.set_min_state_version(recorded.state_version());
  v1::RecommendResponse response;
  ASSERT_TRUE(Recommend(request, &response).ok());
  ASSERT_EQ(response.items_size(), 10);
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(response.items(i).item_id(), AllOf(testing::Ne("item1"), testing::Ne("item2")));
    EXPECT_LE(response.items(i).score(), response.items(std::max(0, i - 1)).score());
  }
  const v1::Provenance& provenance = response.provenance();
  EXPECT_THAT(provenance.model(), StartsWith("tiny_model@"));
  EXPECT_EQ(provenance.state_version(), 3u);
  EXPECT_EQ(provenance.event_count(), 2u);
  EXPECT_EQ(provenance.last_event_ms(), now);
  EXPECT_EQ(provenance.tier(), v1::TIER_HOT);
  // That of this machine, which the server has said.
  EXPECT_THAT(server_->errors(), HasSubstr("\"backend\":\"" + provenance.backend() + "\""));
  EXPECT_GE(provenance.as_of_ms(), now);

  request.set_model(provenance.model());
  EXPECT_TRUE(Recommend(request).ok());
  request.set_model("another");
  EXPECT_EQ(Recommend(request).error_code(), grpc::StatusCode::NOT_FOUND);
  request.clear_model();
  request.set_min_state_version(4);
  // The server answers a tenth of a second before the deadline, which a busy machine may miss.
  grpc::StatusCode code = grpc::StatusCode::DEADLINE_EXCEEDED;
  for (int tries = 0; tries < 4 && code == grpc::StatusCode::DEADLINE_EXCEEDED; ++tries) {
    grpc::ClientContext soon;
    soon.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
    code = stub_->Recommend(&soon, request, &response).error_code();
  }
  EXPECT_EQ(code, grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext no_deadline;
  EXPECT_EQ(stub_->Recommend(&no_deadline, request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(Serving, DuplicatesCountOnce) {
  const auto request = RecordOf("u", {{"item1", 1}, {"item2", 2}, {"item1", 1}});
  EXPECT_THAT(StatusesOf(Record(request)),
              ElementsAre(v1::INTERACTION_STATUS_APPLIED, v1::INTERACTION_STATUS_APPLIED,
                          v1::INTERACTION_STATUS_DUPLICATE));
  const auto top = TopOf(*stub_, "u", kDay);
  EXPECT_THAT(StatusesOf(Record(request)), testing::Each(v1::INTERACTION_STATUS_DUPLICATE));
  EXPECT_EQ(Record(request).state_version(), 2u);
  EXPECT_EQ(TopOf(*stub_, "u", kDay), top);
}

TEST_F(Serving, AnUnknownUserGetsThePopularItems) {
  v1::RecommendResponse response;
  ASSERT_TRUE(Recommend(RecommendFor("stranger"), &response).ok());
  EXPECT_EQ(response.items_size(), 10);
  EXPECT_EQ(response.provenance().tier(), v1::TIER_COLD_START);
  EXPECT_EQ(GetUser("stranger").event_count(), 0u);
  EXPECT_EQ(GetUser("stranger").tier(), v1::TIER_COLD_START);
}

TEST_F(Serving, RecordAndRecommendSeesItsInteractions) {
  v1::RecordAndRecommendRequest request;
  *request.mutable_record() = RecordOf("u", {{"item1", 1000}, {"item2", 2000}});
  request.mutable_recommend()->set_as_of_ms(kDay);
  v1::RecordAndRecommendResponse response;
  {
    Context context;
    const grpc::Status status = stub_->RecordAndRecommend(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(response.record().state_version(), 2u);
  EXPECT_EQ(response.recommend().provenance().state_version(), 2u);
  EXPECT_EQ(
      response.recommend().items(0).item_id() + ":",
      TopOf(*stub_, "u", kDay)[0].substr(0, response.recommend().items(0).item_id().size() + 1));
  request.mutable_recommend()->set_user_id("another");
  request.mutable_recommend()->set_k(0);
  Context context;
  EXPECT_THAT(ViolationsOf(stub_->RecordAndRecommend(&context, request, &response)),
              ElementsAre(HasSubstr("recommend.user_id"), "recommend.k: 0 is outside 1…1000"));
}

TEST_F(Serving, GetUserAndDeleteUser) {
  Record(RecordOf("u", {{"item1", 10}, {"item2", 20}, {"item3", 15}}));
  const v1::GetUserResponse user = GetUser("u", 2);
  EXPECT_EQ(user.event_count(), 3u);
  EXPECT_EQ(user.state_version(), 3u);
  EXPECT_EQ(user.first_event_ms(), 10);
  EXPECT_EQ(user.last_event_ms(), 20);
  EXPECT_EQ(user.lineage().hash().size(), 32u);
  EXPECT_EQ(user.tier(), v1::TIER_HOT);
  ASSERT_EQ(user.events_size(), 2);
  EXPECT_EQ(user.events(0).item_id(), "item3");
  EXPECT_EQ(user.events(1).item_id(), "item2");

  v1::DeleteUserRequest request;
  request.set_user_id("u");
  v1::DeleteUserResponse response;
  Context first;
  ASSERT_TRUE(stub_->DeleteUser(&first, request, &response).ok());
  EXPECT_EQ(response.events_removed(), 3u);
  EXPECT_EQ(GetUser("u").event_count(), 0u);
  Context second;
  ASSERT_TRUE(stub_->DeleteUser(&second, request, &response).ok());
  EXPECT_EQ(response.events_removed(), 0u);
}

TEST_F(Serving, BadRecommendRequestsNameFieldAndLimit) {
  for (const uint32_t k : {0u, 1001u}) {
    v1::RecommendRequest request = RecommendFor("u");
    request.set_k(k);
    const grpc::Status status = Recommend(request);
    EXPECT_THAT(ViolationsOf(status),
                ElementsAre("k: " + std::to_string(k) + " is outside 1…1000"));
    EXPECT_THAT(status.error_message(), HasSubstr("outside 1…1000"));
  }
  EXPECT_THAT(ViolationsOf(Recommend(RecommendFor(""))),
              ElementsAre("user_id: is empty (1 to 256 bytes of UTF-8)"));
  EXPECT_THAT(ViolationsOf(Recommend(RecommendFor(std::string(257, 'u')))),
              ElementsAre("user_id: has 257 bytes (at most 256)"));
  EXPECT_TRUE(Recommend(RecommendFor(std::string(256, 'u'))).ok());
  std::string response;
  EXPECT_THAT(ViolationsOf(CallRaw(server_->address(), "/tim4rec.v1.Recommender/Recommend",
                                   Broken(RecommendFor("us~r")), &response)),
              ElementsAre(HasSubstr("user_id: is not valid UTF-8")));
  EXPECT_EQ(
      CallRaw(server_->address(), "/tim4rec.v1.Recommender/Recommend", "\x0a\x7fshort", &response)
          .error_code(),
      grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(Serving, BadInteractionsAreRejectedAndTheRestIsApplied) {
  auto request = RecordOf("u", {{"item1", 1},
                                {"", 2},
                                {std::string(257, 'i'), 3},
                                {"it~m", 4},
                                {"item2", NowMs() + 10 * 60'000},
                                {"item3", 5},
                                {"item4", 6},
                                {"item5", 7}});
  request.mutable_interactions(5)->set_event_id(std::string(257, 'e'));
  request.mutable_interactions(6)->set_event_id("~");
  std::string bytes;
  const grpc::Status status = CallRaw(
      server_->address(), "/tim4rec.v1.Recommender/RecordInteractions", Broken(request), &bytes);
  ASSERT_TRUE(status.ok()) << status.error_message();
  v1::RecordInteractionsResponse response;
  ASSERT_TRUE(response.ParseFromString(bytes));
  std::vector<std::string> reasons;
  for (const auto& result : response.results()) {
    EXPECT_EQ(result.reason().empty(), result.status() == v1::INTERACTION_STATUS_APPLIED);
    reasons.push_back(result.reason());
  }
  EXPECT_THAT(reasons,
              ElementsAre("", HasSubstr("item_id: is empty"), HasSubstr("item_id: has 257 bytes"),
                          HasSubstr("item_id: is not valid UTF-8"),
                          AllOf(HasSubstr("timestamp_ms: "), HasSubstr("at most 300000")),
                          HasSubstr("event_id: has 257 bytes"),
                          HasSubstr("event_id: is not valid UTF-8"), ""));
  EXPECT_EQ(GetUser("u").event_count(), 2u);
}

// Items of the tiny model are "even" or "odd" by their number, and all are "all".
TEST_F(Serving, CategoriesFilterWithoutFetchingMore) {
  ASSERT_EQ(Record(RecordOf("u", {{"item2", 1000}, {"item5", 2000}})).results_size(), 2);
  for (const std::string& user : {std::string("u"), std::string("stranger")}) {
    v1::RecommendRequest request = RecommendFor(user);
    request.set_k(1000);
    request.set_exclude_seen(false);
    v1::RecommendResponse all;
    ASSERT_TRUE(Recommend(request, &all).ok());
    ASSERT_EQ(all.items_size(), 60);
    const auto number = [](const v1::ScoredItem& item) {
      return std::stoi(item.item_id().substr(4));
    };
    // What the filters leave of the whole ranking, at most 7.
    const auto expected = [&](auto&& keep) {
      std::vector<std::string> ids;
      for (const auto& item : all.items()) {
        if (keep(number(item)) && ids.size() < 7) ids.push_back(item.item_id());
      }
      return ids;
    };
    const auto answered = [&] {
      v1::RecommendResponse response;
      EXPECT_TRUE(Recommend(request, &response).ok());
      std::vector<std::string> ids;
      for (const auto& item : response.items()) ids.push_back(item.item_id());
      return ids;
    };
    request.set_k(7);
    request.add_category_any_of("even");
    EXPECT_EQ(answered(), expected([](int n) { return n % 2 == 0; }));
    request.clear_exclude_seen();
    EXPECT_EQ(answered(), expected([&](int n) { return n % 2 == 0 && (user != "u" || n != 2); }));
    for (int n = 1; n <= 20; ++n) request.add_candidate_item_ids("item" + std::to_string(n));
    request.add_exclude_item_ids("item4");
    EXPECT_EQ(answered(), expected([&](int n) {
                return n % 2 == 0 && n <= 20 && n != 4 && (user != "u" || n != 2);
              }));
    request.clear_category_any_of();
    request.add_category_none_of("even");
    EXPECT_EQ(answered(),
              expected([&](int n) { return n % 2 == 1 && n <= 20 && (user != "u" || n != 5); }));
    request.add_category_none_of("all");
    EXPECT_THAT(answered(), testing::IsEmpty());
  }
}

TEST_F(Serving, WhatIsNotOfferedSaysSo) {
  std::string bytes;
  EXPECT_EQ(CallRaw(server_->address(), "/tim4rec.v1.Admin/ListModels", "", &bytes).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(Serving, HealthReflectionAndMetrics) {
  // HealthCheckRequest has the service's name as field 1, the answer a status as field 1.
  const std::string name = "tim4rec.v1.Recommender";
  for (const std::string& request :
       {std::string(), std::string("\x0a") + static_cast<char>(name.size()) + name}) {
    std::string health;
    ASSERT_TRUE(CallRaw(server_->address(), "/grpc.health.v1.Health/Check", request, &health).ok());
    EXPECT_EQ(health, "\x08\x01");
  }
  // ServerReflectionRequest.list_services is field 7.
  std::string services;
  ASSERT_TRUE(CallRaw(server_->address(),
                      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      std::string("\x3a\x01*", 3), &services)
                  .ok());
  EXPECT_THAT(services, HasSubstr(name));
  EXPECT_THAT(services, testing::Not(HasSubstr("tim4rec.v1.Admin")));

  Record(RecordOf("u", {{"item1", 1}, {"item1", 1}, {"nobody", 2}, {"", 3}}));
  TopOf(*stub_, "u", kDay);
  (void)Recommend(RecommendFor(""));
  const std::string metrics = HttpGet(server_->metrics_address(), "/metrics");
  for (const char* line :
       {"tim4rec_requests_total{code=\"OK\",method=\"RecordInteractions\"} 1",
        "tim4rec_requests_total{code=\"INVALID_ARGUMENT\",method=\"Recommend\"} 1",
        "tim4rec_request_duration_seconds_count{method=\"Recommend\"} 2",
        "tim4rec_events_total{outcome=\"applied\"} 1",
        "tim4rec_events_total{outcome=\"duplicate\"} 1",
        "tim4rec_events_total{outcome=\"unknown_item\"} 1",
        "tim4rec_events_total{outcome=\"rejected\"} 1",
        "tim4rec_state_lookups_total{tier=\"hot\"} 1", "tim4rec_resident_users 1",
        "tim4rec_ready 1", "model=\"tiny_model\""}) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(Serving, TheTorchBackendGivesTheSameItemsAndStoresNoState) {
  const auto torch = Serve(dir_ + "/torch", {"--backend", "torch"});
  const auto stub = Connect(*torch);
  const auto history = RecordOf("u", {{"item1", 1'000}, {"item5", kDay}, {"item7", 9 * kDay}});
  Record(history);
  v1::RecordInteractionsResponse recorded;
  Context record_context;
  ASSERT_TRUE(stub->RecordInteractions(&record_context, history, &recorded).ok());
  EXPECT_THAT(StatusesOf(recorded), testing::Each(v1::INTERACTION_STATUS_APPLIED));
  v1::RecommendRequest request = RecommendFor("u");
  request.set_as_of_ms(10 * kDay);
  v1::RecommendResponse expected, actual;
  ASSERT_TRUE(Recommend(request, &expected).ok());
  Context context;
  ASSERT_TRUE(stub->Recommend(&context, request, &actual).ok());
  EXPECT_EQ(actual.provenance().backend(), "torch");
  EXPECT_EQ(actual.provenance().event_count(), 3u);
  ASSERT_EQ(actual.items_size(), expected.items_size());
  for (int i = 0; i < expected.items_size(); ++i) {
    EXPECT_EQ(actual.items(i).item_id(), expected.items(i).item_id());
    EXPECT_NEAR(actual.items(i).score(), expected.items(i).score(), 1e-4);
  }
  torch->Signal(SIGTERM);
  EXPECT_EQ(torch->Wait(), 0);
  const auto again = Serve(dir_ + "/torch");
  v1::RecommendResponse after;
  Context again_context;
  ASSERT_TRUE(Connect(*again)->Recommend(&again_context, request, &after).ok());
  EXPECT_EQ(after.provenance().tier(), v1::TIER_REBUILT);  // the log alone was kept
  ASSERT_EQ(after.items_size(), expected.items_size());
  for (int i = 0; i < expected.items_size(); ++i) {
    EXPECT_EQ(after.items(i).score(), expected.items(i).score());
  }
}

TEST_F(Serving, LogsHoldNoIds) {
  Record(RecordOf("a-very-private-user", {{"item1", 1}, {"a-very-private-item", 2}}));
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_THAT(server_->errors(), testing::Not(HasSubstr("very-private")));
  EXPECT_THAT(server_->errors(), HasSubstr("\"message\":\"configuration\""));
}

// The parts of a call's `server-timing`, in milliseconds; empty if there is none.
std::map<std::string, double> TimingOf(const Context& context) {
  std::map<std::string, double> parts;
  const auto found = context.GetServerTrailingMetadata().find("server-timing");
  if (found == context.GetServerTrailingMetadata().end()) return parts;
  std::stringstream text(std::string(found->second.data(), found->second.size()));
  for (std::string part; std::getline(text >> std::ws, part, ',');) {
    const size_t at = part.find(";dur=");
    EXPECT_NE(at, std::string::npos) << part;
    parts[part.substr(0, at)] = std::stod(part.substr(at + 5));
  }
  return parts;
}

TEST_F(Serving, TellsWhereTheTimeWentToWhoAsks) {
  const auto record = RecordOf("u", {{"item1", 1000}, {"item2", 2000}});
  v1::RecommendRequest recommend = RecommendFor("u");
  recommend.set_as_of_ms(3000);
  v1::RecordAndRecommendRequest both;
  *both.mutable_record() = RecordOf("u", {{"item3", 3000}});
  both.mutable_record()->set_ack(v1::ACK_DURABLE);
  v1::RecommendForHistoryRequest history;
  *history.add_interactions() = record.interactions(0);
  v1::GetUserRequest get;
  get.set_user_id("u");
  v1::DeleteUserRequest remove;
  remove.set_user_id("u");
  // Each call as (context, status expected), with and without asking.
  v1::RecordInteractionsResponse recorded;
  v1::RecommendResponse recommended;
  v1::RecordAndRecommendResponse both_answered;
  v1::RecommendForHistoryResponse for_history;
  v1::GetUserResponse got;
  v1::DeleteUserResponse removed;
  const std::vector<std::pair<std::string, std::function<grpc::Status(Context*)>>> calls = {
      {"append", [&](Context* c) { return stub_->RecordInteractions(c, record, &recorded); }},
      {"rank", [&](Context* c) { return stub_->Recommend(c, recommend, &recommended); }},
      {"append", [&](Context* c) { return stub_->RecordAndRecommend(c, both, &both_answered); }},
      {"rank", [&](Context* c) { return stub_->RecommendForHistory(c, history, &for_history); }},
      {"load", [&](Context* c) { return stub_->GetUser(c, get, &got); }},
      {"queue", [&](Context* c) { return stub_->DeleteUser(c, remove, &removed); }}};
  for (const auto& [most, call] : calls) {
    Context quiet;
    ASSERT_TRUE(call(&quiet).ok());
    EXPECT_THAT(TimingOf(quiet), testing::IsEmpty());
    Context asking;
    asking.AddMetadata("x-tim4rec-server-timing", "1");
    ASSERT_TRUE(call(&asking).ok());
    std::map<std::string, double> parts = TimingOf(asking);
    double sum = 0;
    for (const char* part : {"queue", "append", "load", "fold", "rank"}) {
      ASSERT_TRUE(parts.contains(part)) << part;
      EXPECT_GE(parts[part], 0) << part;
      sum += parts[part];
    }
    EXPECT_GT(parts[most], 0) << most;
    EXPECT_LE(sum, parts["total"] + 0.01);
    EXPECT_EQ(parts.size(), 6u);
  }
  const auto admin = ConnectAdmin(*server_);
  v1::GetConfigResponse config;
  Context admin_context;
  admin_context.AddMetadata("x-tim4rec-server-timing", "1");
  ASSERT_TRUE(admin->GetConfig(&admin_context, {}, &config).ok());
  EXPECT_GT(TimingOf(admin_context)["total"], 0);
  Context refused;
  refused.AddMetadata("x-tim4rec-server-timing", "1");
  EXPECT_EQ(stub_->Recommend(&refused, RecommendFor(""), &recommended).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_GT(TimingOf(refused)["total"], 0);
}

TEST_F(Serving, TellsAtTheEndOfAStreamWhereItsTimeWent) {
  for (const bool asks : {false, true}) {
    Context record_context;
    Context recommend_context;
    if (asks) {
      record_context.AddMetadata("x-tim4rec-server-timing", "1");
      recommend_context.AddMetadata("x-tim4rec-server-timing", "1");
    }
    auto record = stub_->StreamInteractions(&record_context);
    v1::StreamInteractionsRequest batch;
    batch.set_ack(v1::ACK_DURABLE);
    auto* entry = batch.add_users();
    entry->set_user_id("u");
    *entry->mutable_interactions() = RecordOf("u", {{"item1", 1000}}).interactions();
    v1::StreamInteractionsResponse stored;
    ASSERT_TRUE(record->Write(batch) && record->Read(&stored) && record->WritesDone());
    EXPECT_FALSE(record->Read(&stored));
    ASSERT_TRUE(record->Finish().ok());

    auto recommend = stub_->RecommendBatch(&recommend_context);
    v1::RecommendBatchRequest users;
    users.mutable_options()->set_as_of_ms(2000);
    users.add_user_ids("u");
    v1::RecommendBatchResponse answer;
    ASSERT_TRUE(recommend->Write(users) && recommend->WritesDone() && recommend->Read(&answer));
    EXPECT_FALSE(recommend->Read(&answer));
    ASSERT_TRUE(recommend->Finish().ok());
    if (asks) {
      EXPECT_GT(TimingOf(record_context)["append"], 0);
      EXPECT_GE(TimingOf(record_context)["total"], TimingOf(record_context)["append"]);
      EXPECT_GT(TimingOf(recommend_context)["rank"], 0);
    } else {
      EXPECT_THAT(TimingOf(record_context), testing::IsEmpty());
      EXPECT_THAT(TimingOf(recommend_context), testing::IsEmpty());
    }
  }
}

TEST_F(Serving, LogsCallsWithTheirTrace) {
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  const auto call = [&](v1::Recommender::Stub& stub, const std::string& id, std::string parent) {
    Context context;
    context.AddMetadata("x-request-id", id);
    context.AddMetadata("traceparent", parent);
    v1::RecommendResponse response;
    EXPECT_TRUE(stub.Recommend(&context, RecommendFor("a-user"), &response).ok());
  };
  std::ofstream(dir_ + "/debug.yaml") << "log: {level: debug}\n";
  auto chatty = Serve(dir_ + "/chatty", {"--config", dir_ + "/debug.yaml"});
  auto stub = Connect(*chatty);
  call(*stub, "good-id", "00-" + trace + "-b7ad6b7169203331-01");
  call(*stub, "other-id", "00-" + trace + "-nonsense");
  const std::string lines = chatty->errors();
  EXPECT_THAT(lines, HasSubstr("\"request_id\":\"good-id\",\"trace_id\":\"" + trace +
                               "\",\"parent_id\":\"b7ad6b7169203331\"}\n"));
  EXPECT_THAT(lines, HasSubstr("\"request_id\":\"other-id\"}\n"));
  // At the default level calls that succeed leave no line.
  call(*stub_, "good-id", "00-" + trace + "-b7ad6b7169203331-01");
  EXPECT_THAT(server_->errors(), testing::Not(HasSubstr("good-id")));
}

}  // namespace
}  // namespace tim4rec
