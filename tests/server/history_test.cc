// Recommendations for histories that requests bring.
#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

class Histories : public PipelineTest {
 protected:
  void ServeModel(PackageContents contents) {
    pipeline_.reset();
    models_ = std::make_unique<Models>(NewModel("m", std::move(contents)));
    engine_ = models_->serving()->engine;
    Start();
  }

  static std::unique_ptr<TestJob> NewHistory(std::vector<Event> events, RecommendCommand options) {
    auto job = std::make_unique<TestJob>();
    job->history = std::move(events);
    job->recommend = std::move(options);
    return job;
  }

  // Random options: any time, any k, seen items in or out, some items left out.
  RecommendCommand RandomOptions(const std::vector<Event>& events, std::mt19937_64* random) const {
    RecommendCommand options;
    options.k = 1 + static_cast<int>((*random)() % 70);
    options.exclude_seen = (*random)() % 2 == 0;
    if ((*random)() % 3 == 0) options.excluded = {1, 5, 9};
    if (!events.empty() && (*random)() % 2 == 0) {
      const int64_t time = events[(*random)() % events.size()].timestamp_ms;
      options.as_of_ms = time + static_cast<int64_t>((*random)() % 3) - 1;
    }
    return options;
  }

  void ExpectEqualRecording(std::mt19937_64* random) {
    for (int round = 0; round < 60; ++round) {
      std::vector<Event> events = RandomEvents(static_cast<int>((*random)() % 40), random);
      for (int i = static_cast<int>(events.size()) / 5; i > 0; --i) {
        events.push_back(events[(*random)() % events.size()]);
        // The same event by its event id, of another item: the first one stays.
        if ((*random)() % 2 == 0) events.back().item_id = "item7";
      }
      std::shuffle(events.begin(), events.end(), *random);
      const RecommendCommand options = RandomOptions(events, random);
      auto stateless = Submit(NewHistory(events, options));
      ASSERT_TRUE(stateless->Wait().status.ok()) << stateless->status;
      const std::string user = absl::StrCat("fresh", fresh_++);
      Record(user, events);
      auto asked = NewRecommend(user);
      asked->recommend = options;
      asked = Submit(std::move(asked));
      ASSERT_TRUE(asked->Wait().status.ok()) << asked->status;
      const RecommendCommand& ours = *stateless->recommend;
      const RecommendCommand& theirs = *asked->recommend;
      EXPECT_TRUE(SameItems(ours.items, theirs.items)) << round;
      EXPECT_EQ(ours.state_version, theirs.state_version);
      EXPECT_EQ(ours.event_count, theirs.event_count);
      EXPECT_EQ(ours.last_event_ms, theirs.last_event_ms);
      EXPECT_EQ(ours.answered_as_of_ms, theirs.answered_as_of_ms);
      EXPECT_EQ(ours.tier == Tier::kColdStart, theirs.tier == Tier::kColdStart);
      EXPECT_NE(ours.tier, Tier::kHot);
    }
  }

  int fresh_ = 0;
};

TEST_F(Histories, EqualRecordingForAFreshUserAndAsking) {
  std::mt19937_64 random = PrintedRandom();
  ExpectEqualRecording(&random);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(absl::StrCat("published configuration ", seed));
    ServeModel(MakeTinyModel(RandomPublishedConfig(seed), seed));
    ExpectEqualRecording(&random);
  }
  for (const LatePolicy policy : {LatePolicy::kAppend, LatePolicy::kReject}) {
    options_.late_policy = policy;
    ServeModel(MakeTinyModel(8));
    ExpectEqualRecording(&random);
  }
}

TEST_F(Histories, StoreNothingAndKeepNothing) {
  std::mt19937_64 random = PrintedRandom();
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(Submit(NewHistory(RandomEvents(20, &random), {}))->Wait().status.ok());
  }
  EXPECT_EQ(metrics_.resident_users->Value(), 0);
  EXPECT_EQ(metrics_.events_applied->Value(), 0);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(metrics_.checkpoints->Value(), 0);
  int users = 0;
  ASSERT_TRUE(store_->ForEachUser("", [&](std::string_view) { return ++users; }).ok());
  EXPECT_EQ(users, 0);
  // The slot that a history used is free again, whatever the model's next user folds into it.
  Backend& backend = engine_->backend();
  const Slot slot = *backend.Allocate();
  EXPECT_LT(slot, 4);
  backend.Release(slot);
}

TEST_F(Histories, OfOneBatchDoNotMix) {
  std::mt19937_64 random = PrintedRandom();
  std::vector<std::vector<Event>> events(30);
  std::vector<RecommendCommand> alone;
  for (auto& of_one : events) {
    of_one = RandomEvents(1 + static_cast<int>(random() % 30), &random);
    alone.push_back(*Submit(NewHistory(of_one, {}))->Wait().recommend);
  }
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (const auto& of_one : events) {
    jobs.push_back(Submit(NewHistory(of_one, {})));
    jobs.push_back(Submit(NewRecord("u", {of_one[0]})));
  }
  release();
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_TRUE(SameItems(jobs[2 * i]->Wait().recommend->items, alone[i].items)) << i;
    EXPECT_TRUE(jobs[2 * i + 1]->Wait().status.ok());
  }
}

TEST_F(Histories, AreDealtOutToAllWorkers) {
  options_.workers = 2;
  Start();
  const auto release = Block();  // one of the two
  std::atomic<int> done = 0;
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int i = 0; i < 6; ++i) {
    auto job = NewHistory({}, {});
    job->on_complete = [&] { ++done; };
    jobs.push_back(Submit(std::move(job)));
  }
  while (done < 3) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(done, 3);
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
}

}  // namespace
}  // namespace tim4rec
