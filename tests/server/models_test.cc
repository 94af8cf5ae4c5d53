#include "server/pipeline/models.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "model/backends/builtin.h"
#include "server/pipeline/model_swap.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Another catalogue, other sizes: item61 … item90 are unknown to the fixture's own model.
PackageContents LargerModel() {
  ModelConfig config;
  config.n_items = 91;
  config.hidden_size = 24;
  config.d_state = 5;
  config.head_dim = 12;
  config.num_layers = 1;
  config.time_hidden = 4;
  config.time.mean = 5;
  config.time.stddev = 3;
  return MakeTinyModel(config, 11);
}

class ModelsTest : public PipelineTest {
 protected:
  ModelsTest() : a_(models_->serving()), b_(NewModel("larger", LargerModel())) {
    EXPECT_TRUE(models_->Add(b_).ok());
    Begin();
  }

  void Begin(absl::Duration keep = absl::Hours(1)) {
    Start();
    swap_ = std::make_unique<ModelSwap>(
        ModelSwap::Options{"cpu", keep},
        ModelSwap::Deps{models_.get(), pipeline_.get(), store_.get(), &metrics_, &BuiltinBackends(),
                        [this](LoadedModel* model) { return Follow(model); }});
  }

  absl::Status Promote(const ModelHandle& model) {
    return swap_->Promote(model->version, [] { return false; }).status();
  }

  RecommendCommand RecommendBy(const ModelHandle& model, const std::string& user,
                               std::optional<int64_t> as_of_ms = {}) {
    auto job = NewRecommend(user, as_of_ms);
    job->model = model;
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_TRUE(job->status.ok()) << job->status;
    return *job->recommend;
  }

  std::vector<EventOutcome> RecordBy(const ModelHandle& model, const std::string& user,
                                     std::vector<Event> events) {
    auto job = NewRecord(user, std::move(events));
    job->model = model;
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_TRUE(job->status.ok()) << job->status;
    return job->record->outcomes;
  }

  std::string StoredBy(const ModelHandle& model, const std::string& user) {
    const auto record = store_->Get(user, model->fingerprint());
    EXPECT_TRUE(record.ok()) << record.status();
    return record.ok() && record->has_value() ? (*record)->payload : "no checkpoint";
  }

  const ModelHandle a_;
  const ModelHandle b_;
  std::unique_ptr<ModelSwap> swap_;
};

