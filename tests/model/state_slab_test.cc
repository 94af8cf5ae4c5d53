// Slots of a slab under threads that take and give back at random.
#include "model/backends/cpu/state_slab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace tim4rec {
namespace {

constexpr int64_t kRecordBytes = 40'000;  // 52 to a chunk
constexpr size_t kRecord = size_t{kRecordBytes};

bool AllBytes(const std::byte* record, std::byte value) {
  return std::all_of(record, record + kRecord, [value](std::byte b) { return b == value; });
}

// Returns how many records were not zero when given, or not as this thread left them.
int Churn(StateSlab* slab, int thread, unsigned seed) {
  std::mt19937 random(seed);
  const auto mark = static_cast<std::byte>(thread + 1);
  std::vector<int32_t> held;
  int wrong = 0;
  for (int i = 0; i < 3000; ++i) {
    if (held.size() < 150 && random() % 5 < 3) {
      const absl::StatusOr<int32_t> slot = slab->Allocate();
      if (!slot.ok() || !slab->Contains(*slot) || !AllBytes(slab->record(*slot), std::byte{0})) {
        ++wrong;
        continue;
      }
      std::memset(slab->record(*slot), std::to_integer<int>(mark), kRecord);
      held.push_back(*slot);
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      wrong += AllBytes(slab->record(held.back()), mark) ? 0 : 1;
      slab->Release(held.back());
      held.pop_back();
    }
  }
  return wrong;
}

TEST(StateSlab, GivesEachSlotToOneThreadAndZeroed) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  StateSlab slab(kRecordBytes);
  constexpr int kThreads = 4;
  std::vector<int> wrong(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] { wrong[t] = Churn(&slab, t, seed + static_cast<unsigned>(t)); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(kThreads, 0));
}

TEST(StateSlab, KeepsFewChunksAhead) {
  StateSlab slab(kRecordBytes);
  std::vector<int32_t> slots;
  for (int i = 0; i < 500; ++i) slots.push_back(slab.Allocate().value());
  std::sort(slots.begin(), slots.end());
  EXPECT_EQ(std::adjacent_find(slots.begin(), slots.end()), slots.end());
  EXPECT_LT(slots.back(), 500 + 3 * 52);
}

}  // namespace
}  // namespace tim4rec
