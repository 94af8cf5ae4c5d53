// Backups, and erasing a user from every file.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/rocksdb_store.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::IsEmpty;

StateRecord StateOf(const std::string& user, int events) {
  StateRecord record;
  for (int i = 0; i < events; ++i) record.lineage.Extend(PositionOf({user, i, ""}), user);
  record.payload = absl::StrCat("state of ", user, " after ", events);
  return record;
}

TEST(Backup, HoldsWhatWasAcknowledgedBeforeItWhileWritesGoOn) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  constexpr int kUsers = 50;
  for (int u = 0; u < kUsers; ++u) {
    const std::string user = absl::StrCat("state", u);
    const StateRecord record = StateOf(user, u);
    const UserState put[] = {{user, kFingerprintA, &record}};
    ASSERT_TRUE(store->Put(put).ok());
  }
  std::atomic<bool> stop = false;
  std::atomic<int64_t> acknowledged[2] = {0, 0};
  std::vector<std::thread> writers;
  for (int w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      const auto durability = w == 0 ? Durability::kSynced : Durability::kBuffered;
      for (int64_t n = 0; !stop; acknowledged[w] = ++n) {
        const Event event = {absl::StrCat("item", n), n, ""};
        EXPECT_TRUE(AppendTo(*store, absl::StrCat("writer", w), {event}, durability).ok());
      }
    });
  }
  for (int b = 0; b < 3; ++b) {
    while (acknowledged[0] < 20 * (b + 1)) std::this_thread::yield();
    const std::string path = absl::StrCat(dir.path(), "/backup", b);
    const int64_t before[2] = {acknowledged[0], acknowledged[1]};
    const auto backup = store->CreateBackup(path);
    ASSERT_TRUE(backup.ok()) << backup.status();
    const int64_t after[2] = {acknowledged[0] + 1, acknowledged[1] + 1};
    uint64_t bytes = 0;
    uint64_t files = 0;
    for (const auto& file : std::filesystem::directory_iterator(path)) {
      ++files;
      bytes += file.file_size();
    }
    EXPECT_EQ(backup->files, files);
    EXPECT_EQ(backup->bytes, bytes);
    auto copy = OpenStore(path);
    ASSERT_NE(copy, nullptr);
    for (int w = 0; w < 2; ++w) {
      const std::vector<Event> events = ReadAll(*copy, absl::StrCat("writer", w));
      EXPECT_GE(static_cast<int64_t>(events.size()), before[w]);
      EXPECT_LE(static_cast<int64_t>(events.size()), after[w]);
      for (size_t i = 0; i < events.size(); ++i) {
        EXPECT_EQ(events[i].timestamp_ms, static_cast<int64_t>(i));
      }
    }
    for (int u = 0; u < kUsers; ++u) {
      const std::string user = absl::StrCat("state", u);
      const auto state = copy->Get(user, kFingerprintA);
      ASSERT_TRUE(state.ok() && state->has_value()) << user;
      EXPECT_EQ((*state)->payload, StateOf(user, u).payload);
      EXPECT_EQ((*state)->lineage, StateOf(user, u).lineage);
    }
    // The copy is a store of its own.
    ASSERT_TRUE(AppendTo(*copy, "copy", {{"a", 1, ""}}).ok());
    EXPECT_THAT(ReadAll(*store, "copy"), IsEmpty());
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
}

TEST(Backup, RefusesADirectoryThatExists) {
  ScratchDir dir;
  auto store = OpenStore(dir.store());
  ASSERT_TRUE(AppendTo(*store, "u", {{"a", 1, ""}}).ok());
  EXPECT_EQ(store->CreateBackup(dir.path()).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(store->CreateBackup(dir.path() + "/no/such/parent").ok());
  EXPECT_EQ(ReadAll(*store, "u").size(), 1u);
}

// The files of a directory in which any of the texts is found, as it is or as hex digits of either
// case.
std::vector<std::string> FilesWith(const std::string& dir, const std::vector<std::string>& texts) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::stringstream content;
    content << file.rdbuf();
    const std::string bytes = content.str();
    for (const std::string& text : texts) {
      const std::string hex = absl::BytesToHexString(text);
      for (const std::string& form : {text, hex, absl::AsciiStrToUpper(hex)}) {
        if (bytes.find(form) == std::string::npos) continue;
        found.push_back(absl::StrCat(entry.path().filename().string(), ": ", text));
      }
    }
  }
  return found;
}