TEST_F(ModelsTest, AreFoundByVersionAndByFingerprint) {
  EXPECT_EQ(*models_->Find(""), a_);
  EXPECT_EQ(*models_->Find(b_->version), b_);
  EXPECT_EQ(*models_->Find(b_->fingerprint()), b_);
  const absl::Status absent = models_->Find("larger").status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(absent),
              AllOf(HasSubstr("\"larger\""), HasSubstr(a_->version), HasSubstr(b_->version)));
  auto loading = std::make_shared<LoadedModel>();
  loading->package = *ModelPackage::FromContents(MakeTinyModel(8));
  loading->version = absl::StrCat("l@", loading->fingerprint());
  ASSERT_TRUE(models_->Add(loading).ok());
  EXPECT_EQ(models_->Find(loading->version).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(models_->Add(loading).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(ModelsTest, AnItemIsUnknownToTheModelThatLacksItAlone) {
  EXPECT_THAT(RecordBy(a_, "u", {At(1, "item80"), At(2, "item1")}),
              ElementsAre(EventOutcome::kUnknownItem, EventOutcome::kApplied));
  EXPECT_THAT(RecordBy(b_, "u", {At(3, "item81"), At(4, "item999")}),
              ElementsAre(EventOutcome::kApplied, EventOutcome::kUnknownItem));
  const RecommendCommand by_a = RecommendBy(a_, "u");
  const RecommendCommand by_b = RecommendBy(b_, "u");
  EXPECT_EQ(by_a.state_version, 4u);
  EXPECT_EQ(by_a.event_count, 1u);
  EXPECT_EQ(by_b.state_version, 4u);
  EXPECT_EQ(by_b.event_count, 3u);
}

// Both models, chosen at random for each call, over restarts, evictions and late events.
TEST_F(ModelsTest, EventsReachTheStatesOfAllModelsByteForByte) {
  std::mt19937_64 random = PrintedRandom();
  options_.max_resident_users = 6;
  options_.max_batch = 8;
  constexpr int kUsers = 5;
  std::vector<std::vector<Event>> events(kUsers);
  for (int restart = 0; restart < 3; ++restart) {
    Begin();
    std::vector<std::unique_ptr<TestJob>> jobs;
    for (int call = 0; call < 150; ++call) {
      const int u = static_cast<int>(random() % kUsers);
      const std::string user = absl::StrCat("user", u);
      std::unique_ptr<TestJob> job;
      if (random() % 3 == 0) {
        job = NewRecommend(user);
      } else {
        std::vector<Event> some;
        for (int i = 0; i < 1 + static_cast<int>(random() % 3); ++i) {
          const int64_t late = random() % 8 == 0 ? 50'000'000 : 0;
          some.push_back(At(1'000'000 * (restart * 150 + call) + i - late,
                            absl::StrCat("item", 1 + random() % 95)));
        }
        events[u].insert(events[u].end(), some.begin(), some.end());
        job = NewRecord(user, some);
      }
      job->model = random() % 2 == 0 ? a_ : b_;
      jobs.push_back(Submit(std::move(job)));
    }
    for (auto& job : jobs) ASSERT_TRUE(job->Wait().status.ok()) << job->status;
  }
  for (const ModelHandle& model : {a_, b_}) {
    options_.max_resident_users = 100;
    Begin();
    for (int u = 0; u < kUsers; ++u) RecommendBy(model, absl::StrCat("user", u));
    ASSERT_TRUE(pipeline_->Drain().ok());
    for (int u = 0; u < kUsers; ++u) {
      EXPECT_EQ(StoredBy(model, absl::StrCat("user", u)), Folded(*model->engine, events[u])) << u;
    }
  }
}

TEST_F(ModelsTest, APromotionFoldsTheHotUsersFirstAndTheWayBackIsInstant) {
  std::mt19937_64 random = PrintedRandom();
  constexpr int kUsers = 40;
  std::vector<std::vector<Event>> events;
  const auto user = [](int u) { return absl::StrCat("user", u); };
  for (int u = 0; u < kUsers; ++u) {
    events.push_back(RandomEvents(1 + static_cast<int>(random() % 120), &random));
    Record(user(u), events[u]);
  }
  ASSERT_TRUE(Promote(b_).ok());
  EXPECT_EQ(models_->serving(), b_);
  EXPECT_EQ(metrics_.states_to_refold->Value(), 0);
  const double refolded = metrics_.states_refolded->Value();
  EXPECT_GT(refolded, kUsers * 0.8);  // the others have no event of a known item
  for (int u = 0; u < kUsers; ++u) {
    const Tier tier = Recommend(user(u)).tier;
    EXPECT_TRUE(tier == Tier::kHot || tier == Tier::kColdStart) << u;
  }
  // The states of the old model catch up with what came meanwhile, from the log.
  for (int u = 0; u < kUsers; ++u) {
    const Event last = At(kNow - 1, "item5");
    Record(user(u), {last});
    events[u].push_back(last);
  }
  ASSERT_TRUE(Promote(a_).ok());
  EXPECT_EQ(metrics_.states_refolded->Value(), refolded) << "nothing is folded before the way back";
  for (int u = 0; u < kUsers; ++u) EXPECT_EQ(Recommend(user(u)).tier, Tier::kHot) << u;
  for (int u = 0; u < kUsers; ++u) EXPECT_EQ(RecommendBy(b_, user(u)).tier, Tier::kHot) << u;
  EXPECT_EQ(metrics_.promotions->Value(), 2);
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int u = 0; u < kUsers; ++u) {
    EXPECT_EQ(StoredBy(a_, user(u)), Folded(*a_->engine, events[u])) << u;
    EXPECT_EQ(StoredBy(b_, user(u)), Folded(*b_->engine, events[u])) << u;
  }
}

TEST_F(ModelsTest, EventsDuringAPromotionAreInBothStates) {
  std::mt19937_64 random = PrintedRandom();
  constexpr int kUsers = 15;
  std::vector<std::vector<Event>> events(kUsers);
  for (int u = 0; u < kUsers; ++u) {
    events[u] = RandomEvents(150, &random);
    Record(absl::StrCat("user", u), events[u]);
  }
  std::atomic<bool> done = false;
  std::thread swaps([&] {
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(Promote(i % 2 == 0 ? b_ : a_).ok());
      // So that the next promotion folds again.
      (i % 2 == 0 ? a_ : b_)->kept_until_ms = 0;
      pipeline_->ReleaseStates();
    }
    done = true;
  });
  // Bounded, as each promotion folds what came during the one before.
  for (int64_t i = 0; !done && i < 300 * kUsers; ++i) {
    const int u = static_cast<int>(random() % kUsers);
    Event event = At(kNow - 1'000'000 + i, absl::StrCat("item", 1 + random() % 95));
    if (random() % 10 == 0) event.timestamp_ms -= 300LL * 86'400'000;
    Record(absl::StrCat("user", u), {event});
    events[u].push_back(event);
  }
  swaps.join();
  for (const ModelHandle& model : {a_, b_}) {
    for (int u = 0; u < kUsers; ++u) RecommendBy(model, absl::StrCat("user", u));
  }
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int u = 0; u < kUsers; ++u) {
    EXPECT_EQ(StoredBy(a_, absl::StrCat("user", u)), Folded(*a_->engine, events[u])) << u;
    EXPECT_EQ(StoredBy(b_, absl::StrCat("user", u)), Folded(*b_->engine, events[u])) << u;
  }
}

