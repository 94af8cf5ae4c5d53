// Counts of the items' use: what of the log is counted, once each, whatever happens.
#include <atomic>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/record_codec.h"
#include "tests/store/raw_database.h"
#include "tests/store/store_fixture.h"
#include "tests/store/use_counts.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

constexpr int64_t kDay = 86'400'000;
constexpr int64_t kToday = 19'000;

int64_t At(int64_t day, int64_t ms = 0) { return day * kDay + ms; }

auto Count(int64_t day, const std::string& item, int64_t events) {
  return Pair(Pair(day, item), events);
}

class ItemUseTest : public testing::Test {
 protected:
  ItemUseTest() : store_(OpenStore(dir_.store())) {}

  void Reopen(bool read_only = false) {
    store_.reset();
    RocksDbStoreOptions options = SmallOptions();
    options.read_only = read_only;
    store_ = OpenStore(dir_.store(), options);
  }

  // The first `count` events that are left of the user go.
  void Truncate(const std::string& user, size_t count) {
    Truncation truncation;
    if (auto before = store_->ReadTruncation(user); before.ok() && *before) truncation = **before;
    std::vector<Position> removed;
    for (const Event& event : ReadAll(*store_, user)) {
      if (removed.size() == count) break;
      truncation.lineage.Extend(PositionOf(event), event.item_id);
      truncation.last_event_ms = FoldTimeMs(event);
      removed.push_back(PositionOf(event));
    }
    truncation.lineage.log_truncated = true;
    const UserTruncation users[] = {{user, truncation, removed, {}}};
    ASSERT_TRUE(store_->Truncate(users).ok());
  }

  ScratchDir dir_;
  std::unique_ptr<RocksDbStore> store_;
};

TEST_F(ItemUseTest, CountsEachEventOnceOnItsOwnDay) {
  const Event newest = {"b", At(kToday, 5), ""};
  ASSERT_TRUE(AppendTo(*store_, "u",
                       {{"a", At(kToday), ""},
                        {"a", At(kToday, kDay - 1), ""},
                        {"a", At(kToday) - 1, ""},
                        newest,
                        newest})
                  .ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {newest, {"other", At(kToday, 5), ""}}).ok());
  // Folded on the newest day, but it happened before.
  ASSERT_TRUE(AppendTo(*store_, "u", {{"late", At(kToday - 3), "", {PositionOf(newest), 1}}}).ok());
  ASSERT_TRUE(AppendTo(*store_, "v", {{"a", At(kToday), ""}}, Durability::kSynced).ok());
  const auto expected =
      ElementsAre(Count(kToday - 3, "late", 1), Count(kToday - 1, "a", 1), Count(kToday, "a", 3),
                  Count(kToday, "b", 1), Count(kToday, "other", 1));
  EXPECT_THAT(StoredUse(*store_), expected);
  EXPECT_EQ(store_->first_use_day(), kToday - kUseDays);
  for (const bool read_only : {false, true}) {
    Reopen(read_only);
    EXPECT_THAT(StoredUse(*store_), expected);
    EXPECT_EQ(store_->first_use_day(), kToday - kUseDays);
  }
}

TEST_F(ItemUseTest, DaysBeforeTheWindowAreDroppedAndStayAway) {
  ASSERT_TRUE(
      AppendTo(*store_, "u", {{"a", At(kToday), ""}, {"b", At(kToday - kUseDays), ""}}).ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {{"c", At(kToday - kUseDays) - 1, ""}}).ok());
  EXPECT_THAT(StoredUse(*store_),
              ElementsAre(Count(kToday - kUseDays, "b", 1), Count(kToday, "a", 1)));
  ASSERT_TRUE(AppendTo(*store_, "v", {{"d", At(kToday + 2), ""}}).ok());
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1), Count(kToday + 2, "d", 1)));
  // The newest day does not come back when its events go, and so neither do the others.
  ASSERT_TRUE(store_->DeleteUser("v").ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {{"b", At(kToday - kUseDays + 1), ""}}).ok());
  Reopen();
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1)));
  EXPECT_EQ(store_->first_use_day(), kToday + 2 - kUseDays);
}

TEST_F(ItemUseTest, TimesNobodyMeansAreNotCounted) {
  ASSERT_TRUE(AppendTo(*store_, "u",
                       {{"first", std::numeric_limits<int64_t>::min(), ""},
                        {"last", std::numeric_limits<int64_t>::max(), ""},
                        {"a", At(kToday), ""}})
                  .ok());
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1)));
  EXPECT_EQ(ReadAll(*store_, "u").size(), 3u);
}

