#include "store/rocksdb_store.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/record_codec.h"
#include "tests/store/raw_database.h"
#include "tests/store/store_contract.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class RocksDbUnderTest final : public StoreUnderTest {
 public:
  EventLog& log() override { return *store_; }
  StateStore& states() override { return *store_; }
  void Reopen() override {
    store_.reset();
    store_ = OpenStore(dir_.store());
  }

 private:
  ScratchDir dir_;
  std::unique_ptr<RocksDbStore> store_ = OpenStore(dir_.store());
};

INSTANTIATE_TEST_SUITE_P(RocksDb, StoreContract,
                         testing::Values(StoreKind{
                             "RocksDb", [] { return std::make_unique<RocksDbUnderTest>(); }}),
                         [](const auto& info) { return info.param.name; });

constexpr int kEvents = RawDatabase::kEvents;
constexpr int kStates = RawDatabase::kStates;
constexpr int kMeta = RawDatabase::kMeta;

TEST(RocksDbStore, DamagedEventIsDataLossNamingTheUser) {
  ScratchDir dir;
  const Event second = {"b", 2, ""};
  {
    auto store = OpenStore(dir.store());
    ASSERT_TRUE(AppendTo(*store, "alice", {{"a", 1, ""}, second, {"c", 3, ""}}).ok());
    ASSERT_TRUE(AppendTo(*store, "bob", {{"a", 1, ""}}).ok());
  }
  {
    RawDatabase raw(dir.store());
    std::string key;
    AppendEventKey("alice", second, key);
    std::string value = raw.Get(kEvents, key);
    FlipMiddleBit(value);
    raw.Put(kEvents, key, value);
  }
  auto store = OpenStore(dir.store());
  int visited = 0;
  const absl::Status read = store->Read("alice", [&](std::string_view, const Event&) {
    ++visited;
    return true;
  });
  EXPECT_EQ(read.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(read.message()), HasSubstr("'alice'"));
  EXPECT_EQ(visited, 1);
  EXPECT_EQ(ReadAll(*store, "bob").size(), 1u);
  // Erasing does not need to understand what it erases.
  const auto deleted = store->DeleteUser("alice");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->events, 3u);
  EXPECT_THAT(ReadAll(*store, "alice"), IsEmpty());
}

TEST(RocksDbStore, DamagedStateIsIgnoredAndCounted) {
  ScratchDir dir;
  StateRecord record;
  record.payload = std::string(1000, 's');
  const UserState put[] = {{"alice", kFingerprintA, &record}, {"bob", kFingerprintA, &record}};
  {
    auto store = OpenStore(dir.store());
    ASSERT_TRUE(store->Put(put).ok());
  }
  {
    RawDatabase raw(dir.store());
    const std::string key = StateKey("alice", kFingerprintA);
    std::string value = raw.Get(kStates, key);
    FlipMiddleBit(value);
    raw.Put(kStates, key, value);
  }
  auto store = OpenStore(dir.store());
  const auto damaged = store->Get("alice", kFingerprintA);
  ASSERT_TRUE(damaged.ok()) << damaged.status();
  EXPECT_FALSE(damaged->has_value());
  EXPECT_EQ(store->stats().corrupt_states, 1u);
  const auto whole = store->Get("bob", kFingerprintA);
  ASSERT_TRUE(whole.ok());
  EXPECT_TRUE(whole->has_value());
  ASSERT_TRUE(store->Put(put).ok());
  EXPECT_TRUE((*store->Get("alice", kFingerprintA)).has_value());
}

TEST(RocksDbStore, DamagedLogIsDataLossAndNotAnOlderStore) {
  ScratchDir dir;
  {
    auto store = OpenStore(dir.store());
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(AppendTo(*store, "u", {{"item", i, ""}}, Durability::kSynced).ok());
    }
  }
  for (const auto& entry : std::filesystem::directory_iterator(dir.store())) {
    if (entry.path().extension() != ".log" || entry.file_size() == 0) continue;
    std::fstream log(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    const auto middle = static_cast<std::streamoff>(entry.file_size() / 2);
    log.seekg(middle);
    const char byte = static_cast<char>(log.get());
    log.seekp(middle);
    log.put(static_cast<char>(byte ^ 1));
  }
  EXPECT_EQ(RocksDbStore::Open(dir.store(), SmallOptions()).status().code(),
            absl::StatusCode::kDataLoss);
  // Nor do zeros behind the damage make it pass for a torn write, or get lost in trying.
  std::map<std::string, uintmax_t> sizes;
  for (const auto& entry : std::filesystem::directory_iterator(dir.store())) {
    if (entry.path().extension() != ".log") continue;
    std::filesystem::resize_file(entry.path(), entry.file_size() + 1000);
    sizes[entry.path()] = std::filesystem::file_size(entry.path());
  }
  EXPECT_EQ(RocksDbStore::Open(dir.store(), SmallOptions()).status().code(),
            absl::StatusCode::kDataLoss);
  ASSERT_FALSE(sizes.empty());
  for (const auto& [file, size] : sizes) EXPECT_EQ(std::filesystem::file_size(file), size) << file;
}

