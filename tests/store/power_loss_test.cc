// What is left when the power goes.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/store/fault_fixture.h"
#include "tests/store/use_counts.h"

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

// A user's numbered events, whose front is removed now and then.
class Truncations {
 public:
  static constexpr char kUser[] = "u";

  explicit Truncations(std::mt19937_64& random) : random_(random) {}

  void Append(RocksDbStore& store) {
    std::vector<Event> events;
    for (uint64_t n = 1 + random_() % 8; n > 0; --n) events.push_back(Numbered(++appended_));
    const auto durability = random_() % 3 == 0 ? Durability::kSynced : Durability::kBuffered;
    ASSERT_TRUE(AppendTo(store, kUser, events, durability).ok());
    if (durability == Durability::kSynced) durable_ = appended_;
  }

  // Up to number `last`, from number removed_ + 1 on.
  absl::Status Truncate(RocksDbStore& store, int64_t last) {
    Truncation truncation;
    std::vector<Position> removed;
    for (int64_t n = 1; n <= last; ++n) {
      truncation.lineage.Extend(PositionOf(Numbered(n)), "item");
      if (n > removed_) removed.push_back(PositionOf(Numbered(n)));
    }
    truncation.lineage.log_truncated = true;
    truncation.last_event_ms = last;
    StateRecord base = NamedState(absl::StrCat(last, std::string(5000, 'b')));
    base.lineage = truncation.lineage;
    const UserState bases[] = {{kUser, kFingerprintA, &base}};
    const UserTruncation users[] = {{kUser, truncation, removed, bases}};
    absl::Status truncated = store.Truncate(users);
    if (truncated.ok()) {
      removed_ = last;
      durable_ = appended_;  // one log, synced
    }
    return truncated;
  }
  absl::Status TruncateSome(RocksDbStore& store) {
    return Truncate(store, removed_ + 1 + static_cast<int64_t>(random_() % (appended_ - removed_)));
  }
  int64_t left() const { return appended_ - removed_; }
  int64_t removed() const { return removed_; }
  int64_t appended() const { return appended_; }

  // Either `attempted` (if not 0) went through or not; nothing else.
  void Verify(const RocksDbStore& store, int64_t attempted) {
    const auto truncation = store.ReadTruncation(kUser);
    ASSERT_TRUE(truncation.ok()) << truncation.status();
    const int64_t removed =
        *truncation ? static_cast<int64_t>((*truncation)->lineage.event_count) : 0;
    EXPECT_TRUE(removed == removed_ || (attempted > 0 && removed == attempted)) << removed;
    const auto base = store.GetBase(kUser, kFingerprintA);
    ASSERT_TRUE(base.ok()) << base.status();
    ASSERT_EQ(base->has_value(), removed > 0);
    if (removed > 0) {
      EXPECT_EQ((*base)->lineage, (*truncation)->lineage);
      EXPECT_EQ((*base)->payload, absl::StrCat(removed, std::string(5000, 'b')));
    }
    int64_t next = removed;
    for (const Event& event : ReadAll(store, kUser)) EXPECT_EQ(event.timestamp_ms, ++next);
    EXPECT_GE(next, durable_);
    EXPECT_LE(next, appended_);
    const std::optional<std::string> payload = PayloadOf(store, kUser);
    EXPECT_TRUE(!payload || *payload == CheckpointOf(removed)) << "a checkpoint is back";
    removed_ = removed;
    appended_ = durable_ = next;
  }
  // A checkpoint is named after the truncation that it goes on from.
  void Put(RocksDbStore& store) { PutState(store, kUser, NamedState(CheckpointOf(removed_))); }

 private:
  static Event Numbered(int64_t n) { return {"item", n, ""}; }
  static std::string CheckpointOf(int64_t removed) {
    return absl::StrCat("behind ", removed, std::string(5000, 's'));
  }

  std::mt19937_64& random_;
  int64_t appended_ = 0;
  int64_t durable_ = 0;
  int64_t removed_ = 0;
};

TEST_F(PowerLoss, ATruncationIsThereWholeOrNotAtAll) {
  random_ = PrintedRandom("truncation");
  auto store = Open();
  Truncations user(random_);
  for (int round = 0; round < 40 && !HasFailure(); ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    for (uint64_t n = random_() % 30; n > 0; --n) {
      const uint64_t choice = random_() % 10;
      if (choice < 5 || user.left() == 0) {
        user.Append(*store);
      } else if (choice < 7) {
        ASSERT_TRUE(user.TruncateSome(*store).ok());
      } else if (choice < 9) {
        user.Put(*store);
      } else {
        ASSERT_TRUE(store->Flush().ok());
      }
    }
    // The disk takes some of the last one, or all of it, and tells nobody.
    int64_t attempted = 0;
    user.Append(*store);
    if (round % 4 != 0) {
      attempted = user.removed() + 1 + static_cast<int64_t>(random_() % user.left());
      if (round % 4 == 1) fs_->FailSyncs(true);
      if (round % 4 == 2) fs_->SetFreeBytes(static_cast<int64_t>(random_() % 5000));
      if (round % 4 == 3) fs_->FailWrites(true);
      EXPECT_FALSE(user.Truncate(*store, attempted).ok());
      fs_->CutPower();
      fs_->FailSyncs(false);
      fs_->SetFreeBytes(-1);
      fs_->FailWrites(false);
    }
    Crash(store, static_cast<TornTail>(random_() % 3), random_);
    ASSERT_NE(store, nullptr);
    user.Verify(*store, attempted);
    // All of one day: those that are left, and those that were removed.
    UseCounts counted;
    if (user.appended() > 0) counted[{0, "item"}] = user.appended();
    EXPECT_EQ(StoredUse(*store), counted);
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
    EXPECT_EQ(StoredUse(store), LoggedUse(store));
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
