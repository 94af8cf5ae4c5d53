// What becomes of calls when the disk is full, fails or lies.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/record_codec.h"
#include "tests/store/fault_fixture.h"
#include "tests/store/use_counts.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;

class Disk : public FaultTest {
 protected:
  // Once the disk works again, the store does so without being opened anew.
  static bool WritableSoon(RocksDbStore& store) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!store.CheckWritable().ok()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return true;
  }

  // 200, of items too random to be compressed: the tests look for them in the tables.
  std::vector<Event> NoisyEvents() {
    std::vector<Event> events;
    for (int i = 0; i < 200; ++i) {
      const std::string noise = absl::StrCat(random_(), random_(), random_(), random_());
      events.push_back({absl::StrCat("item ", i, " ", noise), i, ""});
    }
    return events;
  }
};

TEST_F(Disk, FullDiskLeavesNothingHalfApplied) {
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

TEST_F(Disk, FailedSyncIsNotAcknowledged) {
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

// Fails writes or syncs, sees what is refused, heals, and sees that nothing needs a restart and
// that nothing acknowledged is lost.
class DiskRecovery : public Disk {
 protected:
  void FailAndHeal(const std::function<void(bool)>& fail) {
    auto store = Open();
    ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}, Durability::kBuffered).ok());
    ASSERT_TRUE(AppendTo(*store, "other", {{"x", 1, ""}}, Durability::kSynced).ok());
    const auto observer = std::make_shared<CountingObserver>();
    ASSERT_TRUE(store->ObserveUse(observer).ok());
    for (int round = 0; round < 3; ++round) {
      SCOPED_TRACE(round);
      const int64_t next = 2 + round;
      fail(true);
      EXPECT_EQ(AppendTo(*store, "u", {{"b", next, ""}}, Durability::kSynced).status().code(),
                absl::StatusCode::kUnavailable);
      EXPECT_EQ(ReadAll(*store, "u").size(), static_cast<size_t>(next) - 1);
      EXPECT_EQ(store->CheckWritable().code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(AppendTo(*store, "u", {{"b", next, ""}}, Durability::kBuffered).status().code(),
                absl::StatusCode::kUnavailable);
      EXPECT_EQ(ReadAll(*store, "other").size(), 1u) << "reads go on";
      fail(false);
      ASSERT_TRUE(WritableSoon(*store)) << store->CheckWritable();
      ASSERT_TRUE(AppendTo(*store, "u", {{"b", next, ""}}, Durability::kSynced).ok());
      PutState(*store, "u", NamedState(absl::StrCat(round)));
      ASSERT_TRUE(store->Flush().ok());
      EXPECT_EQ(StoredUse(*store), LoggedUse(*store));
      EXPECT_EQ(observer->counts(), StoredUse(*store));
    }
    Crash(store, TornTail::kDropped, random_);
    EXPECT_EQ(ReadAll(*store, "u").size(), 4u);
    EXPECT_EQ(PayloadOf(*store, "u"), "2");
  }
};

TEST_F(DiskRecovery, FromFailedWrites) {
  FailAndHeal([this](bool fail) { fs_->FailWrites(fail); });
}

TEST_F(DiskRecovery, FromFailedSyncs) {
  FailAndHeal([this](bool fail) { fs_->FailSyncs(fail); });
}

TEST_F(DiskRecovery, FromAFailedFlush) {
  auto store = Open();
  PutState(*store, "u", NamedState("s"));
  ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}, Durability::kSynced).ok());
  fs_->FailWrites(true);
  EXPECT_EQ(store->Flush().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(store->CheckWritable().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReadAll(*store, "u").size(), 1u);
  EXPECT_EQ(PayloadOf(*store, "u"), "s");
  fs_->FailWrites(false);
  ASSERT_TRUE(WritableSoon(*store)) << store->CheckWritable();
  ASSERT_TRUE(AppendTo(*store, "u", {{"b", 2, ""}}, Durability::kSynced).ok());
  Crash(store, TornTail::kDropped, random_);
  EXPECT_EQ(ReadAll(*store, "u").size(), 2u);
}

TEST_F(Disk, FailedReadsAreNamedAndPass) {
  const std::string item(200, 'i');
  RocksDbStoreOptions options = SmallOptions();
  options.env = env_.get();
  {
    auto store = OpenStore(dir_.store(), options);
    for (int i = 0; i < 300; ++i) {
      ASSERT_TRUE(AppendTo(*store, "u", {{item, i, ""}}).ok());
    }
    PutState(*store, "u", NamedState(std::string(5000, 's')));
    ASSERT_TRUE(store->Flush().ok());
  }
  auto store = OpenStore(dir_.store(), options);
  // What is read from the table files is not in the cache yet.
  fs_->FailReads(true);
  const auto ignore = [](std::string_view, const Event&) { return true; };
  const absl::Status read = store->Read("u", ignore);
  EXPECT_EQ(read.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(read.message()), HasSubstr("'u'"));
  EXPECT_EQ(store->Get("u", kFingerprintA).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(AppendTo(*store, "u", {{item, 7, ""}}).status().code(), absl::StatusCode::kUnavailable)
      << "whether it is a duplicate cannot be told";
  EXPECT_TRUE(store->CheckWritable().ok());
  fs_->FailReads(false);
  EXPECT_EQ(ReadAll(*store, "u").size(), 300u);
  EXPECT_EQ(PayloadOf(*store, "u"), std::string(5000, 's'));
  EXPECT_EQ(store->stats().corrupt_states, 0u);
}

// Flips a bit in the first table file that holds `bytes`, and `other` too.
void FlipBitIn(const std::string& dir, const std::string& bytes, const std::string& other = "") {
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (entry.path().extension() != ".sst") continue;
    std::ifstream in(entry.path(), std::ios::binary);
    std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const size_t at = content.find(bytes);
    if (at == std::string::npos || content.find(other) == std::string::npos) continue;
    content[at] ^= 1;
    std::ofstream(entry.path(), std::ios::binary) << content;
    return;
  }
  FAIL() << "no table file has it";
}

