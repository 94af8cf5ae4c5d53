#include "model/training/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "model/training/windows.h"
#include "tests/model/training/temporary.h"

namespace tim4rec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

InteractionTable RandomTable(int users, int items, int rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  InteractionTable table;
  for (int i = 0; i < users; ++i) table.user_ids.push_back("u" + std::to_string(i));
  for (int i = 0; i < items; ++i) table.item_ids.push_back("i" + std::to_string(i));
  for (int i = 0; i < rows; ++i) {
    // Squares make some users and items rare.
    const auto pick = [&](int n) {
      const double x = static_cast<double>(random() >> 11) * 0x1p-53;
      return static_cast<int32_t>(x * x * n);
    };
    table.rows.push_back({pick(users), pick(items), static_cast<int64_t>(random() % 50) * 1000});
  }
  return table;
}

// One user with the given events.
Dataset OneUser(const std::vector<int32_t>& items, const std::vector<int64_t>& times) {
  Dataset data;
  data.items.resize(100);
  data.users.push_back({"u", items, times});
  return data;
}

TEST(Dataset, KCoreEqualsBruteForce) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const InteractionTable table = RandomTable(40, 40, 250, seed);
    std::vector<Interaction> rows = table.rows;
    while (true) {
      std::map<int, int> users, items;
      for (const auto& row : rows) ++users[row.user], ++items[row.item];
      std::vector<Interaction> kept;
      for (const auto& row : rows) {
        if (users[row.user] >= 5 && items[row.item] >= 5) kept.push_back(row);
      }
      if (kept.size() == rows.size()) break;
      rows = kept;
    }
    const auto data = BuildDataset(table, 5, {});
    if (rows.empty()) {
      EXPECT_FALSE(data.ok());
      continue;
    }
    ASSERT_TRUE(data.ok()) << "seed " << seed << ": " << data.status();
    std::multiset<std::tuple<std::string, std::string, int64_t>> expected, actual;
    for (const auto& row : rows) {
      expected.emplace(table.user_ids[row.user], table.item_ids[row.item], row.timestamp_ms);
    }
    for (const auto& history : data->users) {
      for (int64_t i = 0; i < history.size(); ++i) {
        actual.emplace(history.user, data->items[history.items[i]].id, history.timestamps_ms[i]);
      }
    }
    EXPECT_EQ(actual, expected) << "seed " << seed;
  }
}

TEST(Dataset, OrdersByTimeThenFile) {
  InteractionTable table;
  table.user_ids = {"u"};
  table.item_ids = {"a", "b", "c", "d"};
  table.rows = {{0, 0, 5}, {0, 1, 3}, {0, 2, 5}, {0, 3, 3}};
  const auto data = BuildDataset(table, 0, {{"c", "Title", {"X"}}, {"z", "Other", {}}});
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->users[0].items, ElementsAre(2, 4, 1, 3));
  EXPECT_THAT(data->users[0].timestamps_ms, ElementsAre(3, 3, 5, 5));
  EXPECT_EQ(data->items[3].title, "Title");
  EXPECT_EQ(data->users[0].target(Split::kTest), 3);
  EXPECT_EQ(data->users[0].target(Split::kValid), 2);
  // Targets are not counted as training events.
  EXPECT_EQ(data->items[2].train_events, 1);
  EXPECT_EQ(data->items[4].train_events, 1);
  EXPECT_EQ(data->items[1].train_events, 0);
  EXPECT_EQ(data->items[3].train_events, 0);
}

TEST(Dataset, TrainsOnShortHistoriesWhole) {
  InteractionTable table;
  table.user_ids = {"u", "v"};
  table.item_ids = {"a", "b"};
  table.rows = {{0, 0, 1}, {0, 1, 2}, {1, 0, 1}, {1, 0, 2}, {1, 1, 3}};
  const auto data = BuildDataset(table, 1, {});
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_FALSE(data->users[0].evaluated());
  EXPECT_EQ(data->users[0].train_size(), 2);
  EXPECT_TRUE(data->users[1].evaluated());
  EXPECT_EQ(data->users[1].train_size(), 1);
}

// A file with everything that real ones do wrong, or seem to.
TEST(Dataset, HandlesTheTrapsOfRealFiles) {
  TemporaryDirectory directory;
  const std::string path = directory.Write(
      "traps.csv",
      "timestamp,item_id,user_id\n"
      "1600000300.25,Caf\xC3\xA9 au lait,\xE6\x98\xA0 \xE7\x94\xBB\n"  // unsorted, spaces, Unicode
      "1600000000,b,\xE6\x98\xA0 \xE7\x94\xBB\n"
      "1600000100,c,\xE6\x98\xA0 \xE7\x94\xBB\n"
      "1600000100,a,\xE6\x98\xA0 \xE7\x94\xBB\n"    // a tie: after c, as in the file
      "1600000100,c,\xE6\x98\xA0 \xE7\x94\xBB\n"    // the same row again
      "1600000200.5,b,\xE6\x98\xA0 \xE7\x94\xBB\n"  // an item again, later
      "1600000000,a,two events\n"
      "1600000001,b,two events\n"
      "1600000000,a,one\n"
      "1600000000,a, one\n");  // another user: ids are kept as they are
  const auto table = ReadInteractions(path, {});
  ASSERT_TRUE(table.ok()) << table.status();
  const auto data = BuildDataset(*table, 0, {});
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->users.size(), 4u);
  EXPECT_EQ(data->n_events, 10);
  const UserHistory& user = data->users[0];
  EXPECT_EQ(user.user, "\xE6\x98\xA0 \xE7\x94\xBB");
  std::vector<std::string> items;
  for (const int32_t item : user.items) items.push_back(data->items[item].id);
  EXPECT_THAT(items, ElementsAre("b", "c", "a", "c", "b", "Caf\xC3\xA9 au lait"));
  EXPECT_THAT(user.timestamps_ms, ElementsAre(1600000000000, 1600000100000, 1600000100000,
                                              1600000100000, 1600000200500, 1600000300250));
  EXPECT_EQ(user.train_size(), 4);
  // The two rows of c are two training events.
  EXPECT_EQ(data->items[user.items[1]].train_events, 2);
  EXPECT_EQ(data->users[1].user, "two events");
  EXPECT_FALSE(data->users[1].evaluated());
  EXPECT_EQ(data->users[1].train_size(), 2);
  EXPECT_EQ(data->users[2].user, "one");
  EXPECT_EQ(data->users[3].user, " one");
  EXPECT_EQ(data->users[3].train_size(), 1);
  // No window can be made of one event.
  std::mt19937_64 rng(1);
  for (const Batch& batch : MakeBatches(*data, 10, 100, &rng)) {
    for (const Window& window : batch) EXPECT_LT(window.user, 2);
  }
}

