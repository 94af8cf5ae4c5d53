// Retention removes the front of a log and leaves the state as it was.
#include "server/pipeline/retention.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "model/backends/builtin.h"
#include "server/pipeline/history.h"
#include "server/pipeline/model_swap.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr auto kExpired = EventOutcome::kExpired;

Event At(int64_t timestamp_ms, const std::string& item, const std::string& id = "") {
  return {item, timestamp_ms, id};
}

bool Eventually(const std::function<bool()>& done) {
  for (int wait = 0; wait < 20'000; ++wait) {
    if (done()) return true;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return false;
}

class RetentionTest : public PipelineTest {
 protected:
  static constexpr int64_t kMost = 20;
  static constexpr int64_t kBeforeCut = kMost + 16;

  RetentionTest() {
    options_.retention.max_events_per_user = kMost;
    Start();
  }

  // Items 1 to 30 in turn, an event a second; the last of the log is number `count`.
  static Event Numbered(int64_t n) { return At(n * 1000, absl::StrCat("item", 1 + (n - 1) % 30)); }
  static std::vector<Event> Numbers(int64_t first, int64_t last) {
    std::vector<Event> events;
    for (int64_t n = first; n <= last; ++n) events.push_back(Numbered(n));
    return events;
  }

  uint64_t Removed(const std::string& user) const {
    const auto truncation = store_->ReadTruncation(user);
    EXPECT_TRUE(truncation.ok()) << truncation.status();
    return *truncation ? (*truncation)->lineage.event_count : 0;
  }
  // Records events until the log has been cut once, at `kBeforeCut + 1` of them.
  void RecordUntilCut(const std::string& user) {
    Record(user, Numbers(1, kBeforeCut));
    EXPECT_EQ(Removed(user), 0u);
    Record(user, {Numbered(kBeforeCut + 1)});
    ASSERT_TRUE(Eventually([&] { return Removed(user) > 0; }));
    EXPECT_EQ(Removed(user), 17u);
    // The worker that cut the log has also taken note of it.
    Recommend("another user");
  }
  VerifyUserCommand Verify(const std::string& user, const ModelHandle& model = nullptr) {
    auto job = std::make_unique<TestJob>();
    job->user_id = user;
    job->model = model;
    job->verify_user.emplace();
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_TRUE(job->status.ok()) << job->status;
    return *job->verify_user;
  }
  absl::Status StatusOf(std::unique_ptr<TestJob> job) {
    job = Submit(std::move(job));
    job->Wait();
    return job->status;
  }
  static std::unique_ptr<TestJob> NewDelete(const std::string& user, bool purge) {
    auto job = std::make_unique<TestJob>();
    job->user_id = user;
    job->delete_user.emplace().purge = purge;
    return job;
  }
  static Lineage LineageOf(const std::vector<Event>& events) {
    Lineage lineage;
    for (const Event& event : events) lineage.Extend(PositionOf(event), event.item_id);
    lineage.log_truncated = true;
    return lineage;
  }
  // Makes the user's checkpoint useless, so that the state is folded from what is left.
  void SpoilCheckpoint(const std::string& user) {
    StateRecord record = **store_->Get(user, engine_->fingerprint());
    record.lineage.hash[0] ^= 1;
    const UserState put[] = {{user, engine_->fingerprint(), &record}};
    ASSERT_TRUE(store_->Put(put).ok());
  }
};

TEST_F(RetentionTest, ALogIsCutBackAndTheStateStaysThatOfAllEvents) {
  RecordUntilCut("u");
  const std::vector<Event> all = Numbers(1, 37);
  GetUserCommand user = GetUser("u");
  EXPECT_EQ(user.lineage, LineageOf(all));
  EXPECT_EQ(user.removed, 17u);
  EXPECT_EQ(user.first_event_ms, 18'000);
  EXPECT_EQ(user.last_event_ms, 37'000);
  EXPECT_EQ(user.events.size(), 20u);
  EXPECT_EQ(PositionOf(user.events.front()), PositionOf(Numbered(18)));
  EXPECT_EQ(metrics_.events_removed->Value(), 17);
  const RecommendCommand hot = Recommend("u");
  EXPECT_EQ(hot.tier, Tier::kHot);
  EXPECT_EQ(hot.state_version, 37u);
  EXPECT_EQ(hot.event_count, 37u);
  EXPECT_TRUE(Verify("u").resident_equal);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(all));

  Start();
  const RecommendCommand stored = Recommend("u");
  EXPECT_EQ(stored.tier, Tier::kStored);
  EXPECT_EQ(stored.event_count, 37u);
  EXPECT_TRUE(SameItems(stored.items, hot.items));
  pipeline_.reset();
  SpoilCheckpoint("u");
  Start();
  const RecommendCommand rebuilt = Recommend("u");
  EXPECT_EQ(rebuilt.tier, Tier::kRebuilt);
  EXPECT_EQ(rebuilt.event_count, 37u);
  EXPECT_TRUE(SameItems(rebuilt.items, hot.items));
  EXPECT_TRUE(Verify("u").resident_equal);
  EXPECT_THAT(Record("u", {Numbered(38)}), ElementsAre(EventOutcome::kApplied));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(Numbers(1, 38)));
}

TEST_F(RetentionTest, RetriesOfRemovedEventsAreExpiredAndChangeNothing) {
  RecordUntilCut("u");
  const Lineage before = GetUser("u").lineage;
  for (const LatePolicy policy : {LatePolicy::kRefold, LatePolicy::kAppend, LatePolicy::kReject}) {
    options_.late_policy = policy;
    Start();  // at first not resident
    for (int round = 0; round < 2; ++round) {
      EXPECT_THAT(Record("u", Numbers(1, 17)), Each(kExpired));
      EXPECT_THAT(Record("u", {Numbered(17), Numbered(18), At(16'500, "item99"), At(5, "item1")}),
                  ElementsAre(kExpired, EventOutcome::kDuplicate, kExpired, kExpired));
      EXPECT_EQ(GetUser("u").lineage, before);
    }
  }
  EXPECT_EQ(metrics_.events_expired->Value(), 3 * 2 * (17 + 3));
  // Behind the cut a late event is what it always was.
  options_.late_policy = LatePolicy::kRefold;
  Start();
  EXPECT_THAT(Record("u", {At(18'500, "item40"), At(17'001, "item41")}),
              ElementsAre(EventOutcome::kLateRefolded, EventOutcome::kLateRefolded));
  std::vector<Event> all = Numbers(1, 37);
  all.push_back(At(18'500, "item40"));
  all.push_back(At(17'001, "item41"));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(all));
}

TEST_F(RetentionTest, LateAppendedEventsGoInTheOrderOfTheFold) {
  options_.late_policy = LatePolicy::kAppend;
  Start();
  Record("u", Numbers(10, 25));
  Record("u", {At(1, "item50"), At(2, "item51")});  // folded behind number 25
  Record("u", Numbers(26, 44));
  ASSERT_TRUE(Eventually([&] { return Removed("u") > 0; }));
  EXPECT_EQ(Removed("u"), 17u);  // 10 to 25, and the first of the late ones
  std::vector<std::string> items;
  for (const Event& event : GetUser("u").events) items.push_back(event.item_id);
  EXPECT_EQ(items.front(), "item51");
  EXPECT_THAT(Record("u", {At(1, "item50"), At(2, "item51"), At(3, "item52"), Numbered(25)}),
              ElementsAre(kExpired, EventOutcome::kDuplicate, kExpired, kExpired));
  std::vector<FoldEvent> fold;
  const auto add = [&](const Event& event, int64_t time_ms) {
    fold.push_back({*engine_->catalog().Find(event.item_id), time_ms});
  };
  for (const Event& event : Numbers(10, 25)) add(event, event.timestamp_ms);
  add(At(1, "item50"), 25'000);
  add(At(2, "item51"), 25'000);
  for (const Event& event : Numbers(26, 44)) add(event, event.timestamp_ms);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), FoldedOneByOne(*engine_, fold));
  SpoilCheckpoint("u");
  Start();
  EXPECT_EQ(Recommend("u").tier, Tier::kRebuilt);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), FoldedOneByOne(*engine_, fold));
}

TEST_F(RetentionTest, ThePastBeforeTheCutIsOutOfRange) {
  // What was seen is forgotten with the events: compare answers that do not depend on it.
  const auto ask = [this](int64_t as_of_ms) {
    auto job = NewRecommend("u", as_of_ms);
    job->recommend->exclude_seen = false;
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_TRUE(job->status.ok()) << job->status;
    return *job->recommend;
  };
  Record("u", Numbers(1, 36));
  const RecommendCommand middle = ask(20'500);
  const RecommendCommand last = ask(17'000);
  Record("u", {Numbered(37)});
  ASSERT_TRUE(Eventually([&] { return Removed("u") == 17; }));
  for (const auto& [before, as_of_ms] : {std::pair(&middle, 20'500), {&last, 17'000}}) {
    const RecommendCommand now = ask(as_of_ms);
    EXPECT_TRUE(SameItems(now.items, before->items));
    EXPECT_EQ(now.state_version, before->state_version);
    EXPECT_EQ(now.event_count, before->event_count);
    EXPECT_EQ(now.last_event_ms, before->last_event_ms);
    EXPECT_EQ(now.tier, Tier::kRebuilt);
  }
  EXPECT_EQ(GetUser("u", 20'500).events.size(), 3u);
  const absl::Status past = StatusOf(NewRecommend("u", 16'999));
  EXPECT_EQ(past.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(past.message()),
              AllOf(HasSubstr("as_of_ms: 16999 lies before 17000"), HasSubstr("event_ttl_ms")));
  auto get = std::make_unique<TestJob>();
  get->user_id = "u";
  get->get_user.emplace().at_ms = 5;
  const absl::Status user = StatusOf(std::move(get));
  EXPECT_EQ(user.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(user.message()), HasSubstr("at_ms: 5 lies before"));
  EXPECT_EQ(metrics_.failed_read->Value(), 0);
}

TEST_F(RetentionTest, ItemsOfRemovedEventsAreNotSeenAnyMore) {
  RecordUntilCut("u");  // items 18 to 30 and 1 to 7 are in the log
  std::vector<std::vector<int32_t>> answers;
  for (int restart = 0; restart < 2; ++restart) {
    auto job = NewRecommend("u");
    job->recommend->k = 1000;
    job = Submit(std::move(job));
    job->Wait();
    std::vector<int32_t>& items = answers.emplace_back();
    for (const ScoredItem& item : job->recommend->items) items.push_back(item.item);
    EXPECT_THAT(items, Contains(8));
    EXPECT_THAT(items, Contains(17));
    for (const int32_t seen : {1, 7, 18, 30}) EXPECT_THAT(items, Not(Contains(seen)));
    Start();
  }
  EXPECT_EQ(answers[0], answers[1]);
}

TEST_F(RetentionTest, TheSweepFindsIdleUsersWhoseEventsAreTooOld) {
  const auto now_ms = std::make_shared<std::atomic<int64_t>>(50'000);
  options_.clock = [now_ms] { return absl::FromUnixMillis(now_ms->load()); };
  options_.retention = {};
  Start();
  for (int u = 0; u < 150; ++u) Record(absl::StrCat("idle", u), Numbers(1, 5));
  Record("half", Numbers(1, 40));
  Record("young", Numbers(31, 40));
  Record("nobody's", {At(1, "nobody"), At(2, "nobody")});
  ASSERT_TRUE(pipeline_->Drain().ok());
  const std::string fold = Stored("half");

  options_.workers = 2;
  options_.retention.event_ttl = absl::Seconds(20);
  options_.sweep_interval = absl::Milliseconds(1);
  Start();
  ASSERT_TRUE(Eventually([&] { return metrics_.events_removed->Value() == 150 * 5 + 29 + 2; }))
      << metrics_.events_removed->Value();
  EXPECT_EQ(Removed("half"), 29u);
  EXPECT_EQ(Removed("young"), 0u);
  EXPECT_EQ(GetUser("half").events.size(), 11u);
  const GetUserCommand idle = GetUser("idle7");
  EXPECT_THAT(idle.events, IsEmpty());
  EXPECT_EQ(idle.removed, 5u);
  EXPECT_EQ(idle.lineage, LineageOf(Numbers(1, 5)));
  EXPECT_EQ(idle.first_event_ms, 0);
  EXPECT_EQ(idle.last_event_ms, 5000);
  EXPECT_EQ(idle.tier, Tier::kRebuilt);
  EXPECT_EQ(Recommend("nobody's").tier, Tier::kColdStart);
  EXPECT_EQ(Recommend("nobody's").state_version, 2u);
  // An empty log still has a state, and events go on from it.
  const RecommendCommand answer = Recommend("idle7");
  EXPECT_EQ(answer.tier, Tier::kRebuilt);
  EXPECT_EQ(answer.event_count, 5u);
  EXPECT_EQ(answer.last_event_ms, 5000);
  EXPECT_THAT(Record("idle8", {Numbered(5), Numbered(45)}),
              ElementsAre(kExpired, EventOutcome::kApplied));
  EXPECT_THAT(Record("idle7", {Numbered(45), At(46'000, "nobody")}),
              ElementsAre(EventOutcome::kApplied, EventOutcome::kUnknownItem));
  // Time goes on, and takes more, also of users who are in memory.
  *now_ms = 60'500;
  ASSERT_TRUE(Eventually([&] { return Removed("young") == 10 && Removed("half") == 40; }));
  EXPECT_EQ(Removed("idle8"), 5u);
  EXPECT_FALSE(Recommend("half").items.empty());
  EXPECT_TRUE(Verify("half").resident_equal);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("half"), fold);
  std::vector<Event> five = Numbers(1, 5);
  five.push_back(Numbered(45));
  EXPECT_EQ(Stored("idle7"), Folded(five));
  EXPECT_EQ(Stored("idle8"), Folded(five));
}

TEST_F(RetentionTest, TheSweepCutsWhatIsLongerThanANewLimit) {
  options_.retention = {};
  Start();
  Record("u", Numbers(1, 100));
  Record("v", Numbers(1, 36));
  options_.retention.max_events_per_user = kMost;
  Start();
  ASSERT_TRUE(Eventually([&] { return Removed("u") == 80; }));
  EXPECT_EQ(Removed("v"), 0u);
  Recommend("u");
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(Numbers(1, 100)));
}

TEST_F(RetentionTest, ADeletedUserLeavesNeitherTruncationNorBase) {
  for (const bool purge : {false, true}) {
    RecordUntilCut("u");
    auto job = Submit(NewDelete("u", purge));
    job->Wait();
    ASSERT_TRUE(job->status.ok()) << job->status;
    EXPECT_EQ(job->delete_user->removed.events, 20u);
    EXPECT_EQ(job->delete_user->removed.states, 1u);  // the base
    EXPECT_EQ(Removed("u"), 0u);
    EXPECT_FALSE((*store_->GetBase("u", engine_->fingerprint())).has_value());
    EXPECT_EQ(GetUser("u").lineage, Lineage());
  }
  // A new life.
  EXPECT_THAT(Record("u", Numbers(1, 3)), Each(EventOutcome::kApplied));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(Numbers(1, 3)));
}

TEST_F(RetentionTest, ADamagedBaseIsDataLossAndNeverReplaced) {
  RecordUntilCut("u");
  RecordUntilCut("other");
  ASSERT_TRUE(pipeline_->Drain().ok());
  const LoadedModel& model = *models_->serving();
  const Truncation truncation = **store_->ReadTruncation("u");
  Truncation of_others = truncation;
  of_others.lineage.hash[1] ^= 1;
  EXPECT_TRUE(ReadBase(*store_, model, "u", truncation).ok());
  EXPECT_EQ(ReadBase(*store_, model, "u", of_others).status().code(), absl::StatusCode::kDataLoss);
  // Its checksum is right, its size is not.
  StateRecord bad = **store_->GetBase("u", engine_->fingerprint());
  bad.payload.pop_back();
  const UserState bases[] = {{"u", engine_->fingerprint(), &bad}};
  const UserTruncation damage[] = {{"u", truncation, {}, bases}};
  ASSERT_TRUE(store_->Truncate(damage).ok());
  Start();
  const absl::Status lost = StatusOf(NewRecommend("u"));
  EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(lost.message()),
              AllOf(HasSubstr("user 'u'"), HasSubstr("does not fit the log")));
  EXPECT_EQ(StatusOf(NewRecord("u", Numbers(38, 60))).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Recommend("other").event_count, 37u);
  EXPECT_GE(metrics_.failed_read->Value(), 2);
  // Nor by retention, for which the log is too long now.
  Start();
  ASSERT_TRUE(Eventually([&] { return metrics_.failed_truncate->Value() > 0; }));
  pipeline_.reset();
  EXPECT_EQ((*store_->GetBase("u", engine_->fingerprint()))->payload, bad.payload);
  EXPECT_EQ(Removed("u"), 17u);
  EXPECT_EQ(Removed("other"), 17u);
}

TEST_F(RetentionTest, AFailedCutChangesNothingAndIsMadeLater) {
  truncate_error_ = absl::ResourceExhaustedError("disk full");
  Record("u", Numbers(1, 40));
  ASSERT_TRUE(Eventually([&] { return metrics_.failed_truncate->Value() > 0; }));
  EXPECT_EQ(Removed("u"), 0u);
  EXPECT_EQ(Recommend("u").event_count, 40u);
  pipeline_.reset();
  truncate_error_ = absl::OkStatus();
  Start();
  ASSERT_TRUE(Eventually([&] { return Removed("u") == 20; }));
  Recommend("u");
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(Numbers(1, 40)));
}

TEST_F(RetentionTest, WhatAnInexactBackendFoldsIsNotKept) {
  pipeline_.reset();
  models_ = std::make_unique<Models>(NewModel("m", MakeTinyModel(7), "torch"));
  Start();
  Record("u", Numbers(1, 40));
  ASSERT_TRUE(Eventually([&] { return metrics_.failed_truncate->Value() > 0; }));
  EXPECT_EQ(Removed("u"), 0u);
  const absl::Status exact = CheckExact(*models_->serving());
  EXPECT_EQ(exact.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(exact.message()), HasSubstr("torch"));
}

TEST_F(RetentionTest, AModelThatIsLoadedLaterBeginsAtTheCut) {
  const ModelHandle a = models_->serving();
  const ModelHandle b = NewModel("b", MakeTinyModel(8));
  RecordUntilCut("u");
  ASSERT_TRUE(models_->Add(b).ok());
  auto job = NewRecommend("u");
  job->model = b;
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_EQ(job->recommend->event_count, 20u);
  EXPECT_EQ(job->recommend->state_version, 37u);
  EXPECT_TRUE(Verify("u", b).resident_equal);
  // From now on it has a base too, which begins there.
  Record("u", Numbers(38, 54));
  ASSERT_TRUE(Eventually([&] { return Removed("u") == 34; }));
  job = NewRecommend("u");
  job->model = b;
  job = Submit(std::move(job));
  EXPECT_EQ(job->Wait().recommend->event_count, 37u);
  EXPECT_TRUE(Verify("u", b).resident_equal);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(Numbers(1, 54)));
  EXPECT_EQ((*store_->Get("u", b->fingerprint()))->payload, Folded(*b->engine, Numbers(18, 54)));

  // Unloading takes checkpoints and bases: loaded again, it begins at the cut.
  Start();
  ModelSwap swap({"cpu"},
                 {models_.get(), pipeline_.get(), store_.get(), &metrics_, &BuiltinBackends(),
                  [this](LoadedModel* model) { return Follow(model); }});
  ASSERT_TRUE(swap.Unload(b->version).ok());
  EXPECT_FALSE((*store_->GetBase("u", b->fingerprint())).has_value());
  EXPECT_TRUE((*store_->GetBase("u", a->fingerprint())).has_value());
  // Who still holds it is refused: that state is gone.
  auto late = NewRecommend("u");
  late->model = b;
  EXPECT_EQ(StatusOf(std::move(late)).code(), absl::StatusCode::kFailedPrecondition);
  const ModelHandle again = NewModel("b", MakeTinyModel(8));
  ASSERT_TRUE(models_->Add(again).ok());
  job = NewRecommend("u");
  job->model = again;
  job = Submit(std::move(job));
  EXPECT_EQ(job->Wait().recommend->event_count, 20u);
  EXPECT_EQ(Recommend("u").event_count, 54u);
}

TEST_F(RetentionTest, CutsWhileAPromotionRefoldsLeaveBothStatesThoseOfAllEvents) {
  constexpr int kUsers = 8;
  const ModelHandle a = models_->serving(), b = NewModel("b", MakeTinyModel(8));
  ASSERT_TRUE(models_->Add(b).ok());
  const auto user = [](int64_t u) { return absl::StrCat("user", u); };
  std::vector<int64_t> recorded(kUsers, 150);
  for (int u = 0; u < kUsers; ++u) Record(user(u), Numbers(1, recorded[u]));
  ModelSwap swap({"cpu", absl::Hours(1)},
                 {models_.get(), pipeline_.get(), store_.get(), &metrics_, &BuiltinBackends(),
                  [this](LoadedModel* model) { return Follow(model); }});
  std::atomic<bool> done = false;
  std::thread swaps([&] {
    for (int i = 0; i < 6; ++i) {
      const ModelHandle& to = i % 2 == 0 ? b : a;
      EXPECT_TRUE(swap.Promote(to->version, [] { return false; }).ok());
      // So that the next promotion folds again.
      (i % 2 == 0 ? a : b)->kept_until_ms = 0;
      pipeline_->ReleaseStates();
    }
    done = true;
  });
  // Bounded, as each promotion folds what came during the one before.
  for (int64_t i = 0; i < 50 * kUsers || (!done && i < 300 * kUsers); ++i) {
    const auto u = static_cast<size_t>(i % kUsers);
    Record(user(i % kUsers), {Numbered(++recorded[u])});
  }
  swaps.join();
  for (const ModelHandle& model : {a, b}) {
    for (int u = 0; u < kUsers; ++u) {
      auto job = NewRecommend(user(u));
      job->model = model;
      EXPECT_TRUE(StatusOf(std::move(job)).ok());
    }
  }
  for (int u = 0; u < kUsers; ++u) {
    for (int wait = 0; wait < 2000 && Removed(user(u)) <= 150; ++wait) {
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int u = 0; u < kUsers; ++u) {
    EXPECT_GT(Removed(user(u)), 150u);
    for (const ModelHandle& model : {a, b}) {
      const auto stored = *store_->Get(user(u), model->fingerprint());
      ASSERT_TRUE(stored.has_value());
      EXPECT_EQ(stored->payload, Folded(*model->engine, Numbers(1, recorded[u]))) << u;
    }
  }
}

TEST_F(RetentionTest, AnInexactModelIsNotLoaded) {
  const std::string dir = dir_ + "/model";
  ASSERT_TRUE(WritePackage(dir, MakeTinyModel(9)).ok());
  ModelSwap swap({.backend = "cpu", .keep_states_for = absl::Hours(1), .exact_only = true},
                 {models_.get(), pipeline_.get(), store_.get(), &metrics_, &BuiltinBackends(),
                  [this](LoadedModel* model) { return Follow(model); }});
  const absl::Status inexact = swap.Load(dir, "m9", "torch").status();
  EXPECT_EQ(inexact.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(inexact.message()), HasSubstr("torch"));
  EXPECT_EQ(models_->List().size(), 1u);
  EXPECT_TRUE(swap.Load(dir, "m9", "cpu").ok());
}

// What must have become of a user, whatever was cut when.
class PlainUser {
 public:
  struct Entry {
    Event event;
    Position position;
    int64_t time_ms;
    bool late;
  };

  void Record(const std::vector<Event>& request, const std::vector<EventOutcome>& outcomes,
              LatePolicy policy) {
    std::map<Position, Event> late;
    std::map<Position, Event> others;
    std::set<Position> left;  // in the log before the request
    for (size_t i = removed_; i < entries_.size(); ++i) left.insert(entries_[i].position);
    const Position newest = newest_;
    for (size_t i = 0; i < request.size(); ++i) {
      const Position position = PositionOf(request[i]);
      const bool old = removed_ > 0 && position <= watermark_ && !left.contains(position);
      const bool twice = late.contains(position) || others.contains(position);
      switch (outcomes[i]) {
        case EventOutcome::kDuplicate:
          EXPECT_TRUE(left.contains(position) || twice);
          continue;
        case EventOutcome::kExpired:
          EXPECT_TRUE(old);
          continue;
        case EventOutcome::kLateRejected:
          EXPECT_TRUE(policy == LatePolicy::kReject && position < newest);
          continue;
        default:
          EXPECT_FALSE(old || twice);
          EXPECT_TRUE(ever_.insert(position).second) << "counted twice";
      }
      (position < newest && policy == LatePolicy::kAppend ? late : others)
          .emplace(position, request[i]);
    }
    for (const auto& [position, event] : late) {
      entries_.push_back({event, position, entries_.back().time_ms, true});
    }
    for (const auto& [position, event] : others) {
      const auto next = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
        return !entry.late && entry.position > position;
      });
      EXPECT_GE(next - entries_.begin(), static_cast<int64_t>(removed_));
      entries_.insert(next, {event, position, event.timestamp_ms, false});
      newest_ = std::max(newest_, position);
    }
  }

  // The log was seen to begin behind that many events; models that are not loaded begin there too.
  void Cut(size_t removed, const RetentionPolicy& policy, absl::Time now,
           const std::vector<ModelHandle>& absent) {
    ASSERT_GE(removed, removed_);
    if (removed == removed_) return;
    const int64_t total = static_cast<int64_t>(entries_.size());
    for (size_t i = removed_; i < removed; ++i) {
      const bool over = policy.max_events_per_user > 0 &&
                        static_cast<int64_t>(i) < total - policy.max_events_per_user;
      EXPECT_TRUE(over || entries_[i].time_ms < policy.oldest_ms(now)) << "removed for no reason";
      watermark_ = std::max(watermark_, entries_[i].position);
    }
    for (const ModelHandle& model : absent) begin_[model.get()] = removed;
    removed_ = removed;
  }

  size_t removed() const { return removed_; }
  const std::vector<Entry>& entries() const { return entries_; }
  Lineage LineageOf(size_t count) const {
    Lineage lineage;
    for (size_t i = 0; i < count; ++i) {
      lineage.Extend(entries_[i].position, entries_[i].event.item_id);
    }
    lineage.log_truncated = removed_ > 0;
    return lineage;
  }
  std::vector<FoldEvent> Fold(const LoadedModel& model) const {
    const auto begin = begin_.find(&model);
    std::vector<FoldEvent> fold;
    for (size_t i = begin == begin_.end() ? 0 : begin->second; i < entries_.size(); ++i) {
      const auto item = model.engine->catalog().Find(entries_[i].event.item_id);
      if (item) fold.push_back({*item, entries_[i].time_ms});
    }
    return fold;
  }

 private:
  std::vector<Entry> entries_;  // all that were ever stored
  std::set<Position> ever_;
  size_t removed_ = 0;
  Position watermark_;  // of the removed ones
  Position newest_;
  std::map<const LoadedModel*, size_t> begin_;
};

// Limits and policies that change with every restart, two models of which one may be absent,
// evictions, disorder, retries of everything, sweeps that never rest.
class RandomRetention : public RetentionTest {
 protected:
  static constexpr size_t kUsers = 6;

  std::string Name(size_t u) const { return absl::StrCat("user", u); }
  void Look(size_t u) {
    plain_[u].Cut(Removed(Name(u)), options_.retention, absl::FromUnixMillis(kNow), absent_);
  }
  void Begin() {
    constexpr int64_t kLimits[] = {0, 5, 20, 60};
    constexpr int kDays[] = {0, 0, 250, 100};
    pipeline_.reset();
    const uint64_t choice = random_() % 3;
    absent_.clear();
    models_ = std::make_unique<Models>(both_[choice == 1]);
    if (choice == 2) {
      EXPECT_TRUE(models_->Add(both_[1]).ok());
    } else {
      absent_ = {both_[choice == 0]};
    }
    options_.retention = {kLimits[random_() % 4], absl::Hours(24 * kDays[random_() % 4])};
    options_.sweep_interval = absl::Milliseconds(1 + random_() % 20);
    options_.max_resident_users = 2 + static_cast<int64_t>(random_() % 6);
    options_.checkpoint_interval = absl::Milliseconds(random_() % 3);
    options_.late_policy = static_cast<LatePolicy>(random_() % 3);
    options_.workers = 1 + static_cast<int>(random_() % 2);
    Start();
  }
  void Step() {
    const size_t u = random_() % kUsers;
    std::vector<Event> request = RandomEvents(1 + static_cast<int>(random_() % 5), &random_);
    const int64_t shift = static_cast<int64_t>(random_() % 300) * 86'400'000;
    for (Event& event : request) event.timestamp_ms += shift;
    for (uint64_t n = random_() % 3; n > 0 && !sent_[u].empty(); --n) {
      request.push_back(sent_[u][random_() % sent_[u].size()]);
    }
    std::shuffle(request.begin(), request.end(), random_);
    sent_[u].insert(sent_[u].end(), request.begin(), request.end());
    auto job = NewRecord(Name(u), request);
    job->model = Any();
    Settle(u);
    job = Submit(std::move(job));
    job->Wait();
    ASSERT_TRUE(job->status.ok()) << job->status;
    plain_[u].Record(request, job->record->outcomes, options_.late_policy);
    EXPECT_EQ(job->record->state_version, plain_[u].entries().size());
    Settle(u);
    if (random_() % 3 == 0) Recommend(Name(random_() % kUsers));
  }
  // Waits until no cut of the user is due any more, and takes note of what was cut.
  void Settle(size_t u) {
    const RetentionPolicy& policy = options_.retention;
    ASSERT_TRUE(Eventually([&] {
      Look(u);
      const auto& entries = plain_[u].entries();
      const size_t removed = plain_[u].removed();
      const auto left = static_cast<int64_t>(entries.size() - removed);
      return left <= policy.most_events() &&
             (left == 0 ||
              entries[removed].time_ms >= policy.oldest_ms(absl::FromUnixMillis(kNow)));
    }));
  }
  ModelHandle Any() {
    const std::vector<ModelHandle> loaded = models_->List();
    return loaded[random_() % loaded.size()];
  }
  void CheckAll() {
    pipeline_.reset();
    for (size_t u = 0; u < kUsers; ++u) Look(u);
    absent_.clear();
    models_ = std::make_unique<Models>(both_[0]);
    ASSERT_TRUE(models_->Add(both_[1]).ok());
    options_.retention = {};
    options_.max_resident_users = 100;
    Start();
    for (size_t u = 0; u < kUsers; ++u) {
      const PlainUser& plain = plain_[u];
      const GetUserCommand got = GetUser(Name(u));
      EXPECT_EQ(got.removed, plain.removed());
      EXPECT_EQ(got.lineage, plain.LineageOf(plain.entries().size()));
      ASSERT_EQ(got.events.size(), plain.entries().size() - plain.removed());
      for (size_t i = 0; i < got.events.size(); ++i) {
        EXPECT_EQ(PositionOf(got.events[i]), plain.entries()[plain.removed() + i].position);
      }
      for (const ModelHandle& model : both_) {
        auto job = NewRecommend(Name(u));
        job->model = model;
        EXPECT_TRUE(StatusOf(std::move(job)).ok());
        EXPECT_EQ(Verify(Name(u), model).difference, "");
      }
    }
    ASSERT_TRUE(pipeline_->Drain().ok());
    for (size_t u = 0; u < kUsers; ++u) {
      const PlainUser& plain = plain_[u];
      for (const ModelHandle& model : both_) {
        const auto stored = *store_->Get(Name(u), model->fingerprint());
        if (plain.entries().empty()) continue;
        ASSERT_TRUE(stored.has_value());
        EXPECT_EQ(stored->lineage, plain.LineageOf(plain.entries().size()));
        EXPECT_EQ(stored->payload, FoldedOneByOne(*model->engine, plain.Fold(*model)));
        const auto base = *store_->GetBase(Name(u), model->fingerprint());
        EXPECT_TRUE(!base || base->lineage == plain.LineageOf(plain.removed()));
      }
    }
  }

  std::mt19937_64 random_ = PrintedRandom();
  const std::vector<ModelHandle> both_ = {models_->serving(), NewModel("other", MakeTinyModel(8))};
  std::vector<ModelHandle> absent_;
  std::vector<PlainUser> plain_ = std::vector<PlainUser>(kUsers);
  std::vector<std::vector<Event>> sent_ = std::vector<std::vector<Event>>(kUsers);
};

TEST_F(RandomRetention, EveryStateIsTheFoldOfWhatItsModelWasGiven) {
  for (int restart = 0; restart < 10 && !HasFailure(); ++restart) {
    Begin();
    for (int step = 0; step < 100 && !HasFailure(); ++step) Step();
    CheckAll();
  }
  size_t removed = 0;
  for (const PlainUser& plain : plain_) removed += plain.removed();
  EXPECT_GT(removed, 50u);
  EXPECT_GT(metrics_.events_expired->Value(), 10);
}

}  // namespace
}  // namespace tim4rec
