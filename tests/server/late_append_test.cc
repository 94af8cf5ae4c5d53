// late_policy append: late events are folded as the newest, and the log says so for ever.
#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::Each;
using testing::ElementsAre;

Event At(int64_t timestamp_ms, const std::string& item, const std::string& id = "") {
  return {item, timestamp_ms, id};
}

// The plain meaning of the policies: a list of a user's events in the order of their folding.
class PlainLog {
 public:
  struct Entry {
    Event event;
    Position position;
    int64_t time_ms;
    bool late;
  };

  // Returns how many events of the request were late and not rejected.
  int Record(const std::vector<Event>& request, LatePolicy policy) {
    std::map<Position, Event> late;
    std::map<Position, Event> others;
    const Position newest = newest_;
    for (const Event& event : request) {
      const Position position = PositionOf(event);
      if (stored_.contains(position)) continue;
      (position < newest && policy != LatePolicy::kRefold ? late : others).emplace(position, event);
    }
    int appended = 0;
    if (policy == LatePolicy::kAppend) {
      for (const auto& [position, event] : late) {
        entries_.push_back({event, position, entries_.back().time_ms, true});
        stored_.insert(position);
        ++appended;
      }
    }
    for (const auto& [position, event] : others) {
      const auto next = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
        return !entry.late && entry.position > position;
      });
      entries_.insert(next, {event, position, event.timestamp_ms, false});
      stored_.insert(position);
      newest_ = std::max(newest_, position);
    }
    return appended;
  }

  const std::vector<Entry>& entries() const { return entries_; }

  std::vector<FoldEvent> Fold(const ItemCatalog& catalog) const {
    std::vector<FoldEvent> fold;
    for (const Entry& entry : entries_) {
      if (const auto item = catalog.Find(entry.event.item_id))
        fold.push_back({*item, entry.time_ms});
    }
    return fold;
  }

 private:
  std::vector<Entry> entries_;
  std::set<Position> stored_;
  Position newest_;
};

class LateAppend : public PipelineTest {
 protected:
  LateAppend() {
    options_.late_policy = LatePolicy::kAppend;
    Start();
  }

  std::string Expected(const std::vector<std::pair<std::string, int64_t>>& items) const {
    std::vector<FoldEvent> fold;
    for (const auto& [item, time] : items) fold.push_back({*engine_->catalog().Find(item), time});
    return FoldedOneByOne(*engine_, fold);
  }
};

TEST_F(LateAppend, FoldsLateEventsAsTheNewestAtTheTimeOfTheLast) {
  Record("u", {At(10, "item1"), At(20, "item2")});
  EXPECT_THAT(Record("u", {At(30, "item5"), At(15, "item4"), At(12, "item3"), At(13, "nobody")}),
              ElementsAre(EventOutcome::kApplied, EventOutcome::kApplied, EventOutcome::kApplied,
                          EventOutcome::kUnknownItem));
  const GetUserCommand user = GetUser("u");
  std::vector<std::string> items;
  for (const Event& event : user.events) items.push_back(event.item_id);
  EXPECT_THAT(items, ElementsAre("item1", "item2", "item3", "nobody", "item4", "item5"));
  EXPECT_EQ(user.first_event_ms, 10);
  EXPECT_EQ(user.last_event_ms, 30);
  EXPECT_EQ(metrics_.events_late_refolded->Value(), 0);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"),
            Expected({{"item1", 10}, {"item2", 20}, {"item3", 20}, {"item4", 20}, {"item5", 30}}));
}

TEST_F(LateAppend, ARetryIsADuplicateAndChangesNothing) {
  Record("u", {At(10, "item1"), At(20, "item2", "e")});
  Record("u", {At(15, "item3"), At(5, "item4", "x")});
  Record("u", {At(30, "item5")});
  const Lineage before = GetUser("u").lineage;
  for (int restart = 0; restart < 2; ++restart) {
    EXPECT_THAT(Record("u", {At(5, "item4", "x"), At(15, "item3"), At(20, "item9", "e")}),
                Each(EventOutcome::kDuplicate));
    EXPECT_EQ(GetUser("u").lineage, before);
    Start();
  }
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"),
            Expected({{"item1", 10}, {"item2", 20}, {"item4", 20}, {"item3", 20}, {"item5", 30}}));
}

