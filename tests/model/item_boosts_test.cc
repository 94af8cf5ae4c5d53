#include "model/engine/item_boosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <random>
#include <thread>

#include "tests/model/plain_trend.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

constexpr int64_t kDayMs = 86'400'000;
constexpr int64_t kLastDay = 130;  // of the package's trend

std::shared_ptr<const ModelPackage> Package(bool trend = true) {
  PackageContents contents = MakeTinyModel(3);
  contents.probe.clear();
  if (trend) contents.trend = RandomTrend(61, 100, kLastDay, 3);
  return *ModelPackage::FromContents(std::move(contents));
}

std::mt19937_64 PrintedRandom() {
  uint64_t seed = std::random_device()();
  if (const char* text = std::getenv("TIM4REC_TEST_SEED")) seed = std::strtoull(text, nullptr, 10);
  std::cout << "TIM4REC_TEST_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

std::string Id(int32_t item) { return "item" + std::to_string(item); }

TEST(ItemBoosts, AreThoseOfTheDefinitionWhateverComesInWhichOrder) {
  std::mt19937_64 random = PrintedRandom();
  const auto package = Package();
  for (const double share : {1.0, 0.25}) {
    ItemBoosts boosts(package);
    boosts.SetUserShare(share);
    RecordedEvents recorded;
    int64_t newest = kLastDay - 5, first_day = 0;
    for (int step = 0; step < 3000; ++step) {
      const auto item = static_cast<int32_t>(1 + random() % 60);
      newest += random() % 10 == 0;
      const int64_t day = newest - static_cast<int64_t>(random() % (random() % 4 == 0 ? 200 : 2));
      int64_t& events = recorded[{day, Id(item)}];
      const int64_t change = events > 0 && random() % 3 == 0 ? -1 : 1;
      events += change;
      first_day = std::max(first_day, newest - 180);
      const ItemUseChange changes[] = {{item, day, change}};
      boosts.Add(changes, first_day);
      // A day that is kept, one that is not, one long ago, one to come.
      const int64_t asked =
          newest + 2 - static_cast<int64_t>(random() % (step % 50 == 0 ? 300 : 4));
      if (random() % 2 == 0) {
        const int64_t as_of = asked * kDayMs + 77;
        ASSERT_EQ(*boosts.At(as_of), PlainBoost(*package, recorded, first_day, share, as_of))
            << "step " << step << " day " << asked;
      }
    }
  }
}

TEST(ItemBoosts, RecordedUseOfThePackagesOwnDaysIsLeftOut) {
  const auto package = Package();
  ItemBoosts boosts(package);
  const ItemBoost before = boosts.At(131 * kDayMs);
  const ItemUseChange known[] = {{1, kLastDay, 1000}, {1, kLastDay - 1, 1000}};
  boosts.Add(known, 0);
  EXPECT_EQ(*boosts.At(131 * kDayMs), *before);
  const ItemUseChange next[] = {{1, kLastDay + 1, 1000}};
  boosts.Add(next, 0);
  EXPECT_EQ(*boosts.At(131 * kDayMs), *before) << "the day itself does not count";
  EXPECT_GT((*boosts.At(132 * kDayMs))[1], 1.5F * 6);
}

TEST(ItemBoosts, BeginAndSwapReplaceAllAtOnce) {
  const auto package = Package();
  ItemBoosts boosts(package);
  const ItemUseChange old[] = {{1, 140, 5}, {2, 140, 5}};
  boosts.Add(old, 0);
  const ItemBoost before = boosts.At(150 * kDayMs);
  boosts.Begin();
  const ItemUseChange fresh[] = {{2, 140, 7}, {3, 135, 1}};
  boosts.Add(fresh, 0);
  EXPECT_EQ(*boosts.At(150 * kDayMs), *before);
  boosts.Swap();
  EXPECT_EQ(*boosts.At(150 * kDayMs),
            PlainBoost(*package, {{{140, "item2"}, 7}, {{135, "item3"}, 1}}, 0, 1, 150 * kDayMs));
}

TEST(ItemBoosts, WithoutATrendThereIsNone) { EXPECT_EQ(ItemBoosts(Package(false)).At(0), nullptr); }

// Whoever holds a boost keeps what it was.
TEST(ItemBoosts, AreReadWhileOthersAdd) {
  const auto package = Package();
  ItemBoosts boosts(package);
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 2000; ++n) {
        const ItemUseChange changes[] = {{1 + t, 140 + n % 3, 1}, {3, 141, 1}};
        boosts.Add(changes, 0);
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) {
      const ItemBoost held = boosts.At(142 * kDayMs);
      const std::vector<float> copy = *held;
      std::this_thread::yield();
      EXPECT_EQ(*held, copy);
    }
  });
  threads[0].join();
  threads[1].join();
  stop = true;
  threads[2].join();
  RecordedEvents recorded = {{{141, "item3"}, 4000}};
  for (int n = 0; n < 2000; ++n) {
    for (const char* item : {"item1", "item2"}) ++recorded[{140 + n % 3, item}];
  }
  EXPECT_EQ(*boosts.At(142 * kDayMs), PlainBoost(*package, recorded, 0, 1, 142 * kDayMs));
}

}  // namespace
}  // namespace tim4rec