TEST(RocksDbStore, DeletesAUserOfAllModelsAndNobodyElse) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  StateRecord record;
  for (const char* user : {"a", "aa", "b"}) {
    ASSERT_TRUE(AppendTo(*store, user, {{"x", 1, ""}, {"y", 2, "e"}}).ok());
    const UserState put[] = {{user, kFingerprintA, &record}, {user, kFingerprintB, &record}};
    ASSERT_TRUE(store->Put(put).ok());
  }
  const auto deleted = store->DeleteUser("a");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->events, 2u);
  EXPECT_EQ(deleted->states, 2u);
  const auto again = store->DeleteUser("a");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->events, 0u);
  EXPECT_EQ(again->states, 0u);
  for (const bool reopened : {false, true}) {
    if (reopened) {
      store.reset();
      store = OpenStore(dir.store());
    }
    EXPECT_THAT(ReadAll(*store, "a"), IsEmpty());
    EXPECT_FALSE((*store->Get("a", kFingerprintB)).has_value());
    EXPECT_EQ(ReadAll(*store, "aa").size(), 2u);
    EXPECT_TRUE((*store->Get("aa", kFingerprintA)).has_value());
  }
  // A deleted user may come back, and begins from nothing.
  ASSERT_TRUE(AppendTo(*store, "a", {{"z", 3, ""}}).ok());
  EXPECT_EQ(ReadAll(*store, "a").size(), 1u);
}

TEST(RocksDbStore, SecondOpenerIsToldThatTheStoreIsInUse) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  const auto second = RocksDbStore::Open(dir.store(), SmallOptions());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use"));
}

TEST(RocksDbStore, AbsentStoreIsNotFoundUnlessItMayBeCreated) {
  ScratchDir dir;
  RocksDbStoreOptions options = SmallOptions();
  options.create_if_missing = false;
  EXPECT_EQ(RocksDbStore::Open(dir.store(), options).status().code(), absl::StatusCode::kNotFound);
  options.read_only = true;
  EXPECT_EQ(RocksDbStore::Open(dir.store(), options).status().code(), absl::StatusCode::kNotFound);
}

TEST(RocksDbStore, ReadOnlyReadsAndRefusesToWrite) {
  ScratchDir dir;
  {
    auto store = OpenStore(dir.store());
    ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}).ok());
  }
  RocksDbStoreOptions options = SmallOptions();
  options.read_only = true;
  auto store = OpenStore(dir.store(), options);
  EXPECT_EQ(ReadAll(*store, "u").size(), 1u);
  constexpr absl::StatusCode kRefused = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(AppendTo(*store, "u", {{"b", 2, ""}}).status().code(), kRefused);
  EXPECT_EQ(store->Put({}).code(), kRefused);
  EXPECT_EQ(store->Flush().code(), kRefused);
  EXPECT_EQ(store->DeleteUser("u").status().code(), kRefused);
  EXPECT_EQ(store->CheckWritable().code(), kRefused);
}

TEST(RocksDbStore, NewerFormatIsRefusedWithBothVersions) {
  ScratchDir dir;
  OpenStore(dir.store()).reset();
  RawDatabase(dir.store()).Put(kMeta, "format", EncodeFormatVersion({9, 8}));
  const auto newer = RocksDbStore::Open(dir.store(), SmallOptions());
  EXPECT_EQ(newer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(newer.status().message()), HasSubstr("format version 9"));
  // A newer writer that older readers understand is fine.
  RawDatabase(dir.store()).Put(kMeta, "format", EncodeFormatVersion({9, kFormatVersion}));
  EXPECT_TRUE(RocksDbStore::Open(dir.store(), SmallOptions()).ok());
  RawDatabase(dir.store()).Put(kMeta, "format", "?");
  EXPECT_EQ(RocksDbStore::Open(dir.store(), SmallOptions()).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(RocksDbStore, WritableStoreSaysSo) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  EXPECT_TRUE(store->CheckWritable().ok());
  EXPECT_EQ(store->stats().append_failures, 0u);
}

TEST(RocksDbStore, ManyThreadsWriteTheirOwnUsers) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  constexpr int kThreads = 4;
  constexpr int kBatches = 40;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&store, t] {
      StateRecord record;
      const std::string user = absl::StrCat("t", t);
      for (int b = 0; b < kBatches; ++b) {
        const Durability durability = b % 2 == 0 ? Durability::kSynced : Durability::kBuffered;
        EXPECT_TRUE(AppendTo(*store, user, {{"x", b, ""}, {"y", b, ""}}, durability).ok());
        const UserState put[] = {{user, kFingerprintA, &record}};
        EXPECT_TRUE(store->Put(put).ok());
        EXPECT_EQ(ReadAll(*store, user).size(), 2u * static_cast<size_t>(b + 1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace tim4rec
