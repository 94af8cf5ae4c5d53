// What a model adds to its items' scores, by the day of the query.
#ifndef TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_
#define TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "model/engine/recorded_use.h"
#include "model/weights/package.h"

namespace tim4rec {

using ItemBoost = std::shared_ptr<const std::vector<float>>;

// By how much the use of an item on a day has changed.
struct ItemUseChange {
  int32_t item;
  int64_t day;
  int64_t change;
};

// The trend of items: the package's counts, and those that a server adds for the days after them.
// A boost is a pure function of the package, the added counts and the day, bit for bit.
//
// Thread-safe: a lock that is held for a few instructions per query and for what a batch changes.
// A day's values are computed once, V logarithms, and kept while at most 64 MiB, or two days, are.
// Changes of days before one that is kept cost its next query a copy of it, 4 V bytes, and a
// logarithm for each item that has changed.
class ItemBoosts {
 public:
  explicit ItemBoosts(std::shared_ptr<const ModelPackage> package);

  // weight x log(1 + n) for every item, zeros after the last, as TopKRequest::boost; null if the
  // model has no trend. n is TrainedUse and, over the share of users, RecordedUse::Recent.
  ItemBoost At(int64_t as_of_ms);

  // The share of all users whose use is added, above 0, at most 1: that use stands for everybody's.
  void SetUserShare(double share);
  // Counts are added up from zero until Swap, and then replace those before.
  void Begin();
  void Swap();
  // Changes of counts, to which days before the greatest `first_day` given no longer belong.
  void Add(std::span<const ItemUseChange> changes, int64_t first_day);

 private:
  struct Day {
    int64_t day;
    size_t changes;  // how many of changes_ it has seen
    ItemBoost boost;
  };

  RecordedUse NoUse() const;
  float Boost(int32_t item, int64_t day) const;
  void Follow(Day* day) const;
  void Drop();

  const std::shared_ptr<const ModelPackage> package_;
  const size_t most_days_;
  std::mutex mutex_;  // guards all below
  double share_ = 1;
  RecordedUse use_;
  std::optional<RecordedUse> fresh_;  // between Begin and Swap
  int64_t first_day_;
  std::list<Day> days_;                                      // last used first
  int64_t last_kept_ = std::numeric_limits<int64_t>::min();  // no day of days_ lies after it
  std::vector<std::pair<int32_t, int64_t>> changes_;  // items and days that days_ may not have seen
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_ITEM_BOOSTS_H_