TEST_F(LateAppend, WhatABatchHoldsDoesNotMatter) {
  const std::vector<std::vector<Event>> requests = {
      {At(20, "item1"), At(10, "item2")},
      {At(15, "item3"), At(30, "item4")},
      {At(25, "item5"), At(15, "item3")},
      {At(25, "item5"), At(1, "item6"), At(1, "item6")},
      {At(31, "item7"), At(30, "item8")}};
  for (const std::vector<Event>& request : requests) Record("single", request);
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (const std::vector<Event>& request : requests)
    jobs.push_back(Submit(NewRecord("batch", request)));
  release();
  for (auto& job : jobs) ASSERT_TRUE(job->Wait().status.ok());
  EXPECT_THAT(
      jobs[3]->record->outcomes,
      ElementsAre(EventOutcome::kDuplicate, EventOutcome::kApplied, EventOutcome::kDuplicate));
  EXPECT_EQ(GetUser("single").lineage, GetUser("batch").lineage);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("single"), Stored("batch"));
}

TEST_F(LateAppend, ThePastIsAnsweredAsItWasThen) {
  std::mt19937_64 random = PrintedRandom();
  std::map<int64_t, RecommendCommand> answers;  // the last one that was given for each time
  int64_t newest = kNow - 400LL * 86'400'000;
  for (int i = 0; i < 40; ++i) {
    const bool late = i > 0 && random() % 3 == 0;
    if (!late) newest += 1 + static_cast<int64_t>(random() % 86'400'000);
    const int64_t time = late ? newest - 1 - static_cast<int64_t>(random() % 300'000'000) : newest;
    const std::string item = absl::StrCat("item", 1 + random() % (engine_->catalog().size() - 1));
    Record("u", {At(time, item, absl::StrCat("e", i))});
    answers[newest] = Recommend("u", newest);
  }
  Start();
  for (const auto& [time, answer] : answers) {
    const RecommendCommand now = Recommend("u", time);
    EXPECT_TRUE(SameItems(now.items, answer.items)) << time;
    EXPECT_EQ(now.state_version, answer.state_version);
    EXPECT_EQ(now.last_event_ms, time);
    EXPECT_EQ(GetUser("u", time).lineage.event_count, answer.state_version);
  }
}

// Several policies over the life of one store, evictions, retries, restarts, and two models that
// take turns.
TEST_F(LateAppend, RandomTrafficOverRestartsEqualsThePlainLog) {
  std::mt19937_64 random = PrintedRandom();
  std::vector<PlainLog> plain(6);
  std::vector<std::vector<Event>> sent(plain.size());
  const std::vector<ModelHandle> both = {models_->serving(), NewModel("other", MakeTinyModel(8))};
  int appended = 0;
  for (int restart = 0; restart < 8; ++restart) {
    options_.max_resident_users = 1 + static_cast<int64_t>(random() % 6);
    const int choice = static_cast<int>(random() % 6);
    options_.late_policy = choice == 0   ? LatePolicy::kRefold
                           : choice == 1 ? LatePolicy::kReject
                                         : LatePolicy::kAppend;
    Start();
    for (int step = 0; step < 60; ++step) {
      const size_t u = random() % plain.size();
      std::vector<Event> request = RandomEvents(1 + static_cast<int>(random() % 4), &random);
      const int64_t shift = static_cast<int64_t>(random() % 300) * 86'400'000;
      for (Event& event : request) event.timestamp_ms += shift;
      if (!sent[u].empty() && random() % 3 == 0)
        request.push_back(sent[u][random() % sent[u].size()]);
      std::shuffle(request.begin(), request.end(), random);
      sent[u].insert(sent[u].end(), request.begin(), request.end());
      models_->SetServing(both[random() % 2]);
      Record(absl::StrCat("user", u), request);
      appended += plain[u].Record(request, options_.late_policy);
      if (random() % 4 == 0) Recommend(absl::StrCat("user", random() % plain.size()));
    }
  }
  EXPECT_GT(appended, 100);
  for (size_t u = 0; u < plain.size(); ++u) {
    const std::string user = absl::StrCat("user", u);
    const GetUserCommand got = GetUser(user);
    ASSERT_EQ(got.events.size(), plain[u].entries().size()) << user;
    for (size_t i = 0; i < got.events.size(); ++i) {
      EXPECT_EQ(PositionOf(got.events[i]), plain[u].entries()[i].position) << user << " " << i;
    }
  }
  const auto fold_all = [&] {
    options_.max_resident_users = 100;
    Start();
    for (size_t u = 0; u < plain.size(); ++u) Recommend(absl::StrCat("user", u));
    ASSERT_TRUE(pipeline_->Drain().ok());
    for (size_t u = 0; u < plain.size(); ++u) {
      EXPECT_EQ(Stored(absl::StrCat("user", u)),
                FoldedOneByOne(*engine_, plain[u].Fold(engine_->catalog())));
    }
  };
  for (const ModelHandle& model : both) {
    models_->SetServing(model);
    engine_ = model->engine;
    fold_all();
  }
}

}  // namespace
}  // namespace tim4rec
