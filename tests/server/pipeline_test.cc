#include "server/pipeline/pipeline.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

Event At(int64_t timestamp_ms, const std::string& item, const std::string& id = "") {
  return {item, timestamp_ms, id};
}

std::vector<int32_t> ItemsOf(const RecommendCommand& answer) {
  std::vector<int32_t> items;
  for (const ScoredItem& item : answer.items) items.push_back(item.item);
  return items;
}

using Pipelines = PipelineTest;

TEST_F(Pipelines, RepeatedEventsCountOnce) {
  const std::vector<Event> events = {At(1, "item1"), At(2, "item2", "e"), At(1, "item1")};
  EXPECT_THAT(Record("u", events), ElementsAre(EventOutcome::kApplied, EventOutcome::kApplied,
                                               EventOutcome::kDuplicate));
  EXPECT_THAT(Record("u", events), Each(EventOutcome::kDuplicate));
  // The event's id counts, not its item.
  EXPECT_THAT(Record("u", {At(2, "item9", "e")}), Each(EventOutcome::kDuplicate));
  EXPECT_EQ(Recommend("u").state_version, 2u);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({events[0], events[1]}));
}

TEST_F(Pipelines, DisorderEqualsOrderByteForByte) {
  std::mt19937_64 random = PrintedRandom();
  const std::vector<Event> events = RandomEvents(60, &random);
  Record("ordered", events);
  std::vector<Event> shuffled = events;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  for (size_t begin = 0; begin < shuffled.size();) {
    const size_t end = std::min<size_t>(shuffled.size(), begin + 1 + random() % 5);
    Record("shuffled", {shuffled.begin() + begin, shuffled.begin() + end});
    begin = end;
  }
  EXPECT_TRUE(SameItems(Recommend("ordered").items, Recommend("shuffled").items));
  EXPECT_EQ(GetUser("ordered").lineage, GetUser("shuffled").lineage);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("ordered"), Folded(events));
  EXPECT_EQ(Stored("shuffled"), Folded(events));
}

TEST_F(Pipelines, LateEventsAreNamedWhetherTheUserIsResidentOrNot) {
  Record("u", {At(10, "item1"), At(20, "item2")});
  EXPECT_THAT(
      Record("u", {At(15, "item3"), At(30, "item4"), At(12, "nobody")}),
      ElementsAre(EventOutcome::kLateRefolded, EventOutcome::kApplied, EventOutcome::kUnknownItem));
  Start();
  EXPECT_THAT(
      Record("u", {At(16, "item5"), At(40, "item6"), At(17, "nobody")}),
      ElementsAre(EventOutcome::kLateRefolded, EventOutcome::kApplied, EventOutcome::kUnknownItem));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(10, "item1"), At(15, "item3"), At(16, "item5"), At(20, "item2"),
                                 At(30, "item4"), At(40, "item6")}));
}

TEST_F(Pipelines, LateEventsAreRejectedIfSoConfigured) {
  options_.late_policy = LatePolicy::kReject;
  Start();
  // Within one request the order does not matter.
  EXPECT_THAT(Record("u", {At(20, "item2"), At(10, "item1")}), Each(EventOutcome::kApplied));
  for (int restart = 0; restart < 2; ++restart) {
    auto job = Submit(NewRecord("u", {At(15, "item3"), At(20, "item2"), At(10, "item1"),
                                      At(30 + restart, "item4"), At(12, "nobody")}));
    job->Wait();
    ASSERT_TRUE(job->status.ok()) << job->status;
    EXPECT_THAT(
        job->record->outcomes,
        ElementsAre(EventOutcome::kLateRejected, EventOutcome::kDuplicate, EventOutcome::kDuplicate,
                    EventOutcome::kApplied, EventOutcome::kLateRejected));
    EXPECT_EQ(job->record->last_event_ms, restart == 0 ? 20 : 30);
    EXPECT_EQ(job->record->state_version, 3u + restart);
    // Resident at first, not so in the second round.
    Start();
  }
  EXPECT_THAT(Record("u", {At(1, "item1"), At(2, "item2")}), Each(EventOutcome::kLateRejected));
  EXPECT_EQ(metrics_.events_rejected->Value(), 6);
  EXPECT_EQ(metrics_.events_late_refolded->Value(), 0);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"),
            Folded({At(10, "item1"), At(20, "item2"), At(30, "item4"), At(31, "item4")}));
}

