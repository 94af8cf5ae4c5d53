// What is left when the power goes.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/store/fault_fixture.h"

namespace tim4rec {
namespace {

using testing::IsEmpty;

using PowerLoss = FaultTest;

TEST_F(PowerLoss, TakesBufferedEventsAndLeavesSyncedOnes) {
  auto store = Open();
  ASSERT_TRUE(AppendTo(*store, "u", {{"synced", 1, ""}}, Durability::kSynced).ok());
  ASSERT_TRUE(AppendTo(*store, "u", {{"buffered", 2, ""}}, Durability::kBuffered).ok());
  Crash(store, TornTail::kDropped, random_);
  // That the buffered one is gone shows that this file system does lose what was not synced.
  EXPECT_EQ(Items(ReadAll(*store, "u")), std::vector<std::string>{"synced"});
}

TEST_F(PowerLoss, SyncedRepeatMakesTheBufferedCopyDurable) {
  auto store = Open();
  ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}, Durability::kBuffered).ok());
  ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}, Durability::kSynced).ok());
  Crash(store, TornTail::kDropped, random_);
  EXPECT_EQ(Items(ReadAll(*store, "u")), std::vector<std::string>{"a"});
}

TEST_F(PowerLoss, CannotBringADeletedUserBack) {
  for (const bool flushed : {false, true}) {
    auto store = Open();
    ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}, {"b", 2, ""}}, Durability::kSynced).ok());
    ASSERT_TRUE(AppendTo(*store, "other", {{"a", 1, ""}}, Durability::kSynced).ok());
    PutState(*store, "u", NamedState("old"));
    if (flushed) {
      ASSERT_TRUE(store->Flush().ok());
    }
    const auto deleted = store->DeleteUser("u");
    ASSERT_TRUE(deleted.ok()) << deleted.status();
    EXPECT_EQ(deleted->events, 2u);
    EXPECT_EQ(deleted->states, 1u);
    for (int crash = 0; crash < 2; ++crash) {
      Crash(store, TornTail::kDropped, random_);
      EXPECT_THAT(ReadAll(*store, "u"), IsEmpty());
      EXPECT_EQ(PayloadOf(*store, "u"), std::nullopt);
      EXPECT_EQ(ReadAll(*store, "other").size(), 1u);
    }
    ASSERT_TRUE(store->DeleteUser("other").ok());
  }
}

// Operations at random, then a crash, many times over.
class CrashLoop {
 public:
  explicit CrashLoop(std::mt19937_64& random) : random_(random) {}

  void Operate(RocksDbStore& store) {
    const std::string user = absl::StrCat("u", random_() % 6);
    const uint64_t choice = random_() % 100;
    if (choice < 60) {
      Append(store, user, choice < 15 ? Durability::kSynced : Durability::kBuffered);
    } else if (choice < 85) {
      PutNext(store, user);
    } else if (choice < 92) {
      ASSERT_TRUE(store.Flush().ok());
    } else {
      ASSERT_TRUE(store.DeleteUser(user).ok());
      events_[user].clear();
      batches_.erase(std::remove_if(batches_.begin(), batches_.end(),
                                    [&](const Batch& batch) { return batch.user == user; }),
                     batches_.end());
      states_[user].clear();
      MarkDurable();
    }
  }

  void Verify(const RocksDbStore& store) {
    for (int i = 0; i < 6; ++i) {
      const std::string user = absl::StrCat("u", i);
      std::set<std::string> found;
      for (const Event& event : ReadAll(store, user)) {
        EXPECT_TRUE(found.insert(event.event_id).second);
      }
      for (const std::string& id : events_[user]) EXPECT_EQ(found.erase(id), 1u) << id;
      for (const Batch& batch : batches_) {
        if (batch.user != user) continue;
        size_t present = 0;
        for (const std::string& id : batch.event_ids) present += found.erase(id);
        EXPECT_TRUE(present == 0 || present == batch.event_ids.size()) << "half of a call";
        if (present != 0) events_[user].insert(batch.event_ids.begin(), batch.event_ids.end());
      }
      EXPECT_THAT(found, IsEmpty()) << "events of a deleted user are back";
      const std::optional<std::string> payload = PayloadOf(store, user);
      EXPECT_TRUE(!payload || states_[user].count(*payload) == 1)
          << "a state is back: " << *payload;
    }
    batches_.clear();
  }

 private:
  struct Batch {
    std::string user;
    std::vector<std::string> event_ids;
  };

  void Append(RocksDbStore& store, const std::string& user, Durability durability) {
    std::vector<Event> events;
    Batch batch{user, {}};
    for (uint64_t n = 1 + random_() % 40; n > 0; --n) {
      batch.event_ids.push_back(absl::StrCat("e", ++last_id_));
      events.push_back({std::string(1 + random_() % 200, 'i'),
                        static_cast<int64_t>(random_() % 1000), batch.event_ids.back()});
    }
    const auto outcomes = AppendTo(store, user, events, durability);
    ASSERT_TRUE(outcomes.ok()) << outcomes.status();
    batches_.push_back(std::move(batch));
    if (durability == Durability::kSynced) MarkDurable();
  }

  void PutNext(RocksDbStore& store, const std::string& user) {
    const std::string payload =
        absl::StrCat(++last_id_, std::string(random_() % 20'000, 's').c_str());
    PutState(store, user, NamedState(payload));
    states_[user].insert(payload);
  }

  // One log holds all writes in order: a sync covers all that came before it.
  void MarkDurable() {
    for (Batch& batch : batches_) {
      events_[batch.user].insert(batch.event_ids.begin(), batch.event_ids.end());
    }
    batches_.clear();
  }

  std::mt19937_64& random_;
  uint64_t last_id_ = 0;
  std::map<std::string, std::set<std::string>> events_;  // durable
  std::vector<Batch> batches_;                           // acknowledged, not yet durable
  std::map<std::string, std::set<std::string>> states_;  // put since the user's last deletion
};

TEST_F(PowerLoss, LosesNothingSyncedUnderRandomOperations) {
  random_ = PrintedRandom("power loss");
  auto store = Open();
  CrashLoop loop(random_);
  for (int round = 0; round < 12 && !HasFailure(); ++round) {
    const TornTail tail = static_cast<TornTail>(round % 3);
    SCOPED_TRACE(absl::StrCat("round ", round));
    for (uint64_t n = random_() % 200; n > 0; --n) loop.Operate(*store);
    Crash(store, tail, random_);
    ASSERT_NE(store, nullptr) << "does not open after power loss, tail " << static_cast<int>(tail);
    loop.Verify(*store);
  }
}

}  // namespace
}  // namespace tim4rec
