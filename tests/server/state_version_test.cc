// Reading one's own writes, verifying a user, and purging one.
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

class StateVersions : public PipelineTest {
 protected:
  StateVersions() {
    options_.clock = absl::Now;
    Start();
  }

  std::unique_ptr<TestJob> Ask(const std::string& user, uint64_t version, absl::Duration timeout) {
    auto job = NewRecommend(user);
    job->recommend->min_state_version = version;
    job->deadline = absl::Now() + timeout;
    return Submit(std::move(job));
  }
};

TEST_F(StateVersions, AReaderWaitsForTheVersionWhileOthersGoOn) {
  Record("u", {At(1, "item1")});
  auto second = Ask("u", 2, absl::Seconds(60));
  auto third = Ask("u", 3, absl::Seconds(60));
  auto stranger = Ask("v", 1, absl::Seconds(60));
  EXPECT_EQ(Recommend("u").state_version, 1u);  // behind the waiting ones in the queue
  Record("u", {At(2, "item2")});
  ASSERT_TRUE(second->Wait().status.ok()) << second->status;
  EXPECT_EQ(second->recommend->state_version, 2u);
  Record("v", {At(5, "item5")});
  ASSERT_TRUE(stranger->Wait().status.ok()) << stranger->status;
  Record("u", {At(3, "item3"), At(4, "item4")});
  ASSERT_TRUE(third->Wait().status.ok()) << third->status;
  EXPECT_EQ(third->recommend->state_version, 4u);
  EXPECT_TRUE(SameItems(third->recommend->items, Recommend("u").items));
}

TEST_F(StateVersions, AVersionThatIsNotReachedFailsBeforeTheDeadline) {
  Record("u", {At(1, "item1")});
  auto job = Ask("u", 2, absl::Milliseconds(200));
  job->Wait();
  EXPECT_EQ(job->status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(job->status.message()), HasSubstr("2 is not reached, the user is at 1"));
}

TEST_F(StateVersions, WhatCannotWaitFailsAtOnce) {
  auto no_deadline = NewRecommend("u");
  no_deadline->recommend->min_state_version = 1;
  no_deadline = Submit(std::move(no_deadline));
  EXPECT_EQ(no_deadline->Wait().status.code(), absl::StatusCode::kFailedPrecondition);
  auto with_record = NewRecord("u", {At(1, "item1")});
  with_record->recommend.emplace().min_state_version = 2;
  with_record->deadline = absl::Now() + absl::Seconds(60);
  with_record = Submit(std::move(with_record));
  EXPECT_EQ(with_record->Wait().status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetUser("u").lineage.event_count, 1u);
}