TEST_F(Pipelines, RejectingLateEventsLeavesTheFoldOfTheLog) {
  std::mt19937_64 random = PrintedRandom();
  options_.late_policy = LatePolicy::kReject;
  options_.max_resident_users = 3;
  Start();
  std::vector<std::vector<Event>> stored(8);
  uint64_t rejected = 0;
  for (size_t u = 0; u < stored.size(); ++u) {
    std::vector<Event> events = RandomEvents(60, &random);
    // Some disorder.
    for (size_t i = 0; i + 4 < events.size(); i += 4) {
      if (random() % 3 == 0) std::swap(events[i], events[i + 1 + random() % 3]);
    }
    const std::string user = absl::StrCat("user", u);
    for (size_t begin = 0; begin < events.size();) {
      const size_t end = std::min<size_t>(events.size(), begin + 1 + random() % 3);
      const std::vector<Event> part(events.begin() + begin, events.begin() + end);
      const std::vector<EventOutcome> outcomes = Record(user, part);
      for (size_t i = 0; i < part.size(); ++i) {
        if (outcomes[i] == EventOutcome::kLateRejected) {
          ++rejected;
        } else {
          stored[u].push_back(part[i]);
        }
      }
      begin = end;
      if (random() % 5 == 0) Recommend(absl::StrCat("other", random() % 5));
    }
    // Repeating everything changes nothing.
    EXPECT_THAT(Record(user, stored[u]), Each(EventOutcome::kDuplicate));
  }
  EXPECT_GT(rejected, 0u);
  EXPECT_EQ(metrics_.events_late_refolded->Value(), 0);
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (size_t u = 0; u < stored.size(); ++u) {
    EXPECT_EQ(Stored(absl::StrCat("user", u)), Folded(stored[u])) << "user" << u;
  }
}

TEST_F(Pipelines, UnknownItemsAreKeptAndSkippedByTheFold) {
  EXPECT_THAT(
      Record("u", {At(1, "item1"), At(2, "nobody"), At(3, "item2")}),
      ElementsAre(EventOutcome::kApplied, EventOutcome::kUnknownItem, EventOutcome::kApplied));
  const RecommendCommand answer = Recommend("u");
  EXPECT_EQ(answer.state_version, 3u);
  EXPECT_EQ(answer.event_count, 2u);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(3, "item2")}));
}

TEST_F(Pipelines, AUserOfUnknownItemsOnlyIsAColdStart) {
  Record("u", {At(1, "nobody")});
  for (int i = 0; i < 2; ++i) {
    const RecommendCommand answer = Recommend("u");
    EXPECT_EQ(answer.tier, Tier::kColdStart);
    EXPECT_EQ(answer.state_version, 1u);
    EXPECT_EQ(answer.items.size(), 10u);
    Start();
  }
  EXPECT_THAT(Record("u", {At(2, "item1")}), ElementsAre(EventOutcome::kApplied));
  EXPECT_NE(Recommend("u").tier, Tier::kColdStart);
}