TEST_F(ModelsTest, OldStatesAreFreedWhenTheirTimeHasCome) {
  Begin(absl::Milliseconds(50));
  for (int u = 0; u < 200; ++u) Record(absl::StrCat("user", u), {At(1, "item1")});
  ASSERT_TRUE(Promote(b_).ok());
  // An idle worker wakes for it. What is freed was written before.
  for (int wait = 0; wait < 2000 && metrics_.resident_users->Value() > 200; ++wait) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(metrics_.resident_users->Value(), 200);
  EXPECT_EQ(StoredBy(a_, "user7"), Folded(*a_->engine, {At(1, "item1")}));
  EXPECT_EQ(Recommend("user7").tier, Tier::kHot);
  // It is done once: requests that name the model keep their states as others do.
  EXPECT_EQ(RecommendBy(a_, "user7").tier, Tier::kStored);
  EXPECT_EQ(RecommendBy(a_, "user7").tier, Tier::kHot);
  Begin(absl::ZeroDuration());
  Record("user7", {At(2, "item2")});
  ASSERT_TRUE(Promote(a_).ok());
  EXPECT_EQ(metrics_.resident_users->Value(), 1);
}

TEST_F(ModelsTest, StatesOverAllModelsAreBounded) {
  options_.max_resident_users = 20;
  Begin();
  for (int u = 0; u < 30; ++u) Record(absl::StrCat("user", u), {At(1, "item1")});
  EXPECT_EQ(metrics_.resident_users->Value(), 20);
  ASSERT_TRUE(Promote(b_).ok());
  EXPECT_LE(metrics_.resident_users->Value(), 20);
  EXPECT_EQ(metrics_.states_refolded->Value(), 10) << "half of the room stays the old model's";
  EXPECT_EQ(Recommend("user29").tier, Tier::kHot);
  EXPECT_EQ(Recommend("user0").tier, Tier::kRebuilt);
}

