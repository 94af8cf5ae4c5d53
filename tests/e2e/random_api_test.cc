// Thousands of random calls of a running server, restarted and killed in between, each answer held
// against a plain model of what the calls mean: a map of events per user.
#include <signal.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"
#include "tests/e2e/tiny_model_seed.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

constexpr int kUsers = 25;
constexpr int kItems = 64;  // the model knows 60 of them
constexpr int64_t kDay = 86'400'000;

class RandomApi : public ServerTest {
 protected:
  RandomApi() {
    if (const char* text = std::getenv("TIM4REC_TEST_SEED")) {
      seed_ = std::strtoull(text, nullptr, 10);
    }
    std::printf("TIM4REC_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed_));
    random_.seed(seed_);
    EXPECT_TRUE(WritePackage(dir_ + "/model", Model()).ok());
    fold_ = std::make_unique<PlainFold>(dir_ + "/model");
    Restart(SIGTERM);
  }

  // With a trend that ends a while after the first events.
  PackageContents Model() const {
    PackageContents contents = MakeTinyModel(kTinyModelSeed);
    contents.trend =
        RandomTrend(contents.config.n_items, DayOf(start_) - 40, DayOf(start_) + 20, 1);
    for (ProbeCase& probe : contents.probe) probe.top_items.clear();
    return contents;
  }

  uint64_t Random(uint64_t below) { return random_() % below; }
  std::string RandomUser() { return absl::StrCat("user", Random(kUsers)); }

  void Restart(int signal) {
    if (server_ != nullptr) {
      server_->Signal(signal);
      EXPECT_EQ(server_->Wait(), signal == SIGTERM ? 0 : -signal) << server_->errors();
    }
    server_ = std::make_unique<ServerProcess>(
        std::vector<std::string>{"--model", dir_ + "/model", "--data", dir_ + "/data", "--listen",
                                 "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
    EXPECT_TRUE(server_->WaitUntilServing()) << server_->errors();
    stub_ = Connect(*server_);
  }

  // Mostly in order; some late, equal in time, repeated or of unknown items.
  v1::Interaction RandomInteraction(const UserLog& log) {
    v1::Interaction interaction;
    if (!log.empty() && Random(8) == 0) {
      const Event& old = std::next(log.begin(), static_cast<int64_t>(Random(log.size())))->second;
      interaction.set_item_id(old.item_id);
      interaction.set_timestamp_ms(old.timestamp_ms);
      interaction.set_event_id(old.event_id);
      return interaction;
    }
    const int64_t last = log.empty() ? start_ : log.rbegin()->second.timestamp_ms;
    const auto step = static_cast<int64_t>(Random(Random(3) == 0 ? kDay / 100 : 3 * kDay));
    interaction.set_item_id(absl::StrCat("item", 1 + Random(kItems)));
    interaction.set_timestamp_ms(Random(6) == 0 ? last - step : last + step * (Random(5) > 0));
    if (Random(2) == 0) interaction.set_event_id(absl::StrCat("e", Random(1000)));
    if (Random(40) == 0) interaction.clear_item_id();  // which is rejected
    return interaction;
  }

  static Event EventOf(const v1::Interaction& interaction) {
    return {interaction.item_id(), interaction.timestamp_ms(), interaction.event_id()};
  }

  // Adds to the log what is to be added, and says what becomes of each.
  template <typename Interactions>
  std::vector<v1::InteractionStatus> Apply(const Interactions& interactions, UserLog* log) {
    const Position last = log->empty() ? Position() : log->rbegin()->first;
    std::vector<v1::InteractionStatus> statuses;
    for (const v1::Interaction& interaction : interactions) {
      const Event event = EventOf(interaction);
      if (event.item_id.empty()) {
        statuses.push_back(v1::INTERACTION_STATUS_REJECTED);
      } else if (!log->emplace(PositionOf(event), event).second) {
        statuses.push_back(v1::INTERACTION_STATUS_DUPLICATE);
        continue;
      } else if (!fold_->Knows(event)) {
        statuses.push_back(v1::INTERACTION_STATUS_UNKNOWN_ITEM);
      } else {
        statuses.push_back(PositionOf(event) < last ? v1::INTERACTION_STATUS_LATE_REFOLDED
                                                    : v1::INTERACTION_STATUS_APPLIED);
      }
      if (event.item_id.empty()) continue;
      const int64_t day = DayOf(event.timestamp_ms);
      ++recorded_[{day, event.item_id}];
      newest_day_ = std::max(newest_day_, day);
    }
    return statuses;
  }

  void ExpectRecorded(const v1::RecordInteractionsResponse& response,
                      const std::vector<v1::InteractionStatus>& statuses, const UserLog& log) {
    ASSERT_EQ(response.results_size(), static_cast<int>(statuses.size()));
    for (size_t i = 0; i < statuses.size(); ++i) {
      EXPECT_EQ(response.results(static_cast<int>(i)).status(), statuses[i]) << i;
    }
    EXPECT_EQ(response.state_version(), log.size());
  }

  v1::RecommendRequest RandomOptions(const UserLog& log) {
    v1::RecommendRequest options;
    options.set_k(1 + static_cast<uint32_t>(Random(70)));
    if (!log.empty() && Random(3) == 0) {
      const Event& event = std::next(log.begin(), static_cast<int64_t>(Random(log.size())))->second;
      options.set_as_of_ms(event.timestamp_ms + static_cast<int64_t>(Random(3)) - 1);
    } else if (Random(2) == 0) {
      options.set_as_of_ms(NowMs() + static_cast<int64_t>(Random(10 * kDay)));
    } else if (Random(2) == 0) {
      options.set_as_of_ms(newest_day_ * kDay + static_cast<int64_t>(Random(3 * kDay)));
    }
    return options;
  }

  // `log`: all events of the user, those behind the answer's time too.
  template <typename Response>
  void ExpectRecommended(const Response& response, const v1::RecommendRequest& options,
                         const UserLog& log) {
    const v1::Provenance& provenance = response.provenance();
    UserLog until;
    uint64_t known = 0;
    for (const auto& [position, event] : log) {
      if (options.as_of_ms() != 0 && event.timestamp_ms > options.as_of_ms()) continue;
      until.emplace(position, event);
      known += fold_->Knows(event);
    }
    EXPECT_EQ(provenance.state_version(), until.size());
    EXPECT_EQ(provenance.event_count(), known);
    EXPECT_EQ(provenance.last_event_ms(), until.empty() ? 0 : until.rbegin()->second.timestamp_ms);
    EXPECT_EQ(provenance.tier() == v1::TIER_COLD_START, known == 0);
    if (options.as_of_ms() != 0) {
      EXPECT_EQ(provenance.as_of_ms(), options.as_of_ms());
    }
    const int k = static_cast<int>(options.k());
    if (known == 0) {
      EXPECT_EQ(response.items_size(), std::min(k, 60));
      return;
    }
    std::vector<std::string> items;
    for (const auto& item : response.items()) {
      items.push_back(absl::StrCat(item.item_id(), ":", std::bit_cast<uint32_t>(item.score())));
    }
    EXPECT_EQ(items, fold_->Top(until, provenance.as_of_ms(), k, recorded_, newest_day_ - 180));
  }

  void RandomRecord() {
    const std::string user = RandomUser();
    v1::RecordInteractionsRequest request;
    request.set_user_id(user);
    if (Random(10) == 0) request.set_ack(v1::ACK_DURABLE);
    for (uint64_t n = Random(5); n > 0; --n) {
      *request.add_interactions() = RandomInteraction(logs_[user]);
    }
    v1::RecordInteractionsResponse response;
    Context context;
    ASSERT_TRUE(stub_->RecordInteractions(&context, request, &response).ok());
    ExpectRecorded(response, Apply(request.interactions(), &logs_[user]), logs_[user]);
  }

  void RandomRecommend() {
    const std::string user = RandomUser();
    v1::RecommendRequest request = RandomOptions(logs_[user]);
    request.set_user_id(user);
    request.set_min_state_version(Random(logs_[user].size() + 1));
    v1::RecommendResponse response;
    Context context;
    ASSERT_TRUE(stub_->Recommend(&context, request, &response).ok());
    ExpectRecommended(response, request, logs_[user]);
  }

  void RandomRecordAndRecommend() {
    const std::string user = RandomUser();
    v1::RecordAndRecommendRequest request;
    request.mutable_record()->set_user_id(user);
    *request.mutable_record()->add_interactions() = RandomInteraction(logs_[user]);
    *request.mutable_recommend() = RandomOptions(logs_[user]);
    v1::RecordAndRecommendResponse response;
    Context context;
    ASSERT_TRUE(stub_->RecordAndRecommend(&context, request, &response).ok());
    const auto statuses = Apply(request.record().interactions(), &logs_[user]);
    ExpectRecorded(response.record(), statuses, logs_[user]);
    ExpectRecommended(response.recommend(), request.recommend(), logs_[user]);
  }

  void RandomHistory() {
    UserLog log;
    v1::RecommendForHistoryRequest request;
    for (uint64_t n = Random(12); n > 0; --n) {
      const v1::Interaction interaction = RandomInteraction(log);
      if (interaction.item_id().empty()) continue;
      *request.add_interactions() = interaction;
      log.emplace(PositionOf(EventOf(interaction)), EventOf(interaction));
    }
    *request.mutable_options() = RandomOptions(log);
    v1::RecommendForHistoryResponse response;
    Context context;
    ASSERT_TRUE(stub_->RecommendForHistory(&context, request, &response).ok());
    ExpectRecommended(response, request.options(), log);
  }

  void RandomBatch() {
    v1::RecommendBatchRequest request;
    *request.mutable_options() = RandomOptions({});
    for (uint64_t n = Random(10); n > 0; --n) request.add_user_ids(RandomUser());
    Context context;
    auto stream = stub_->RecommendBatch(&context);
    stream->Write(request);
    stream->WritesDone();
    int next = 0;
    for (v1::RecommendBatchResponse answer; stream->Read(&answer);) {
      for (const auto& user : answer.users()) {
        ASSERT_LT(next, request.user_ids_size());
        EXPECT_EQ(user.user_id(), request.user_ids(next++));
        EXPECT_EQ(user.error_code(), 0) << user.error_message();
        ExpectRecommended(user, request.options(), logs_[user.user_id()]);
      }
    }
    EXPECT_EQ(next, request.user_ids_size());
    EXPECT_TRUE(stream->Finish().ok());
  }

  void RandomStream() {
    v1::StreamInteractionsRequest request;
    std::vector<v1::InteractionStatus> statuses;
    for (int u = 0; u < kUsers; u += 1 + static_cast<int>(Random(10))) {
      const std::string user = absl::StrCat("user", u);  // each once
      auto* entry = request.add_users();
      entry->set_user_id(user);
      for (uint64_t n = Random(4); n > 0; --n) {
        *entry->add_interactions() = RandomInteraction(logs_[user]);
      }
      for (const auto status : Apply(entry->interactions(), &logs_[user])) {
        statuses.push_back(status);
      }
    }
    Context context;
    auto stream = stub_->StreamInteractions(&context);
    v1::StreamInteractionsResponse answer;
    ASSERT_TRUE(stream->Write(request) && stream->Read(&answer));
    const auto count = [&](v1::InteractionStatus status) {
      return static_cast<uint64_t>(std::count(statuses.begin(), statuses.end(), status));
    };
    EXPECT_EQ(answer.applied(), count(v1::INTERACTION_STATUS_APPLIED));
    EXPECT_EQ(answer.duplicates(), count(v1::INTERACTION_STATUS_DUPLICATE));
    EXPECT_EQ(answer.late_refolded(), count(v1::INTERACTION_STATUS_LATE_REFOLDED));
    EXPECT_EQ(answer.unknown_items(), count(v1::INTERACTION_STATUS_UNKNOWN_ITEM));
    EXPECT_EQ(answer.rejected_size(), count(v1::INTERACTION_STATUS_REJECTED));
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
  }

  void RandomGetUser() {
    const std::string user = RandomUser();
    const UserLog& log = logs_[user];
    v1::GetUserRequest request;
    request.set_user_id(user);
    request.set_max_events(static_cast<uint32_t>(Random(20)));
    v1::GetUserResponse response;
    Context context;
    ASSERT_TRUE(stub_->GetUser(&context, request, &response).ok());
    EXPECT_EQ(response.event_count(), log.size());
    EXPECT_EQ(response.last_event_ms(), log.empty() ? 0 : log.rbegin()->second.timestamp_ms);
    EXPECT_EQ(response.first_event_ms(), log.empty() ? 0 : log.begin()->second.timestamp_ms);
    EXPECT_EQ(response.lineage().watermark(), LineageOf(log, log.size()).watermark);
    const size_t events = std::min<size_t>(log.size(), request.max_events());
    ASSERT_EQ(response.events_size(), static_cast<int>(events));
    auto at = std::next(log.begin(), static_cast<int64_t>(log.size() - events));
    for (const auto& event : response.events()) {
      EXPECT_EQ(PositionOf(EventOf(event)), at->first);
      EXPECT_EQ(event.item_id(), at->second.item_id);
      ++at;
    }
  }

  void RandomDelete() {
    const std::string user = RandomUser();
    v1::DeleteUserRequest request;
    request.set_user_id(user);
    v1::DeleteUserResponse response;
    Context context;
    ASSERT_TRUE(stub_->DeleteUser(&context, request, &response).ok());
    EXPECT_EQ(response.events_removed(), logs_[user].size());
    for (const auto& [position, event] : logs_[user]) {
      --recorded_[{DayOf(event.timestamp_ms), event.item_id}];
    }
    logs_.erase(user);
  }

  void RandomCall() {
    const uint64_t kind = Random(1000);
    if (kind < 300) return RandomRecord();
    if (kind < 550) return RandomRecommend();
    if (kind < 700) return RandomRecordAndRecommend();
    if (kind < 780) return RandomHistory();
    if (kind < 840) return RandomBatch();
    if (kind < 900) return RandomStream();
    if (kind < 980) return RandomGetUser();
    if (kind < 998) return RandomDelete();
    Restart(kind == 998 ? SIGTERM : SIGKILL);
  }

  uint64_t seed_ = std::random_device()();
  std::mt19937_64 random_;
  const int64_t start_ = NowMs() - 700 * kDay;
  std::unique_ptr<PlainFold> fold_;
  RecordedEvents recorded_;             // what the logs hold
  int64_t newest_day_ = DayOf(start_);  // of all events ever
  std::map<std::string, UserLog> logs_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<v1::Recommender::Stub> stub_;
};

TEST_F(RandomApi, EveryAnswerIsThatOfAPlainMapOfEvents) {
  constexpr int kCalls = 5000;
  for (int call = 0; call < kCalls; ++call) {
    RandomCall();
    ASSERT_FALSE(HasFailure()) << "call " << call << " of TIM4REC_TEST_SEED=" << seed_;
  }
}

}  // namespace
}  // namespace tim4rec