TEST_F(Disk, AFlippedBitInATableIsDataLossForItsUserOrAnAbsentState) {
  const std::string state(5000, 's');
  {
    auto store = Open();
    // Filler that does not compress keeps the users in blocks of their own.
    for (const char* user : {"alice", "bob"}) {
      std::vector<Event> events;
      for (int i = 0; i < 200; ++i) {
        events.push_back({absl::StrCat(user, "'s ", i, " ", random_(), random_()), i, ""});
      }
      ASSERT_TRUE(AppendTo(*store, user, events).ok());
      PutState(*store, user, NamedState(absl::StrCat(user, state)));
    }
    ASSERT_TRUE(store->Flush().ok());
  }
  // Flush writes the states alone; opening and closing has put the events into tables too.
  Open().reset();
  FlipBitIn(dir_.store(), "bob's 100 ", UserPrefix("bob"));  // not the count of the item
  FlipBitIn(dir_.store(), absl::StrCat("alice", state));
  auto store = Open();
  const auto ignore = [](std::string_view, const Event&) { return true; };
  const absl::Status read = store->Read("bob", ignore);
  EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss) << read;
  EXPECT_THAT(std::string(read.message()), HasSubstr("'bob'"));
  EXPECT_EQ(ReadAll(*store, "alice").size(), 200u);
  EXPECT_EQ(PayloadOf(*store, "alice"), std::nullopt);
  EXPECT_EQ(store->stats().corrupt_states, 1u);
  EXPECT_EQ(PayloadOf(*store, "bob"), absl::StrCat("bob", state));
  EXPECT_TRUE(store->CheckWritable().ok());
}

TEST_F(Disk, AFlippedBitInATableOfCountsIsMadeGoodFromTheLogs) {
  UseCounts sound;
  {
    auto store = Open();
    ASSERT_TRUE(AppendTo(*store, "alice", NoisyEvents()).ok());
    sound = StoredUse(*store);
  }
  Open().reset();
  FlipBitIn(dir_.store(), "item 100 ", "tim4rec.UseSum");
  {
    auto store = Open();
    EXPECT_EQ(StoredUse(*store), sound);
    EXPECT_EQ(store->stats().recounts, 1u);
    EXPECT_EQ(ReadAll(*store, "alice").size(), 200u);
    ASSERT_TRUE(AppendTo(*store, "bob", {{"item", 1000, ""}}).ok());
  }
  // Both damaged: what can be read is served, and no count is.
  Open().reset();
  FlipBitIn(dir_.store(), "item 100 ", "tim4rec.UseSum");
  FlipBitIn(dir_.store(), "item 100 ", UserPrefix("alice"));
  for (int opened = 0; opened < 2; ++opened) {
    auto store = Open();
    EXPECT_EQ(store->ReadUse(0, [](const ItemUse&) { return true; }).code(),
              absl::StatusCode::kDataLoss);
    EXPECT_EQ(store->stats().recounts, 0u);
    EXPECT_EQ(ReadAll(*store, "bob").size(), 1u + opened);
    ASSERT_TRUE(AppendTo(*store, "bob", {{"item", 2000 + opened, ""}}).ok());
  }
}

// Opened anew on damage that nothing makes good: a model that followed the counts would go on with
// old ones.
TEST_F(Disk, WithoutCountsAStoreThatIsFollowedStaysClosed) {
  {
    auto store = Open();
    ASSERT_TRUE(AppendTo(*store, "alice", NoisyEvents()).ok());
  }
  Open().reset();
  auto store = Open();
  auto observer = std::make_shared<CountingObserver>();
  ASSERT_TRUE(store->ObserveUse(observer).ok());
  FlipBitIn(dir_.store(), "item 100 ", "tim4rec.UseSum");
  FlipBitIn(dir_.store(), "item 100 ", UserPrefix("alice"));
  fs_->FailWrites(true);
  EXPECT_FALSE(AppendTo(*store, "bob", {{"item", 1, ""}}, Durability::kSynced).ok());
  fs_->FailWrites(false);
  for (int attempt = 0; attempt < 3; ++attempt) EXPECT_FALSE(store->CheckWritable().ok());
  EXPECT_EQ(AppendTo(*store, "bob", {{"item", 1, ""}}).status().code(),
            absl::StatusCode::kUnavailable);
  observer.reset();
  EXPECT_TRUE(WritableSoon(*store)) << store->CheckWritable();
  EXPECT_TRUE(AppendTo(*store, "bob", {{"item", 1, ""}}).ok());
}

}  // namespace
}  // namespace tim4rec