TEST_F(Pipelines, EvictionAndReloadKeepEveryBit) {
  std::mt19937_64 random = PrintedRandom();
  options_.max_resident_users = 3;
  options_.checkpoint_group = 2;
  Start();
  std::vector<std::vector<Event>> events(12);
  for (auto& of_user : events) of_user = RandomEvents(40, &random);
  std::vector<size_t> next(events.size(), 0);
  for (int step = 0; step < 400; ++step) {
    const size_t u = random() % events.size();
    const std::string user = absl::StrCat("user", u);
    if (next[u] == events[u].size() || random() % 3 == 0) {
      Recommend(user);
    } else {
      const size_t end = std::min(events[u].size(), next[u] + 1 + random() % 3);
      Record(user, {events[u].begin() + next[u], events[u].begin() + end});
      next[u] = end;
    }
  }
  EXPECT_LE(metrics_.resident_users->Value(), 3);
  EXPECT_GT(metrics_.evictions->Value(), 0);
  EXPECT_GT(metrics_.lookups_stored->Value(), 0);
  for (size_t u = 0; u < events.size(); ++u) {
    Record(absl::StrCat("user", u), {events[u].begin() + next[u], events[u].end()});
  }
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (size_t u = 0; u < events.size(); ++u) {
    EXPECT_EQ(Stored(absl::StrCat("user", u)), Folded(events[u])) << "user" << u;
  }
}

TEST_F(Pipelines, ABatchMayHoldMoreUsersThanCanBeResident) {
  options_.max_resident_users = 2;
  Start();
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int u = 0; u < 9; ++u) {
    jobs.push_back(
        Submit(NewRecord(absl::StrCat("u", u), {At(1 + u, absl::StrCat("item", 1 + u))})));
    jobs.push_back(Submit(NewRecommend(absl::StrCat("u", u))));
  }
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
  EXPECT_LE(metrics_.resident_users->Value(), 2);
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (int u = 0; u < 9; ++u) {
    EXPECT_EQ(Stored(absl::StrCat("u", u)), Folded({At(1 + u, absl::StrCat("item", 1 + u))}));
  }
}

TEST_F(Pipelines, RandomTrafficFromManyThreadsEqualsTheOrderedFold) {
  std::mt19937_64 random = PrintedRandom();
  options_.workers = 3;
  options_.max_resident_users = 9;
  options_.checkpoint_interval = absl::Milliseconds(2);
  Start();
  std::vector<std::vector<Event>> events(20);
  for (auto& of_user : events) of_user = RandomEvents(30, &random);
  const uint64_t seed = random();
  std::vector<std::thread> threads;
  // Every thread sends a part of everybody's events, in an order of its own.
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 own(seed + t);
      std::vector<std::pair<int, Event>> mine;
      for (size_t u = 0; u < events.size(); ++u) {
        for (size_t i = t; i < events[u].size(); i += 4) mine.emplace_back(u, events[u][i]);
      }
      std::shuffle(mine.begin(), mine.end(), own);
      for (const auto& [u, event] : mine) {
        Record(absl::StrCat("user", u), {event});
        if (own() % 4 == 0) Recommend(absl::StrCat("user", own() % events.size()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (size_t u = 0; u < events.size(); ++u) {
    // A user who was evicted and not asked for again may have an older checkpoint and a tail.
    Start();
    Recommend(absl::StrCat("user", u));
    ASSERT_TRUE(pipeline_->Drain().ok());
    EXPECT_EQ(Stored(absl::StrCat("user", u)), Folded(events[u])) << "user" << u;
  }
}

TEST_F(Pipelines, TiersTellWhereTheStateCameFrom) {
  EXPECT_EQ(Recommend("u").tier, Tier::kColdStart);
  Record("u", {At(1, "item1"), At(2, "item2")});
  EXPECT_EQ(GetUser("u").tier, Tier::kHot);
  const RecommendCommand hot = Recommend("u");
  EXPECT_EQ(hot.tier, Tier::kHot);
  Start();
  EXPECT_EQ(GetUser("u").tier, Tier::kStored);
  const RecommendCommand stored = Recommend("u");
  EXPECT_EQ(stored.tier, Tier::kStored);
  EXPECT_TRUE(SameItems(stored.items, hot.items));
  // An event that no state has seen makes the tail.
  const Event tail[] = {At(3, "item3")};
  const UserEvents batch[] = {{"u", tail}};
  Start();
  ASSERT_TRUE(store_->Append(batch, Durability::kBuffered).ok());
  EXPECT_EQ(Recommend("u").tier, Tier::kStored);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2"), At(3, "item3")}));
  // An event before the checkpoint's end makes the checkpoint useless.
  const Event early[] = {At(0, "item4")};
  const UserEvents early_batch[] = {{"u", early}};
  ASSERT_TRUE(store_->Append(early_batch, Durability::kBuffered).ok());
  Start();
  EXPECT_EQ(Recommend("u").tier, Tier::kRebuilt);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(0, "item4"), At(1, "item1"), At(2, "item2"), At(3, "item3")}));
}