TEST(Dataset, SaysThatNothingIsLeft) {
  const auto data = BuildDataset(RandomTable(50, 50, 20, 1), 5, {});
  EXPECT_EQ(data.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(data.status().message()), HasSubstr("none of the 20 interactions"));
  EXPECT_FALSE(BuildDataset(InteractionTable(), 0, {}).ok());
}

TEST(Dataset, LeavesUnknownItemsOutOfHistories) {
  std::vector<Item> items(3);
  items[1].id = "a";
  items[2].id = "b";
  const auto catalog = ItemCatalog::Create(items);
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  InteractionTable table;
  table.user_ids = {"v", "u"};
  table.item_ids = {"x", "b"};
  table.rows = {{0, 0, 1}, {1, 1, 9}, {1, 0, 3}, {1, 1, 2}};
  const KnownHistories known = HistoriesInCatalog(table, *catalog);
  EXPECT_EQ(known.unknown_events, 2);
  ASSERT_EQ(known.users.size(), 2u);
  EXPECT_EQ(known.users[0].user, "v");
  EXPECT_EQ(known.users[0].size(), 0);
  EXPECT_THAT(known.users[1].items, ElementsAre(2, 2));
  EXPECT_THAT(known.users[1].timestamps_ms, ElementsAre(2, 9));
}

TEST(Windows, EveryTrainingEventButTheFirstIsATargetOnce) {
  const auto data = BuildDataset(RandomTable(30, 20, 600, 3), 3, {});
  ASSERT_TRUE(data.ok()) << data.status();
  std::mt19937_64 rng(1);
  for (const int64_t max_length : {1, 4, 7, 1000}) {
    std::map<std::pair<int, int>, int> targets;
    for (const Batch& batch : MakeBatches(*data, max_length, 32, &rng)) {
      int64_t longest = 0;
      for (const Window& window : batch) {
        longest = std::max<int64_t>(longest, window.size());
        EXPECT_GE(window.size(), 1);
        EXPECT_LE(window.size(), max_length);
        for (int i = window.begin; i < window.end; ++i) ++targets[{window.user, i + 1}];
      }
      EXPECT_TRUE(batch.size() == 1 || longest * static_cast<int64_t>(batch.size()) <= 32);
    }
    for (size_t user = 0; user < data->users.size(); ++user) {
      for (int i = 1; i < data->users[user].train_size(); ++i) {
        EXPECT_EQ((targets[{static_cast<int>(user), i}]), 1);
        targets.erase({static_cast<int>(user), i});
      }
    }
    EXPECT_TRUE(targets.empty());
  }
}

TEST(Windows, GapsAreClamped) {
  const Dataset data = OneUser({1, 2, 3, 4}, {100, 50, 60, 9000});
  EXPECT_EQ(GapBefore(data.users[0], 0, 1000), 0);
  EXPECT_EQ(GapBefore(data.users[0], 1, 1000), 0);
  EXPECT_EQ(GapBefore(data.users[0], 2, 1000), 10);
  EXPECT_EQ(GapBefore(data.users[0], 3, 1000), 1000);
}

TEST(Windows, TimeConstantsStandardiseTheTrainingGaps) {
  const Dataset data = OneUser({1, 2, 3, 4, 5, 6}, {0, 1000, 1000, 61'000, 1'000'000, 99'000'000});
  const TimeConstants time = FitTimeConstants(data);
  EXPECT_EQ(time.tau0_ms, 1000);
  EXPECT_EQ(time.max_gap_ms, 86'400'000);  // at least a day
  double sum = 0, squares = 0;
  for (const double gap : {1000.0, 0.0, 60'000.0}) {
    const double u = (std::log1p(gap / time.tau0_ms) - time.mean) / time.stddev;
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum, 0, 1e-9);
  EXPECT_NEAR(squares / 3, 1, 1e-9);
}

TEST(Windows, TimeConstantsOfGaplessDataAreUsable) {
  const TimeConstants time = FitTimeConstants(OneUser({1, 2, 3, 4}, {7, 7, 7, 7}));
  EXPECT_EQ(time.stddev, 1);
  EXPECT_GT(time.tau0_ms, 0);
}

}  // namespace
}  // namespace tim4rec