TEST_F(ModelsTest, AnUnloadedModelEndsWithTheLastThatHoldsIt) {
  for (int u = 0; u < 100; ++u) {
    Record(absl::StrCat("user", u), {At(1, "item1")});
    RecommendBy(b_, absl::StrCat("user", u));
  }
  EXPECT_EQ(swap_->Unload(a_->version).code(), absl::StatusCode::kFailedPrecondition);
  const RecommendCommand before = RecommendBy(b_, "user3", kNow);
  const auto release = Block();
  auto held = NewRecommend("user3", kNow);
  held->model = b_;
  held = Submit(std::move(held));
  std::thread unload([&] { EXPECT_TRUE(swap_->Unload(b_->fingerprint()).ok()); });
  while (models_->Find(b_->version).ok()) std::this_thread::yield();
  release();
  held->Wait();
  EXPECT_TRUE(held->status.ok()) << held->status;
  EXPECT_TRUE(SameItems(held->recommend->items, before.items));
  unload.join();
  EXPECT_EQ(metrics_.resident_users->Value(), 100);
  EXPECT_EQ(swap_->Unload(b_->version).code(), absl::StatusCode::kNotFound);
  // A request that still holds it is answered, and leaves nothing.
  EXPECT_EQ(RecommendBy(b_, "user3", kNow).tier, Tier::kRebuilt);
  pipeline_->ReleaseStates();
  EXPECT_EQ(metrics_.resident_users->Value(), 100);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(StoredBy(b_, "user3"), "no checkpoint");
  EXPECT_EQ(StoredBy(a_, "user3"), Folded(*a_->engine, {At(1, "item1")}));
}

TEST_F(ModelsTest, UnloadingRemovesCheckpoints) {
  Record("u", {At(1, "item1")});
  RecommendBy(b_, "u");
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_NE(StoredBy(b_, "u"), "no checkpoint");
  Begin();
  ASSERT_TRUE(swap_->Unload(b_->version).ok());
  EXPECT_EQ(StoredBy(b_, "u"), "no checkpoint");
  EXPECT_NE(StoredBy(a_, "u"), "no checkpoint");
}

TEST_F(ModelsTest, APromotionThatIsGivenUpChangesNothing) {
  for (int u = 0; u < 50; ++u) Record(absl::StrCat("user", u), {At(1, "item1")});
  const auto stopped = swap_->Promote(b_->version, [] { return true; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(models_->serving(), a_);
  EXPECT_EQ(Recommend("user1").tier, Tier::kHot);
  ASSERT_TRUE(Promote(b_).ok());
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(metrics_.states_to_refold->Value(), 0);
  // A drained pipeline folds nothing.
  a_->kept_until_ms = LoadedModel::kForEver;
  EXPECT_EQ(Promote(a_).code(), absl::StatusCode::kUnavailable);
}

TEST_F(ModelsTest, DeletingAUserForgetsTheStatesOfAllModels) {
  Record("u", {At(1, "item1")});
  RecommendBy(b_, "u");
  EXPECT_EQ(metrics_.resident_users->Value(), 2);
  auto job = std::make_unique<TestJob>();
  job->user_id = "u";
  job->delete_user.emplace();
  job = Submit(std::move(job));
  EXPECT_TRUE(job->Wait().status.ok());
  EXPECT_EQ(metrics_.resident_users->Value(), 0);
  EXPECT_EQ(RecommendBy(b_, "u").tier, Tier::kColdStart);
}

TEST_F(ModelsTest, AFailedAppendLeavesNoStateThatTheLogMayNotHave) {
  Record("u", {At(1, "item1")});
  RecommendBy(b_, "u");
  log_->append_error = absl::UnavailableError("no");
  auto job = Submit(NewRecord("u", {At(2, "item2")}));
  EXPECT_FALSE(job->Wait().status.ok());
  EXPECT_EQ(metrics_.resident_users->Value(), 0);
}

}  // namespace
}  // namespace tim4rec