TEST_F(Pipelines, ThePastIsAnsweredAsItWasThen) {
  std::mt19937_64 random = PrintedRandom();
  std::vector<Event> events = RandomEvents(25, &random);
  for (size_t i = 0; i < events.size(); ++i) {
    events[i].timestamp_ms += static_cast<int64_t>(i);  // all distinct
    events[i].item_id = absl::StrCat("item", 1 + random() % (engine_->catalog().size() - 1));
  }
  std::vector<RecommendCommand> then;
  std::vector<Lineage> lineages;
  for (const Event& event : events) {
    Record("u", {event});
    then.push_back(Recommend("u", event.timestamp_ms));
    lineages.push_back(GetUser("u").lineage);
  }
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const RecommendCommand now = Recommend("u", events[i].timestamp_ms);
    EXPECT_TRUE(SameItems(now.items, then[i].items)) << i;
    EXPECT_EQ(now.tier, Tier::kRebuilt);
    EXPECT_EQ(now.state_version, i + 1);
    EXPECT_EQ(now.last_event_ms, events[i].timestamp_ms);
    const GetUserCommand user = GetUser("u", events[i].timestamp_ms);
    EXPECT_EQ(user.lineage, lineages[i]);
    EXPECT_EQ(user.events.size(), i + 1);
  }
  EXPECT_EQ(Recommend("u", events[0].timestamp_ms - 1).tier, Tier::kColdStart);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded(events));
}

TEST_F(Pipelines, TheWhatIfClockChangesTheAnswerAndNotTheState) {
  Record("u", {At(kNow - 1000, "item1"), At(kNow, "item2")});
  const RecommendCommand now = Recommend("u", kNow);
  const RecommendCommand later = Recommend("u", kNow + 30LL * 86'400'000);
  EXPECT_FALSE(SameItems(now.items, later.items));
  EXPECT_TRUE(SameItems(now.items, Recommend("u").items));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(kNow - 1000, "item1"), At(kNow, "item2")}));
}

TEST_F(Pipelines, ColdStartIsByPopularityAndHonoursTheOptions) {
  const ItemCatalog& catalog = engine_->catalog();
  const std::vector<int32_t>& popular = catalog.by_popularity();
  const RecommendCommand answer = Recommend("stranger");
  EXPECT_EQ(answer.tier, Tier::kColdStart);
  EXPECT_EQ(answer.state_version, 0u);
  EXPECT_EQ(ItemsOf(answer), std::vector<int32_t>(popular.begin(), popular.begin() + 10));
  EXPECT_EQ(answer.items[0].score, static_cast<float>(catalog.item(popular[0]).train_events));

  auto job = NewRecommend("stranger");
  job->recommend->k = 2;
  job->recommend->candidates_only = true;
  job->recommend->candidates = {popular[0], popular[2], popular[4], popular[5]};
  std::sort(job->recommend->candidates.begin(), job->recommend->candidates.end());
  job->recommend->excluded = {popular[0]};
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_THAT(ItemsOf(*job->recommend), ElementsAre(popular[2], popular[4]));

  job = NewRecommend("stranger");
  job->recommend->k = 2;
  job->recommend->eligible = {~(uint64_t{1} << popular[0] | uint64_t{1} << popular[2])};
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_THAT(ItemsOf(*job->recommend), ElementsAre(popular[1], popular[3]));
}