class Purge : public testing::Test {
 protected:
  // Events and states of a thousand neighbours and of the victim, who lies among them.
  void Fill(RocksDbStore& store, int round) {
    for (int u = 0; u < 1000; ++u) {
      const bool victim = u == 500;
      const std::string user = victim ? kVictim : absl::StrCat("neighbour-user-id-", 1000 + u);
      const std::string item =
          victim ? absl::StrCat("secretitem", round) : absl::StrCat("publicitem", u);
      const std::string id = victim ? absl::StrCat("secretevent", round) : "";
      ASSERT_TRUE(AppendTo(store, user, {{item, round, id}, {item, round + 100, ""}}).ok());
      const StateRecord record = StateOf(user, round);
      const UserState put[] = {{user, kFingerprintA, &record}, {user, kFingerprintB, &record}};
      ASSERT_TRUE(store.Put(put).ok());
    }
  }
  std::vector<std::string> Found() const {
    return FilesWith(dir_.store(), {kVictim, "secretitem", "secretevent"});
  }

  // As long as its neighbours, in whose midst it sorts.
  const std::string kVictim = "neighbour-user-id-1500";
  ScratchDir dir_;
};

TEST_F(Purge, NoFileHoldsAnythingOfADeletedUser) {
  auto store = OpenStore(dir_.store());
  // Over tables, the log, reopenings and compactions.
  for (int round = 1; round <= 3; ++round) {
    Fill(*store, round);
    ASSERT_TRUE(store->Flush().ok());
    if (round == 2) store.reset();
    if (round == 2) store = OpenStore(dir_.store());
  }
  ASSERT_FALSE(Found().empty());  // the search finds what there is
  const auto deleted = store->DeleteUser(kVictim);
  ASSERT_TRUE(deleted.ok());
  EXPECT_EQ(deleted->events, 6u);
  EXPECT_EQ(deleted->states, 2u);
  ASSERT_FALSE(Found().empty());
  ASSERT_TRUE(store->PurgeDeleted(kVictim).ok());
  EXPECT_THAT(Found(), IsEmpty());
  // Nobody else has lost anything, and writing goes on.
  for (const int u : {0, 499, 501, 999}) {
    const std::string user = absl::StrCat("neighbour-user-id-", 1000 + u);
    EXPECT_EQ(ReadAll(*store, user).size(), 6u) << user;
    EXPECT_TRUE((*store->Get(user, kFingerprintB)).has_value()) << user;
  }
  ASSERT_TRUE(AppendTo(*store, "neighbour-user-id-1501", {{"more", 1000, ""}}).ok());
  store.reset();
  EXPECT_THAT(Found(), IsEmpty());
  store = OpenStore(dir_.store());
  EXPECT_THAT(ReadAll(*store, kVictim), IsEmpty());
  EXPECT_EQ(ReadAll(*store, "neighbour-user-id-1501").size(), 7u);
}

// The user's keys are the first and the last of every table, which manifests and indexes name.
TEST_F(Purge, ALoneUserIsForgottenByTheManifestToo) {
  auto store = OpenStore(dir_.store());
  const StateRecord record = StateOf(kVictim, 1);
  const UserState put[] = {{kVictim, kFingerprintA, &record}};
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(store->Put(put).ok());
    ASSERT_TRUE(AppendTo(*store, kVictim, {{"secretitem", round, "secretevent"}}).ok());
    store.reset();
    store = OpenStore(dir_.store());
  }
  ASSERT_TRUE(store->DeleteUser(kVictim).ok());
  ASSERT_TRUE(store->PurgeDeleted(kVictim).ok());
  EXPECT_THAT(Found(), IsEmpty());
  EXPECT_THAT(ReadAll(*store, kVictim), IsEmpty());
}

TEST_F(Purge, AUserWhoExistsIsOnlyMoved) {
  auto store = OpenStore(dir_.store());
  Fill(*store, 1);
  ASSERT_TRUE(store->PurgeDeleted(kVictim).ok());
  EXPECT_EQ(ReadAll(*store, kVictim).size(), 2u);
  EXPECT_TRUE((*store->Get(kVictim, kFingerprintA)).has_value());
}

TEST_F(Purge, WorksWhileOthersWrite) {
  auto store = OpenStore(dir_.store());
  Fill(*store, 1);
  std::atomic<bool> stop = false;
  int64_t written = 0;
  std::thread writer([&] {
    for (; !stop; ++written) {
      EXPECT_TRUE(AppendTo(*store, "other", {{absl::StrCat("i", written), written, ""}}).ok());
    }
  });
  ASSERT_TRUE(store->DeleteUser(kVictim).ok());
  EXPECT_TRUE(store->PurgeDeleted(kVictim).ok());
  EXPECT_THAT(Found(), IsEmpty());
  stop = true;
  writer.join();
  EXPECT_EQ(static_cast<int64_t>(ReadAll(*store, "other").size()), written);
}

}  // namespace
}  // namespace tim4rec