TEST_F(ItemUseTest, ADeletedUserNoLongerCounts) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}, {"b", At(kToday), ""}}).ok());
  ASSERT_TRUE(AppendTo(*store_, "v", {{"a", At(kToday), ""}}).ok());
  ASSERT_TRUE(store_->DeleteUser("u").ok());
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1)));
  ASSERT_TRUE(store_->DeleteUser("nobody").ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {{"b", At(kToday), ""}}).ok());
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1), Count(kToday, "b", 1)));
}

TEST_F(ItemUseTest, WhatRetentionRemovesStaysCountedAndIsNotCountedAgain) {
  const Event a = {"a", At(kToday), ""};
  ASSERT_TRUE(AppendTo(*store_, "u", {a, {"b", At(kToday, 1), ""}}).ok());
  Truncate("u", 1);
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1), Count(kToday, "b", 1)));
  EXPECT_THAT(*AppendTo(*store_, "u", {a}), ElementsAre(AppendOutcome::kExpired));
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1), Count(kToday, "b", 1)));
  ASSERT_TRUE(store_->DeleteUser("u").ok());
  EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1)));
}

TEST_F(ItemUseTest, ABackupHoldsThem) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}, {"b", At(kToday - 9), ""}}).ok());
  ASSERT_TRUE(store_->CreateBackup(dir_.path() + "/backup").ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {{"c", At(kToday), ""}}).ok());
  auto backup = OpenStore(dir_.path() + "/backup");
  EXPECT_THAT(StoredUse(*backup), ElementsAre(Count(kToday - 9, "b", 1), Count(kToday, "a", 1)));
}

TEST_F(ItemUseTest, DamagedCountsAreNeverServedAndCountedAnew) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}, {"b", At(kToday - 300), ""}}).ok());
  const UseCounts sound = StoredUse(*store_);
  for (const auto& [key, value] : {std::pair(UseKey(kToday), std::string("short")),
                                   std::pair(UseKey(kToday) + "?", std::string()),
                                   std::pair(std::string("first use day"), std::string("?"))}) {
    store_.reset();
    RawDatabase(dir_.store()).Put(RawDatabase::kUse, key, value);
    Reopen(/*read_only=*/true);
    const auto any = [](const ItemUse&) { return true; };
    EXPECT_EQ(store_->ReadUse(0, any).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(ReadAll(*store_, "u").size(), 2u);
    Reopen();
    EXPECT_EQ(StoredUse(*store_), sound);
    EXPECT_EQ(store_->first_use_day(), kToday - kUseDays);
    EXPECT_EQ(store_->stats().recounts, 1u);
    Reopen();
    EXPECT_EQ(StoredUse(*store_), sound);
    EXPECT_EQ(store_->stats().recounts, 0u);
  }
}

// A program that ends before the logs are counted leaves some counts and no first day.
TEST_F(ItemUseTest, CountingThatWasInterruptedBeginsAnew) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}, {"b", At(kToday - 1), ""}}).ok());
  const UseCounts sound = StoredUse(*store_);
  store_.reset();
  {
    RawDatabase raw(dir_.store());
    raw.Delete(RawDatabase::kUse, "first use day");
    raw.Delete(RawDatabase::kUse, UseKey(kToday - 1));
    raw.Put(RawDatabase::kUse, UseKey(kToday - 7), raw.Get(RawDatabase::kUse, UseKey(kToday)));
  }
  Reopen(/*read_only=*/true);
  EXPECT_FALSE(store_->keeps_use());
  EXPECT_EQ(StoredUse(*store_), sound);
  Reopen();
  EXPECT_EQ(StoredUse(*store_), sound);
}

// A program of before the counts does not open the store, and says why.
TEST_F(ItemUseTest, OlderProgramsAreRefused) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}}).ok());
  for (const bool flushed : {false, true}) {
    if (flushed) {
      ASSERT_TRUE(store_->CreateBackup(dir_.path() + "/flush").ok());
    }
    store_.reset();
    {
      std::vector<rocksdb::ColumnFamilyDescriptor> families;
      for (const char* name : {"default", "events", "states", "meta"}) {
        families.push_back({name, rocksdb::ColumnFamilyOptions()});
      }
      std::vector<rocksdb::ColumnFamilyHandle*> handles;
      rocksdb::DB* db = nullptr;
      const rocksdb::Status opened =
          rocksdb::DB::Open(DatabaseOptions(SmallOptions()), dir_.store(), families, &handles, &db);
      EXPECT_TRUE(opened.IsInvalidArgument()) << opened.ToString();
      EXPECT_THAT(opened.ToString(), HasSubstr("use"));
    }
    Reopen();
    EXPECT_THAT(StoredUse(*store_), ElementsAre(Count(kToday, "a", 1)));
    EXPECT_EQ(ReadAll(*store_, "u").size(), 1u);
  }
}

