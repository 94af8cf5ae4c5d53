// Stores of every format version that was released are read for ever. testdata/formatN was written
// by the write_frozen_store of then.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "gmock/gmock.h"
#include "store/record_codec.h"
#include "tests/paths.h"
#include "tests/store/raw_database.h"
#include "tests/store/store_dump.h"
#include "tests/store/store_fixture.h"
#include "tests/store/use_counts.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;

const std::string kData = SourceDir() + "/tests/store/testdata/";

class FrozenStore : public testing::TestWithParam<std::string> {
 protected:
  FrozenStore() {
    std::filesystem::copy(kData + GetParam() + "/store", dir_.store(),
                          std::filesystem::copy_options::recursive);
    for (const auto& file : std::filesystem::directory_iterator(dir_.store())) {
      std::filesystem::permissions(file.path(), std::filesystem::perms::owner_write,
                                   std::filesystem::perm_options::add);
    }
    expected_ = Expected("expected.txt");
  }

  static std::string Expected(const std::string& name) {
    std::ifstream file(kData + GetParam() + "/" + name);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  ScratchDir dir_;
  std::string expected_;
};

TEST_P(FrozenStore, IsReadAsItWasWritten) {
  ASSERT_FALSE(expected_.empty());
  for (const bool read_only : {true, false, false}) {
    RocksDbStoreOptions options = SmallOptions();
    options.read_only = read_only;
    options.create_if_missing = false;
    auto store = OpenStore(dir_.store(), options);
    ASSERT_NE(store, nullptr);
    const auto dump = DumpStore(*store);
    ASSERT_TRUE(dump.ok()) << dump.status();
    EXPECT_EQ(*dump, expected_);
  }
}

TEST_P(FrozenStore, HoldsStatesOfBothLayouts) {
  auto store = OpenStore(dir_.store());
  std::vector<size_t> sizes;
  const absl::Status listed = store->ForEachState([&](const StoredState& state) {
    if (state.user_id != "alice") return true;
    const std::string& payload = state.record->payload;
    sizes.push_back(payload.size());
    int64_t last_timestamp_ms = 0;
    int64_t folded = 0;
    std::memcpy(&last_timestamp_ms, payload.data(), 8);
    std::memcpy(&folded, payload.data() + 8, 8);
    EXPECT_EQ(last_timestamp_ms, 1'700'000'000'000);
    EXPECT_EQ(folded, 4);
    EXPECT_EQ(state.record->lineage.event_count, 4u);
    return true;
  });
  EXPECT_TRUE(listed.ok()) << listed;
  EXPECT_EQ(sizes.size(), 2u);
  EXPECT_NE(sizes.front(), sizes.back());
}

TEST_P(FrozenStore, TakesNewEventsAndKnowsTheOld) {
  auto store = OpenStore(dir_.store());
  const auto outcomes =
      AppendTo(*store, "alice", {{"item1", -1, "e7"}, {"item4", 5, "late"}, {"item1", 0, ""}});
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_THAT(*outcomes, ElementsAre(AppendOutcome::kDuplicate, AppendOutcome::kDuplicate,
                                     AppendOutcome::kAdded));
  EXPECT_EQ(ReadAll(*store, "alice").size(), 5u);
  ASSERT_TRUE(store->DeleteUser("alice").ok());
  EXPECT_TRUE(ReadAll(*store, "alice").empty());
}

TEST_P(FrozenStore, SaysItsFormatVersion) {
  RawDatabase raw(dir_.store());
  const auto format = DecodeFormatVersion(raw.Get(RawDatabase::kMeta, "format"));
  ASSERT_TRUE(format.has_value());
  EXPECT_EQ("format" + std::to_string(format->version), GetParam());
  EXPECT_EQ(raw.Get(RawDatabase::kMeta, "probe"), "");
}

// A store from before the counts is counted when it is opened to write, and not changed before.
TEST_P(FrozenStore, CountsTheUseOfItems) {
  const bool counted = GetParam() != "format1" && GetParam() != "format2";
  RocksDbStoreOptions options = SmallOptions();
  UseCounts in_memory;
  {
    options.read_only = true;
    auto store = OpenStore(dir_.store(), options);
    EXPECT_EQ(store->keeps_use(), counted);
    in_memory = StoredUse(*store);
  }
  for (int opened = 0; opened < 2; ++opened) {
    auto store = OpenStore(dir_.store());
    EXPECT_TRUE(store->keeps_use());
    EXPECT_EQ(StoredUse(*store), in_memory);
    if (counted) {
      EXPECT_EQ(*DumpUse(*store), Expected("expected_use.txt"));
    } else {
      EXPECT_EQ(StoredUse(*store), LoggedUse(*store));
      EXPECT_EQ(store->first_use_day(), UseDayOf(1'700'000'000'000) - kUseDays);
    }
    EXPECT_FALSE(in_memory.empty());
  }
  RawDatabase raw(dir_.store());
  EXPECT_EQ(DecodeFormatVersion(raw.Get(RawDatabase::kMeta, "format"))->min_reader, kFormatVersion);
}

class FrozenTruncation : public FrozenStore {};

TEST_P(FrozenTruncation, GoesOnFromWhereItWas) {
  auto store = OpenStore(dir_.store());
  const auto outcomes = AppendTo(*store, "carol",
                                 {{"item1", 10, ""},
                                  {"item2", 20, "e"},
                                  {"item3", 30, ""},
                                  {"item4", 5, "late"},
                                  {"x", 40, ""}});
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_THAT(*outcomes, ElementsAre(AppendOutcome::kExpired, AppendOutcome::kExpired,
                                     AppendOutcome::kDuplicate, AppendOutcome::kDuplicate,
                                     AppendOutcome::kAdded));
  EXPECT_THAT(Items(ReadAll(*store, "carol")), ElementsAre("item3", "item4", "x"));
  EXPECT_EQ((*store->ReadTruncation("dave"))->lineage.event_count, 2u);
  EXPECT_TRUE(ReadAll(*store, "dave").empty());
}

INSTANTIATE_TEST_SUITE_P(Released, FrozenTruncation, testing::Values("format2", "format3"),
                         [](const auto& info) { return info.param; });

std::vector<std::string> Formats() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kData)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Released, FrozenStore, testing::ValuesIn(Formats()),
                         [](const auto& info) { return info.param; });

TEST(FrozenStores, ThereIsOneOfEveryVersion) {
  EXPECT_EQ(Formats().size(), static_cast<size_t>(kFormatVersion));
}

}  // namespace
}  // namespace tim4rec
