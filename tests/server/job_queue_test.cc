#include "server/pipeline/job_queue.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/pipeline/batch_times.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Refusal = JobQueue::Refusal;

constexpr int64_t kAll = INT64_MAX;

class JobQueues : public testing::Test {
 protected:
  Job* New(const std::string& user, int64_t events = 1, uint64_t client = 0, bool bulk = false) {
    jobs_.push_back(std::make_unique<TestJob>());
    Job* job = jobs_.back().get();
    job->user_id = user;
    job->record.emplace().events.resize(events);
    job->client = client;
    job->bulk = bulk;
    return job;
  }
  Refusal Push(Job* job, int64_t rows_for_now = kAll) {
    return queue_->Push(job, rows_for_now, &why_);
  }
  // How many one-row jobs of new users a client gets in.
  int Fill(uint64_t client, bool bulk = false) {
    for (int taken = 0;; ++taken) {
      const Refusal refusal = Push(New(absl::StrCat("u", jobs_.size()), 1, client, bulk));
      if (refusal != Refusal::kNone) return taken;
    }
  }

  std::vector<std::unique_ptr<TestJob>> jobs_;
  std::unique_ptr<JobQueue> queue_ =
      std::make_unique<JobQueue>(JobQueue::Limits{.rows = 100, .bytes = 1 << 20});
  absl::Status why_;
};

TEST_F(JobQueues, AreBoundedByRows) {
  EXPECT_EQ(Push(New("a", 60)), Refusal::kNone);
  EXPECT_EQ(Push(New("b", 41)), Refusal::kFull);
  EXPECT_EQ(why_.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(why_.message()), HasSubstr("60 rows of 100"));
  EXPECT_EQ(Push(New("b", 40)), Refusal::kNone);
  EXPECT_EQ(Push(New("c")), Refusal::kFull);
  std::vector<Job*> batch;
  queue_->PopOnline(1, &batch);
  EXPECT_THAT(batch, ElementsAre(jobs_[0].get()));
  EXPECT_EQ(Push(New("c", 60)), Refusal::kNone);
  // And by the rows that the caller allows, where those are fewer.
  queue_->PopOnline(1, &batch);
  EXPECT_EQ(Push(New("d"), 60), Refusal::kFull);
  EXPECT_EQ(Push(New("d"), 61), Refusal::kNone);
}

