// The counts of a store, and what they are to be: those of the events in its logs.
#ifndef TIM4REC_TESTS_STORE_USE_COUNTS_H_
#define TIM4REC_TESTS_STORE_USE_COUNTS_H_

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

using UseCounts = std::map<std::pair<int64_t, std::string>, int64_t>;  // by day and item

inline UseCounts StoredUse(const RocksDbStore& store) {
  UseCounts counts;
  const absl::Status read = store.ReadUse(INT64_MIN, [&](const ItemUse& use) {
    EXPECT_TRUE(counts.empty() ||
                counts.rbegin()->first < std::pair(use.day, std::string(use.item_id)));
    counts[{use.day, std::string(use.item_id)}] = use.events;
    return true;
  });
  EXPECT_TRUE(read.ok()) << read;
  return counts;
}

// Of the days that count.
inline UseCounts LoggedUse(const RocksDbStore& store) {
  UseCounts counts;
  const absl::Status listed = store.ForEachUser("", [&](std::string_view user_id) {
    const absl::Status read = store.Read(user_id, [&](std::string_view, const Event& event) {
      const int64_t day = UseDayOf(event.timestamp_ms);
      if (IsUseDay(day) && day >= store.first_use_day()) ++counts[{day, event.item_id}];
      return true;
    });
    EXPECT_TRUE(read.ok()) << read;
    return true;
  });
  EXPECT_TRUE(listed.ok()) << listed;
  return counts;
}

// Adds up what it is told.
class CountingObserver final : public UseObserver {
 public:
  void Begin() override {
    const std::lock_guard lock(mutex_);
    fresh_.clear();
    telling_ = true;
  }
  void End() override {
    const std::lock_guard lock(mutex_);
    counts_ = std::move(fresh_);
    telling_ = false;
  }
  void Changed(std::span<const ItemUse> changes, int64_t first_day) override {
    const std::lock_guard lock(mutex_);
    UseCounts& counts = telling_ ? fresh_ : counts_;
    for (const ItemUse& change : changes) {
      counts[{change.day, std::string(change.item_id)}] += change.events;
    }
    first_day_ = std::max(first_day_, first_day);
  }
  // Without those that are 0 or too old.
  UseCounts counts() {
    const std::lock_guard lock(mutex_);
    UseCounts counts = counts_;
    std::erase_if(counts, [&](const auto& entry) {
      return entry.second == 0 || entry.first.first < first_day_;
    });
    return counts;
  }

 private:
  std::mutex mutex_;
  bool telling_ = false;
  UseCounts counts_, fresh_;
  int64_t first_day_ = INT64_MIN;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_USE_COUNTS_H_
