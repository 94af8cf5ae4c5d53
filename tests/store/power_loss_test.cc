// What is left when the power goes, the disk is full or a sync fails.
#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "rocksdb/env.h"
#include "tests/store/fault_file_system.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::IsEmpty;

class PowerLoss : public testing::Test {
 protected:
  std::unique_ptr<RocksDbStore> Open() {
    RocksDbStoreOptions options = SmallOptions();
    options.write_buffer_bytes = 256 << 10;  // flushes happen by themselves too
    options.env = env_.get();
    return OpenStore(dir_.store(), options);
  }
  void Crash(std::unique_ptr<RocksDbStore>& store, TornTail tail, std::mt19937_64& random) {
    fs_->CutPower();
    store.reset();
    fs_->LoseUnsynced(tail, random);
    store = Open();
  }

  ScratchDir dir_;
  std::shared_ptr<FaultFileSystem> fs_ = std::make_shared<FaultFileSystem>();
  std::unique_ptr<rocksdb::Env> env_ = rocksdb::NewCompositeEnv(fs_);
  std::mt19937_64 random_{1};
};

StateRecord NamedState(std::string payload) {
  StateRecord record;
  record.payload = std::move(payload);
  return record;
}

void PutState(RocksDbStore& store, std::string_view user, const StateRecord& record) {
  const UserState put[] = {{user, kFingerprintA, &record}};
  ASSERT_TRUE(store.Put(put).ok());
}

std::optional<std::string> PayloadOf(const RocksDbStore& store, std::string_view user) {
  const auto got = store.Get(user, kFingerprintA);
  EXPECT_TRUE(got.ok()) << got.status();
  if (!got.ok() || !got->has_value()) return std::nullopt;
  return (*got)->payload;
}

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

bool WritableSoon(RocksDbStore& store) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!store.CheckWritable().ok()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

TEST_F(PowerLoss, FullDiskLeavesNothingHalfApplied) {
  for (int64_t free_bytes : {0, 1, 50, 1000, 5000}) {
    SCOPED_TRACE(free_bytes);
    auto store = Open();
    const std::string user = absl::StrCat("full", free_bytes);
    ASSERT_TRUE(AppendTo(*store, user, {{"before", 0, ""}}, Durability::kSynced).ok());
    std::vector<Event> many;
    for (int i = 1; i <= 200; ++i) many.push_back({"item", i, ""});
    fs_->SetFreeBytes(free_bytes);
    const auto refused = AppendTo(*store, user, many, Durability::kSynced);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
    EXPECT_EQ(store->stats().append_failures, 1u);
    EXPECT_EQ(ReadAll(*store, user).size(), 1u);
    EXPECT_EQ(store->CheckWritable().code(), absl::StatusCode::kResourceExhausted);
    fs_->SetFreeBytes(-1);
    if (free_bytes == 1000) {
      // Room again: the store goes on without being reopened, within seconds.
      EXPECT_TRUE(WritableSoon(*store)) << store->CheckWritable();
      const auto again = AppendTo(*store, user, many, Durability::kSynced);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(again->front(), AppendOutcome::kAdded);
      Crash(store, TornTail::kDropped, random_);
      EXPECT_EQ(ReadAll(*store, user).size(), 201u);
    } else {
      Crash(store, TornTail::kCutAnywhere, random_);
      EXPECT_EQ(ReadAll(*store, user).size(), 1u);
    }
  }
}

TEST_F(PowerLoss, FailedSyncIsNotAcknowledged) {
  auto store = Open();
  ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}, Durability::kSynced).ok());
  fs_->FailSyncs(true);
  EXPECT_EQ(AppendTo(*store, "u", {{"b", 2, ""}}, Durability::kSynced).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(Items(ReadAll(*store, "u")), std::vector<std::string>{"a"});
  fs_->FailSyncs(false);
  Crash(store, TornTail::kDropped, random_);
  EXPECT_EQ(Items(ReadAll(*store, "u")), std::vector<std::string>{"a"});
}

}  // namespace
}  // namespace tim4rec
