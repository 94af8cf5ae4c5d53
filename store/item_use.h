// How often items are used, by day: counts of the log's events, kept beside it.
#ifndef TIM4REC_STORE_ITEM_USE_H_
#define TIM4REC_STORE_ITEM_USE_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

namespace tim4rec {

// Counts are kept for this many days before the newest on which any event ever happened.
inline constexpr int64_t kUseDays = 180;

// Days since 1970-01-01 UTC, rounded down.
int64_t UseDayOf(int64_t timestamp_ms);
// Whether events of that day are counted: those within 2^31 days of 1970 are.
bool IsUseDay(int64_t day);

struct ItemUse {
  int64_t day = 0;  // of the event's own time, also if it is folded late
  std::string_view item_id;
  int64_t events = 0;  // a count, or by how much one has changed
};

// Called until it returns false.
using UseVisitor = std::function<bool(const ItemUse& use)>;

// Follows the counts of a store (RocksDbStore::ObserveUse). Changed is called by the threads that
// write the store, several at a time; they wait for it.
class UseObserver {
 public:
  virtual ~UseObserver() = default;

  // Counting begins anew: what Changed tells between this and End, in any order and from any
  // thread, is to be added up from zero. What was told before holds until End.
  virtual void Begin() = 0;
  virtual void End() = 0;

  // Counts that changed, by how much. Days before the greatest `first_day` told no longer count.
  virtual void Changed(std::span<const ItemUse> changes, int64_t first_day) = 0;
};

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ITEM_USE_H_