TEST_F(JobQueues, AreBoundedByBytes) {
  queue_ = std::make_unique<JobQueue>(JobQueue::Limits{.rows = 1000, .bytes = 200'000});
  const auto large = [&](const std::string& user) {
    Job* job = New(user);
    job->recommend.emplace().eligible.resize(10'000);
    return job;
  };
  EXPECT_GT(SizeOf(*large("size")).bytes, 80'000);
  EXPECT_LT(SizeOf(*large("size")).bytes, 90'000);
  EXPECT_EQ(SizeOf(*large("size")).rows, 2);
  EXPECT_EQ(Push(large("a")), Refusal::kNone);
  EXPECT_EQ(Push(large("b")), Refusal::kNone);
  EXPECT_EQ(Push(large("c")), Refusal::kFull);
  EXPECT_THAT(std::string(why_.message()), HasSubstr("bytes of 200000"));
  EXPECT_EQ(Push(New("c")), Refusal::kNone);
}

TEST_F(JobQueues, TakeWhateverFindsThemEmpty) {
  EXPECT_EQ(Push(New("a", 100'000), 1), Refusal::kNone);
  EXPECT_EQ(Push(New("b", 100'000, 0, /*bulk=*/true)), Refusal::kNone);
  EXPECT_EQ(Push(New("c"), 1), Refusal::kFull);
}

TEST_F(JobQueues, HaveALaneForStreams) {
  EXPECT_EQ(Push(New("a", 100)), Refusal::kNone);
  EXPECT_EQ(Push(New("b", 20, 0, true)), Refusal::kNone);
  EXPECT_EQ(Push(New("c", 30, 0, true), /*rows_for_now=*/1), Refusal::kNone);
  EXPECT_EQ(Push(New("d", 1, 0, true)), Refusal::kFull);  // half of 100
  std::vector<Job*> batch;
  queue_->PopBulk(10, 49, &batch);
  EXPECT_THAT(batch, ElementsAre(jobs_[1].get()));
  queue_->PopBulk(10, 1, &batch);  // the first is taken whatever its size
  EXPECT_THAT(batch, ElementsAre(jobs_[1].get(), jobs_[2].get()));
  queue_->PopOnline(10, &batch);
  EXPECT_EQ(batch.size(), 3u);
  EXPECT_TRUE(queue_->empty());
}

TEST_F(JobQueues, LeaveRoomForOtherClients) {
  EXPECT_EQ(Fill(2), 50);
  EXPECT_THAT(std::string(why_.message()),
              HasSubstr("50 rows of this client wait and 50 are free"));
  EXPECT_EQ(Fill(4), 25);
  EXPECT_EQ(Fill(6), 12);
  EXPECT_EQ(Fill(2), 0);
  // What is done makes room, first for those who hold little.
  std::vector<Job*> batch;
  queue_->PopOnline(50, &batch);
  EXPECT_EQ(Fill(8), 31);
  EXPECT_EQ(Fill(2), 16);
  // Calls of nobody are bounded by the queue alone.
  EXPECT_EQ(Fill(0), 100 - 25 - 12 - 31 - 16);
}

TEST_F(JobQueues, LeaveRoomForOtherUsers) {
  int taken = 0;
  while (Push(New("noisy", 1, 2 + 2 * static_cast<uint64_t>(taken))) == Refusal::kNone) ++taken;
  EXPECT_EQ(taken, 50);
  EXPECT_THAT(std::string(why_.message()), HasSubstr("of this user"));
  EXPECT_EQ(Push(New("other", 1, 2)), Refusal::kNone);
  std::vector<Job*> batch;
  queue_->PopOnline(50, &batch);
  EXPECT_EQ(Push(New("noisy", 49, 2)), Refusal::kNone);
}

TEST_F(JobQueues, OfAnyTrafficKeepTheirLimitsAndOrder) {
  std::mt19937_64 random = PrintedRandom();
  struct Lane {
    int64_t limit;
    std::deque<Job*> jobs = {};
    int64_t rows = 0;
    std::map<uint64_t, int64_t> by_client = {};
    std::map<std::string, int64_t> by_user = {};
  };
  Lane lanes[] = {{100}, {50}};
  int refused = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 3 > 0) {
      Job* job = New(absl::StrCat("u", random() % 10), 1 + random() % 20, 2 * (random() % 5),
                     random() % 2 == 0);
      Lane& lane = lanes[job->bulk];
      const auto rows = static_cast<int64_t>(job->record->events.size());
      const int64_t room = lane.limit - lane.rows;
      const int64_t of_client = lane.by_client[job->client];
      const int64_t of_user = lane.by_user[job->user_id];
      Refusal expected = Refusal::kNone;
      if (!lane.jobs.empty()) {
        if (rows > room) {
          expected = Refusal::kFull;
        } else if ((job->client != 0 && of_client > 0 && of_client + rows > room - rows) ||
                   (of_user > 0 && of_user + rows > room - rows)) {
          expected = Refusal::kShare;
        }
      }
      ASSERT_EQ(Push(job), expected) << step;
      refused += expected != Refusal::kNone;
      if (expected != Refusal::kNone) continue;
      lane.jobs.push_back(job);
      lane.rows += rows;
      lane.by_client[job->client] += rows;
      lane.by_user[job->user_id] += rows;
    } else {
      std::vector<Job*> batch;
      Lane& lane = lanes[step % 2];
      if (step % 2 == 1) {
        queue_->PopBulk(1 + random() % 5, 1 + random() % 40, &batch);
      } else {
        queue_->PopOnline(1 + random() % 5, &batch);
      }
      ASSERT_EQ(batch.empty(), lane.jobs.empty());
      for (Job* job : batch) {
        ASSERT_EQ(job, lane.jobs.front());
        const auto rows = static_cast<int64_t>(job->record->events.size());
        lane.jobs.pop_front();
        lane.rows -= rows;
        lane.by_client[job->client] -= rows;
        lane.by_user[job->user_id] -= rows;
      }
    }
    ASSERT_EQ(queue_->online().rows, lanes[0].rows);
    ASSERT_EQ(queue_->bulk().rows, lanes[1].rows);
  }
  EXPECT_GT(refused, 1000);
}

absl::Duration Line(double fixed_ms, double row_ms, int64_t rows) {
  return absl::Milliseconds(1) * (fixed_ms + row_ms * static_cast<double>(rows));
}

TEST(BatchTimes, FitALine) {
  BatchTimes times;
  EXPECT_EQ(times.RowsWithin(absl::Milliseconds(1), 256), BatchTimes::kUnknown);
  EXPECT_EQ(times.Estimate(5, 256), absl::ZeroDuration());
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = 1 + i * 7 % 40;
    times.Add(rows, Line(2, 0.1, rows));
  }
  // A little flatter than the line, since the fit mistrusts a small spread.
  EXPECT_NEAR(absl::ToDoubleMilliseconds(times.Estimate(40, 256)), 6, 0.2);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(times.Estimate(1, 256)), 2.1, 0.2);
  EXPECT_NEAR(static_cast<double>(times.RowsWithin(absl::Milliseconds(12), 100'000)), 100, 6);
  // In batches of 10, which take 3 ms each.
  EXPECT_NEAR(static_cast<double>(times.RowsWithin(absl::Milliseconds(12), 10)), 40, 4);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(times.Estimate(40, 10)), 12, 1);
  // Twice the fixed part at least.
  EXPECT_NEAR(static_cast<double>(times.RowsWithin(absl::Microseconds(1), 100'000)), 20, 4);
}

TEST(BatchTimes, OfEqualBatchesLimitNothingThatWasJustDone) {
  for (const int64_t rows : {1, 64}) {
    BatchTimes times;
    for (int i = 0; i < 50; ++i) times.Add(rows, absl::Milliseconds(4));
    // Four times as many at once and not more, until they are measured.
    EXPECT_NEAR(static_cast<double>(times.RowsWithin(absl::Milliseconds(7), 100'000)),
                static_cast<double>(4 * rows), 1);
    EXPECT_GE(times.RowsWithin(absl::Milliseconds(1), 256), rows);
  }
}

TEST(BatchTimes, ForgetWhatIsOver) {
  BatchTimes times;
  for (int i = 0; i < 100; ++i) times.Add(1 + i % 10, Line(0, 10, 1 + i % 10));
  const int64_t slow = times.RowsWithin(absl::Milliseconds(100), 100'000);
  EXPECT_NEAR(static_cast<double>(slow), 10, 2);
  for (int i = 0; i < 1000; ++i) times.Add(10 + i % 90, Line(0, 0.01, 10 + i % 90));
  EXPECT_GT(times.RowsWithin(absl::Milliseconds(100), 100'000), 100 * slow);
}

}  // namespace
}  // namespace tim4rec
