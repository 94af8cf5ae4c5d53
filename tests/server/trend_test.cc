// The trend of items follows what is recorded: every answer is that of the package's counts and of
// those of the log, whichever model is asked and whenever it came.
#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "model/backends/builtin.h"
#include "server/pipeline/model_swap.h"
#include "tests/model/plain_trend.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

constexpr int64_t kDayMs = 86'400'000;

PackageContents WithTrend(uint64_t seed, int64_t last_day) {
  PackageContents contents = MakeTinyModel(seed);
  contents.trend = RandomTrend(61, last_day - 40, last_day, seed);
  for (ProbeCase& probe : contents.probe) probe.top_items.clear();
  return contents;
}

class TrendTest : public PipelineTest {
 protected:
  const int64_t today_ = DayOf(kNow);

  TrendTest() {
    a_ = NewModel("a", WithTrend(7, today_ - 30));
    b_ = NewModel("b", WithTrend(8, today_ - 5));
    models_ = std::make_unique<Models>(a_);
    EXPECT_TRUE(Follow(a_.get(), share_).ok());
    Start();
  }
  ~TrendTest() override { pipeline_.reset(); }

  Event At(int64_t day, const std::string& item) {
    return {item, day * kDayMs + ++last_ms_ % kDayMs, ""};
  }

  RecordedEvents Logged() const {
    RecordedEvents recorded;
    const absl::Status listed = store_->ForEachUser("", [&](std::string_view user) {
      const absl::Status read = store_->Read(user, [&](std::string_view, const Event& event) {
        ++recorded[{DayOf(event.timestamp_ms), event.item_id}];
        return true;
      });
      EXPECT_TRUE(read.ok()) << read;
      return true;
    });
    EXPECT_TRUE(listed.ok()) << listed;
    return recorded;
  }

  // Of items that the models know, in fold order.
  std::vector<Event> KnownEvents(const std::string& user) const {
    std::vector<Event> events;
    const absl::Status read = store_->Read(user, [&](std::string_view, const Event& event) {
      if (a_->engine->catalog().Find(event.item_id)) events.push_back(event);
      return true;
    });
    EXPECT_TRUE(read.ok()) << read;
    return events;
  }

  // The user's list, and what it is to be: the state folded from his log, the items' scores, and
  // what the log says of the items.
  void Expect(const ModelHandle& model, const std::string& user, int64_t as_of_ms) {
    auto job = NewRecommend(user, as_of_ms);
    job->model = model;
    job->recommend->exclude_seen = false;
    job->recommend->k = 60;
    job = Submit(std::move(job));
    job->Wait();
    ASSERT_TRUE(job->status.ok()) << job->status;
    std::vector<FoldEvent> fold;
    for (const Event& event : KnownEvents(user)) {
      if (FoldTimeMs(event) > as_of_ms) break;
      fold.push_back({*model->engine->catalog().Find(event.item_id), FoldTimeMs(event)});
    }
    ASSERT_FALSE(fold.empty());
    Backend& backend = model->engine->backend();
    const Slot slot = *backend.Allocate();
    const ::tim4rec::Run run[] = {{slot, fold}};
    ASSERT_TRUE(backend.Advance(run).ok());
    const QueryRequest query[] = {{slot, as_of_ms}};
    std::vector<float> vector(model->engine->config().hidden_size);
    ASSERT_TRUE(backend.Query(query, vector).ok());
    backend.Release(slot);
    const std::vector<float> boost =
        PlainBoost(*model->package, Logged(), store_->first_use_day(), share_, as_of_ms);
    TopKRequest rank;
    rank.query = vector;
    rank.k = 60;
    rank.boost = boost;
    std::vector<std::vector<ScoredItem>> top;
    ASSERT_TRUE(backend.TopK({&rank, 1}, &top).ok());
    EXPECT_TRUE(SameItems(job->recommend->items, top[0]))
        << model->version << " " << user << " on day " << DayOf(as_of_ms);
  }

  int64_t last_ms_ = 0;
  double share_ = 0.5;
  ModelHandle a_, b_;
};

TEST_F(TrendTest, RecordedEventsCountFromTheNextDayOn) {
  Record("u", {At(today_ - 3, "item1"), At(today_ - 2, "item2")});
  const auto items = [&](int64_t as_of_ms) {
    auto job = NewRecommend("u", as_of_ms);
    job->recommend->k = 60;
    job = Submit(std::move(job));
    job->Wait();
    std::vector<int32_t> items;
    for (const ScoredItem& scored : job->recommend->items) items.push_back(scored.item);
    return items;
  };
  const int64_t same_day = today_ * kDayMs - 1, next_day = today_ * kDayMs;
  const std::vector<int32_t> before = items(same_day);
  const std::string last = a_->engine->catalog().item(items(next_day).back()).id;
  for (int n = 0; n < 2000; ++n) Record(absl::StrCat("v", n), {At(today_ - 1, last)});
  EXPECT_EQ(items(same_day), before);
  const std::vector<int32_t> after = items(next_day);
  const auto place = std::find(after.begin(), after.end(), *a_->engine->catalog().Find(last));
  EXPECT_LT(place - after.begin(), 40) << "what everybody used yesterday is still last";
  Expect(a_, "u", same_day);
  Expect(a_, "u", next_day);
}