TEST_F(Pipelines, SeenAndExcludedItemsAreLeftOutAndCandidatesRestrict) {
  Record("u", {At(1, "item3"), At(2, "item1")});
  auto job = NewRecommend("u");
  job->recommend->k = 1000;
  job->recommend->excluded = {2};
  job = Submit(std::move(job));
  job->Wait();
  std::vector<int32_t> items = ItemsOf(*job->recommend);
  EXPECT_EQ(static_cast<int64_t>(items.size()), engine_->catalog().size() - 4);
  for (const int32_t left_out : {0, 1, 2, 3}) EXPECT_THAT(items, Each(testing::Ne(left_out)));

  job = NewRecommend("u");
  job->recommend->exclude_seen = false;
  job->recommend->candidates_only = true;
  job->recommend->candidates = {1, 3};
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_THAT(ItemsOf(*job->recommend), testing::UnorderedElementsAre(1, 3));

  job = NewRecommend("u");
  job->recommend->candidates_only = true;  // of ids that nobody knows
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_THAT(ItemsOf(*job->recommend), IsEmpty());
}

TEST_F(Pipelines, ARecommendationSeesTheInteractionsItCameWith) {
  Record("u", {At(1, "item1")});
  auto job = NewRecord("u", {At(2, "item2"), At(3, "item3")});
  job->recommend.emplace().as_of_ms = 3;
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_EQ(job->recommend->state_version, 3u);
  EXPECT_EQ(job->record->state_version, 3u);
  Record("same", {At(1, "item1"), At(2, "item2"), At(3, "item3")});
  EXPECT_TRUE(SameItems(job->recommend->items, Recommend("same", 3).items));
}

TEST_F(Pipelines, MinStateVersionIsReachedOrRefused) {
  Record("u", {At(1, "item1"), At(2, "item2")});
  for (const auto& [version, ok] : {std::pair{2, true}, {3, false}}) {
    auto job = NewRecommend("u");
    job->recommend->min_state_version = version;
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_EQ(job->status.code(),
              ok ? absl::StatusCode::kOk : absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(Pipelines, DeleteIsABarrierBetweenRecords) {
  const auto release = Block();
  auto before = Submit(NewRecord("u", {At(5, "item5"), At(6, "item6")}));
  auto deletion = std::make_unique<TestJob>();
  deletion->user_id = "u";
  deletion->delete_user.emplace();
  deletion = Submit(std::move(deletion));
  auto after = Submit(NewRecord("u", {At(1, "item1")}));
  auto read = Submit(NewRecommend("u"));
  release();
  before->Wait();
  EXPECT_EQ(deletion->Wait().delete_user->removed.events, 2u);
  EXPECT_THAT(after->Wait().record->outcomes, ElementsAre(EventOutcome::kApplied));
  EXPECT_EQ(read->Wait().recommend->state_version, 1u);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1")}));
}

TEST_F(Pipelines, GetUserTellsWhatTheLogHolds) {
  const GetUserCommand nobody = GetUser("u");
  EXPECT_EQ(nobody.lineage.event_count, 0u);
  EXPECT_EQ(nobody.tier, Tier::kColdStart);
  Record("u", {At(-5, "item1"), At(7, "item2"), At(8, "nobody")});
  const GetUserCommand user = GetUser("u");
  EXPECT_EQ(user.lineage.event_count, 3u);
  EXPECT_EQ(user.first_event_ms, -5);
  EXPECT_EQ(user.last_event_ms, 8);
  ASSERT_EQ(user.events.size(), 3u);
  EXPECT_EQ(user.events[2].item_id, "nobody");
}

TEST(Partitions, AreStable) {
  // Values of XXH3, which must not change: logs and dashboards refer to partitions.
  EXPECT_EQ(PartitionOf(""), 0x2d06800538d394c2u % kPartitions);
  EXPECT_LT(PartitionOf("user"), kPartitions);
}

}  // namespace
}  // namespace tim4rec