TEST_F(ItemUseTest, AnObserverIsToldWhatIsThereAndEveryChange) {
  ASSERT_TRUE(AppendTo(*store_, "u", {{"a", At(kToday), ""}}).ok());
  auto observer = std::make_shared<CountingObserver>();
  ASSERT_TRUE(store_->ObserveUse(observer).ok());
  EXPECT_EQ(observer->counts(), StoredUse(*store_));
  ASSERT_TRUE(AppendTo(*store_, "v", {{"a", At(kToday), ""}, {"b", At(kToday - 1), ""}}).ok());
  ASSERT_TRUE(AppendTo(*store_, "v", {{"a", At(kToday), ""}}).ok());
  ASSERT_TRUE(store_->DeleteUser("u").ok());
  EXPECT_THAT(observer->counts(), ElementsAre(Count(kToday - 1, "b", 1), Count(kToday, "a", 1)));
  ASSERT_TRUE(AppendTo(*store_, "v", {{"z", At(kToday + kUseDays), ""}}).ok());
  EXPECT_EQ(observer->counts(), StoredUse(*store_));
  std::weak_ptr<CountingObserver> gone = observer;
  observer.reset();
  EXPECT_TRUE(gone.expired());
  EXPECT_TRUE(AppendTo(*store_, "v", {{"y", At(kToday), ""}}).ok());
}

TEST_F(ItemUseTest, ObserversThatComeWhileOthersWriteMissNothing) {
  std::atomic<bool> stop = false;
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w) {
    writers.emplace_back([&, w] {
      for (int64_t n = 0; !stop; ++n) {
        const std::string user = absl::StrCat("u", w, "-", n % 50);
        const auto durability = n % 16 == 0 ? Durability::kSynced : Durability::kBuffered;
        EXPECT_TRUE(AppendTo(*store_, user,
                             {{absl::StrCat("i", n % 7), At(kToday + n / 500, n), ""},
                              {"popular", At(kToday, n), ""}},
                             durability)
                        .ok());
        if (n % 40 != 39) continue;
        EXPECT_TRUE(store_->DeleteUser(user).ok());
      }
    });
  }
  std::vector<std::shared_ptr<CountingObserver>> observers;
  for (int o = 0; o < 20; ++o) {
    observers.push_back(std::make_shared<CountingObserver>());
    EXPECT_TRUE(store_->ObserveUse(observers.back()).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
  const UseCounts stored = StoredUse(*store_);
  EXPECT_FALSE(stored.empty());
  EXPECT_EQ(stored, LoggedUse(*store_));
  for (const auto& observer : observers) EXPECT_EQ(observer->counts(), stored);
}

TEST_F(ItemUseTest, EqualThoseOfTheLogUnderRandomOperations) {
  std::mt19937_64 random = PrintedRandom("use");
  auto observer = std::make_shared<CountingObserver>();
  ASSERT_TRUE(store_->ObserveUse(observer).ok());
  int64_t newest = kToday;
  for (int round = 0; round < 300 && !HasFailure(); ++round) {
    const std::string user = absl::StrCat("u", random() % 10);
    const uint64_t choice = random() % 100;
    if (choice < 85) {
      std::vector<Event> events;
      for (uint64_t n = random() % 20; n > 0; --n) {
        newest += random() % 40 == 0;
        const auto age = static_cast<int64_t>(random() % 3 == 0 ? random() % 220 : random() % 2);
        events.push_back({absl::StrCat("i", random() % 5), At(newest - age, random() % 4),
                          random() % 2 == 0 ? "" : absl::StrCat("e", random() % 3)});
      }
      ASSERT_TRUE(AppendTo(*store_, user, events).ok());
    } else if (choice < 95) {
      ASSERT_TRUE(store_->DeleteUser(user).ok());
    } else if (choice < 97) {
      ASSERT_TRUE(store_->PurgeDeleted(user).ok());
    } else {
      Reopen();
      observer = std::make_shared<CountingObserver>();
      ASSERT_TRUE(store_->ObserveUse(observer).ok());
    }
    const UseCounts stored = StoredUse(*store_);
    EXPECT_EQ(stored, LoggedUse(*store_));
    EXPECT_EQ(stored, observer->counts());
  }
}

}  // namespace
}  // namespace tim4rec