TEST_F(TrendTest, EveryAnswerIsThatOfTheLogUnderRandomTraffic) {
  std::mt19937_64 random = PrintedRandom();
  options_.late_policy = random() % 2 == 0 ? LatePolicy::kAppend : LatePolicy::kRefold;
  Start();
  ASSERT_TRUE(models_->Add(b_).ok());
  ASSERT_TRUE(Follow(b_.get(), share_).ok());
  int64_t newest = today_ - 60;
  for (int step = 0; step < 400 && !HasFailure(); ++step) {
    const std::string user = absl::StrCat("u", random() % 6);
    const uint64_t choice = random() % 20;
    if (choice < 12) {
      std::vector<Event> events;
      for (uint64_t n = 1 + random() % 4; n > 0; --n) {
        newest += random() % 8 == 0;
        const auto age = static_cast<int64_t>(random() % 4 == 0 ? random() % 190 : random() % 2);
        events.push_back(At(newest - age, absl::StrCat("item", 1 + random() % 62)));
        if (random() % 10 == 0) events.push_back(events.back());
      }
      Record(user, std::move(events));
    } else if (choice == 12) {
      auto job = std::make_unique<TestJob>();
      job->user_id = user;
      job->delete_user.emplace();
      Submit(std::move(job))->Wait();
    } else if (choice == 13) {
      // Another model serves, loaded now: it has missed nothing.
      a_ = NewModel("a", WithTrend(7, newest - static_cast<int64_t>(random() % 50)));
      pipeline_.reset();
      models_ = std::make_unique<Models>(a_);
      ASSERT_TRUE(models_->Add(b_).ok());
      ASSERT_TRUE(Follow(a_.get(), share_).ok());
      Start();
    } else if (const std::vector<Event> events = KnownEvents(user); !events.empty()) {
      const int64_t last_ms = FoldTimeMs(events.back());
      const int64_t first_ms = FoldTimeMs(events.front());
      const ModelHandle& model = random() % 2 == 0 ? a_ : b_;
      Expect(model, user, random() % 3 == 0 ? first_ms : last_ms + kDayMs);
    }
  }
}

TEST_F(TrendTest, APromotionAndItsWayBackChangeNothingOfEither) {
  ASSERT_TRUE(models_->Add(b_).ok());
  ModelSwap swap({"cpu", absl::Hours(1)},
                 {models_.get(), pipeline_.get(), store_.get(), &metrics_, &BuiltinBackends(),
                  [this](LoadedModel* model) { return Follow(model, share_); }});
  ASSERT_TRUE(Follow(b_.get(), share_).ok());
  const auto ask_all = [&] {
    for (const ModelHandle& model : {a_, b_}) {
      for (const int64_t day : {today_ - 3, today_, today_ + 1}) Expect(model, "u", day * kDayMs);
    }
  };
  Record("u", {At(today_ - 20, "item1"), At(today_ - 4, "item2"), At(today_ - 2, "item3")});
  ask_all();
  for (const ModelHandle& model : {b_, a_}) {
    ASSERT_TRUE(swap.Promote(model->version, [] { return false; }).ok());
    Record("v", {At(today_ - 1, "item4"), At(today_ - 3, "item5"), At(today_, "item6")});
    ask_all();
  }
  // One that is loaded while others record.
  const std::string dir = dir_ + "/c";
  ASSERT_TRUE(WritePackage(dir, WithTrend(9, today_ - 3)).ok());
  std::atomic<bool> stop = false;
  std::thread records([&] {
    for (int64_t n = 0; !stop; ++n) {
      Record(absl::StrCat("w", n % 20), {At(today_ - n % 3, absl::StrCat("item", 1 + n % 60))});
    }
  });
  const auto loaded = swap.Load(dir, "c", "cpu");
  stop = true;
  records.join();
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  for (const int64_t day : {today_ - 1, today_, today_ + 1}) Expect(*loaded, "u", day * kDayMs);
  ask_all();
}

TEST_F(TrendTest, WhatRetentionRemovesStaysInTheTrend) {
  options_.retention.max_events_per_user = 4;
  Start();
  std::vector<Event> events;
  for (int n = 0; n < 40; ++n) events.push_back(At(today_ - 2, absl::StrCat("item", 1 + n % 3)));
  const RecordedEvents recorded = [&] {
    RecordedEvents counts;
    for (const Event& event : events) ++counts[{DayOf(event.timestamp_ms), event.item_id}];
    return counts;
  }();
  Record("u", std::move(events));
  const auto give_up = absl::Now() + absl::Seconds(30);
  const auto cut = [&] { return store_->ReadTruncation("u")->has_value(); };
  while (!cut() && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(cut());
  const std::vector<float> boost = *a_->engine->boosts().At(kNow);
  EXPECT_EQ(boost, PlainBoost(*a_->package, recorded, 0, share_, kNow));
}

}  // namespace
}  // namespace tim4rec
