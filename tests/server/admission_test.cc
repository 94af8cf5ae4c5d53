// Which of two lanes a worker serves, and what it does not make wait.
#include <algorithm>
#include <atomic>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using Admission = PipelineTest;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

TEST_F(Admission, SingleCallsAreServedBeforeStreams) {
  constexpr int kBulk = 400;
  options_.max_batch = 4;
  Start();
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  std::vector<bool> order;  // of the worker's thread: whether it was bulk
  for (int i = 0; i < kBulk + 20; ++i) {
    auto job = NewRecord(absl::StrCat("u", i), {At(1, "item1")});
    job->bulk = i < kBulk;
    job->on_complete = [&order, bulk = job->bulk] { order.push_back(bulk); };
    jobs.push_back(Submit(std::move(job)));
  }
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
  // A stream gets its slice after each 20 ms: on a slow machine before each batch of single calls.
  int bulk_before_last_single = 0;
  const auto last_single = std::find(order.rbegin(), order.rend(), false);
  for (auto it = last_single; it != order.rend(); ++it) bulk_before_last_single += *it;
  EXPECT_LE(bulk_before_last_single, kBulk / 2);
}

TEST_F(Admission, StreamsGoOnWhileSingleCallsNeverEnd) {
  constexpr int kBulk = 200;
  options_.max_batch = 8;
  Start();
  // Each single call that completes brings the next: there is always one that waits.
  std::atomic<bool> stop = false;
  std::atomic<int> singles = 0;
  std::atomic<int> open = 0;
  std::vector<std::unique_ptr<TestJob>> chain[4];
  std::function<void(int)> next = [&](int c) {
    auto job = NewRecommend(absl::StrCat("online", c));
    job->on_complete = [&, c] {
      ++singles;
      if (stop) {
        --open;
      } else {
        next(c);
      }
    };
    chain[c].push_back(std::move(job));
    EXPECT_TRUE(pipeline_->Submit(chain[c].back().get()).ok());
  };
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int c = 0; c < 4; ++c) {
    ++open;
    next(c);
  }
  for (int i = 0; i < kBulk; ++i) {
    auto job = NewRecord(absl::StrCat("u", i), {At(1, "item1")});
    job->bulk = true;
    jobs.push_back(Submit(std::move(job)));
  }
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
  stop = true;
  while (open > 0) absl::SleepFor(absl::Milliseconds(1));
  // They shared the worker all the time.
  EXPECT_GT(singles, 4);
  ASSERT_TRUE(pipeline_->Drain().ok());
}

TEST_F(Admission, ALoneCallWaitsForNoTimer) {
  // Nothing that waits by the clock may be in the way: one call after the other, each alone, with
  // the longest of all intervals.
  options_.checkpoint_interval = absl::Hours(1);
  options_.queue_delay = absl::Hours(1);
  options_.max_batch = 65536;
  Start();
  const absl::Time start = absl::Now();
  for (int i = 0; i < 200; ++i) {
    Record("u", {At(i, "item1")});
    Recommend("u");
  }
  // An hour each if one waited for anything; batches of one if none waited for another.
  EXPECT_LT(absl::Now() - start, absl::Minutes(30));
  EXPECT_EQ(metrics_.lookups_hot->Value() + metrics_.lookups_rebuilt->Value(), 400);
}

TEST_F(Admission, AWorkerWithoutAPauseTakesNoMoreThanItCanDoInTime) {
  constexpr int kBurst = 150;
  options_.queue_delay = absl::Milliseconds(20);
  options_.max_batch = 1;
  Start();
  // Every job takes 2 ms and brings, once some are measured, the next, until one is refused: the
  // worker has no pause.
  int done = 0;
  std::vector<std::unique_ptr<TestJob>> jobs;  // first by this thread, then by the worker's
  std::atomic<int> open = 0;
  absl::Status refused;
  absl::Duration retry_after;
  std::function<void()> next = [&] {
    jobs.push_back(NewRecommend(absl::StrCat("u", jobs.size())));
    jobs.back()->on_complete = [&] {
      absl::SleepFor(absl::Milliseconds(2));
      if (refused.ok() && ++done > 20) next();
      --open;
    };
    ++open;
    if (absl::Status status = pipeline_->Submit(jobs.back().get()); !status.ok()) {
      refused = status;
      retry_after = jobs.back()->retry_after;
      --open;
    }
  };
  const auto release = Block();
  for (int i = 0; i < kBurst; ++i) next();  // which is taken as a whole
  ASSERT_TRUE(refused.ok()) << refused;
  release();
  while (open > 0) absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 1);
  // It had some 130 others to do, of at least 2 ms each, and some 10 of them within its time.
  EXPECT_GE(retry_after, absl::Milliseconds(100));
  for (size_t i = 0; i + 1 < jobs.size(); ++i) EXPECT_TRUE(jobs[i]->status.ok());
}

TEST_F(Admission, AMomentWithoutCallsDoesNotOpenTheQueue) {
  options_.queue_delay = absl::Milliseconds(20);
  options_.max_batch = 1;
  Start();
  const auto slow = [&](int i) {
    auto job = NewRecommend(absl::StrCat("u", i));
    job->on_complete = [] { absl::SleepFor(absl::Milliseconds(2)); };
    return job;
  };
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(Submit(slow(i))->Wait().status.ok());
  // The pauses between those calls were moments, this one may be long if the machine is slow: then
  // as much work as fits into 20 ms and 100 ms is taken, at 2 ms each at least.
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> taken;
  for (int i = 0; i < 1000; ++i) {
    auto job = slow(i);
    if (pipeline_->Submit(job.get()).ok()) taken.push_back(std::move(job));
  }
  EXPECT_GE(taken.size(), 1u);
  EXPECT_LE(taken.size(), 60u);
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 1000 - static_cast<double>(taken.size()));
  release();
  for (auto& job : taken) EXPECT_TRUE(job->Wait().status.ok());
}

}  // namespace
}  // namespace tim4rec