TEST_F(StateVersions, CancelledAndDrainedReadersAreAnswered) {
  auto cancelled = Ask("u", 1, absl::Seconds(60));
  auto drained = Ask("v", 1, absl::Seconds(60));
  Recommend("w");  // both wait
  cancelled->cancelled = true;
  Recommend("w");
  EXPECT_EQ(cancelled->Wait().status.code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(drained->Wait().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(StateVersions, WaitingReadersAreBounded) {
  options_.queue_rows = 4;
  options_.max_batch = 1;  // a fuller batch counts as more who may wait
  Start();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int i = 0; i < 8; ++i) {
    jobs.push_back(Ask("u", 1, absl::Seconds(60)));
    Recommend("w");
  }
  // Beyond the limit nobody waits.
  EXPECT_EQ(jobs.back()->Wait().status.code(), absl::StatusCode::kFailedPrecondition);
  Record("u", {At(1, "item1")});
  EXPECT_TRUE(jobs.front()->Wait().status.ok());
  for (size_t i = 1; i + 1 < jobs.size(); ++i) jobs[i]->Wait();
}

class Verifies : public PipelineTest {
 protected:
  VerifyUserCommand Verify(const std::string& user) {
    auto job = std::make_unique<TestJob>();
    job->user_id = user;
    job->verify_user.emplace();
    job = Submit(std::move(job));
    job->Wait();
    EXPECT_TRUE(job->status.ok()) << job->status;
    return *job->verify_user;
  }
};

TEST_F(Verifies, SoundStatesAreEqual) {
  std::mt19937_64 random = PrintedRandom();
  options_.late_policy = LatePolicy::kAppend;
  Start();
  EXPECT_EQ(Verify("u").event_count, 0u);
  std::vector<Event> events = RandomEvents(30, &random);
  std::shuffle(events.begin(), events.end(), random);
  for (const Event& event : events) Record("u", {event});
  VerifyUserCommand verified = Verify("u");
  EXPECT_EQ(verified.event_count, GetUser("u").lineage.event_count);
  EXPECT_TRUE(verified.resident_compared && verified.resident_equal);
  EXPECT_FALSE(verified.checkpoint_compared);
  Start();  // writes the checkpoint, drops the resident state
  verified = Verify("u");
  EXPECT_FALSE(verified.resident_compared);
  EXPECT_TRUE(verified.checkpoint_compared && verified.checkpoint_equal);
  Recommend("u");
  Record("u", {At(kNow, "item1")});  // now the checkpoint has a tail
  verified = Verify("u");
  EXPECT_TRUE(verified.resident_equal && verified.checkpoint_equal);
  EXPECT_EQ(verified.difference, "");
}

TEST_F(Verifies, TheFirstDifferenceIsNamed) {
  Record("u", {At(1, "item1"), At(2, "item2")});
  pipeline_.reset();
  StateRecord record = **store_->Get("u", engine_->fingerprint());
  const StateLayout layout = StateLayout::Of(engine_->config());
  const size_t byte = StateLayout::kHeaderBytes + 4 * (layout.layer_floats + layout.conv_offset);
  record.payload[byte] = static_cast<char>(record.payload[byte] ^ 2);
  const UserState put[] = {{"u", engine_->fingerprint(), &record}};
  ASSERT_TRUE(store_->Put(put).ok());
  Start();
  VerifyUserCommand verified = Verify("u");
  EXPECT_TRUE(verified.checkpoint_compared);
  EXPECT_FALSE(verified.checkpoint_equal);
  EXPECT_THAT(verified.difference, StartsWith("checkpoint: layer 1 conv[0,0]: "));
  Recommend("u");  // its envelope is sound, so it is believed
  verified = Verify("u");
  EXPECT_TRUE(verified.resident_compared);
  EXPECT_FALSE(verified.resident_equal);
  EXPECT_THAT(verified.difference, StartsWith("resident: layer 1 conv[0,0]: "));
}

TEST_F(Verifies, AResidentStateThatMissedAnEventIsNamed) {
  Record("u", {At(1, "item1")});
  const Event behind_its_back[] = {At(2, "item2")};
  const UserEvents batch[] = {{"u", behind_its_back}};
  ASSERT_TRUE(store_->Append(batch, Durability::kBuffered).ok());
  const VerifyUserCommand verified = Verify("u");
  EXPECT_FALSE(verified.resident_equal);
  EXPECT_THAT(verified.difference, StartsWith("resident: lineage: covers 1 events, the log has 2"));
}

TEST_F(Verifies, APurgedUserIsAnsweredAfterThePurge) {
  Record("u", {At(1, "item1"), At(2, "item2")});
  Record("v", {At(1, "item1")});
  auto job = std::make_unique<TestJob>();
  job->user_id = "u";
  job->delete_user.emplace().purge = true;
  job = Submit(std::move(job));
  job->Wait();
  ASSERT_TRUE(job->status.ok()) << job->status;
  EXPECT_EQ(job->delete_user->removed.events, 2u);
  EXPECT_EQ(GetUser("u").lineage.event_count, 0u);
  EXPECT_EQ(GetUser("v").lineage.event_count, 1u);
  Record("u", {At(3, "item3")});
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(3, "item3")}));
}

}  // namespace
}  // namespace tim4rec
