#include "server/app/store_watch.h"

#include <atomic>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/store/fault_fixture.h"

namespace tim4rec {
namespace {

using Store = FaultTest;

constexpr absl::Time kStart = absl::UnixEpoch();

TEST_F(Store, ThatWaitsForAMomentCountsAsWritable) {
  auto store = Open();
  // Nothing that is written reaches a table, so that writes wait when the buffers are full.
  fs_->HoldTables(true);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) {
      const auto appended = AppendTo(*store, "u", {{std::string(200, 'i'), i, ""}});
      ASSERT_TRUE(appended.ok()) << appended.status();
    }
  });
  while (!store->sizes().writes_slowed) absl::SleepFor(absl::Milliseconds(5));
  const absl::Status waits = store->CheckWritable();
  EXPECT_TRUE(RocksDbStore::IsWait(waits)) << waits;
  StoreVerdict verdict;
  EXPECT_TRUE(verdict.Note(waits, kStart).ok());
  EXPECT_TRUE(verdict.patient());
  EXPECT_TRUE(verdict.Note(waits, kStart + StoreVerdict::kPatience - absl::Milliseconds(1)).ok());
  // It ends by itself; the next one is another.
  fs_->HoldTables(false);
  stop = true;
  writer.join();
  while (!store->CheckWritable().ok()) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(verdict.Note(store->CheckWritable(), kStart + StoreVerdict::kPatience).ok());
  EXPECT_FALSE(verdict.patient());
  const absl::Time again = kStart + 2 * StoreVerdict::kPatience;
  EXPECT_TRUE(verdict.Note(waits, again).ok());
  EXPECT_TRUE(verdict.Note(waits, again + absl::Seconds(1)).ok());
  // Until it lasts.
  EXPECT_EQ(verdict.Note(waits, again + StoreVerdict::kPatience), waits);
  EXPECT_FALSE(verdict.patient());
  EXPECT_EQ(verdict.Note(waits, again + 2 * StoreVerdict::kPatience), waits);
  EXPECT_TRUE(verdict.Note(absl::OkStatus(), again + 3 * StoreVerdict::kPatience).ok());
  EXPECT_TRUE(verdict.Note(waits, again + 4 * StoreVerdict::kPatience).ok());
}

TEST_F(Store, ThatFailsCountsAtOnce) {
  auto store = Open();
  fs_->FailSyncs(true);
  const absl::Status failed = store->CheckWritable();
  EXPECT_FALSE(failed.ok());
  EXPECT_FALSE(RocksDbStore::IsWait(failed));
  StoreVerdict verdict;
  EXPECT_EQ(verdict.Note(failed, kStart), failed);
  EXPECT_FALSE(verdict.patient());
  fs_->FailSyncs(false);
}

}  // namespace
}  // namespace tim4rec
