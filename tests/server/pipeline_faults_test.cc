#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <span>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using testing::Each;
using testing::ElementsAre;

Event At(int64_t timestamp_ms, const std::string& item) { return {item, timestamp_ms, ""}; }

using PipelineFaults = PipelineTest;

TEST_F(PipelineFaults, AFullQueueRefusesAtOnce) {
  options_.queue_rows = 3;
  Start();
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (const char* user : {"u", "v", "w"}) jobs.push_back(Submit(NewRecommend(user)));
  const auto refused = NewRecommend("x");
  EXPECT_EQ(pipeline_->Submit(refused.get()).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(refused->retry_after, absl::ZeroDuration());
  EXPECT_EQ(metrics_.dropped_queue_full->Value(), 1);
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
  EXPECT_TRUE(Submit(NewRecommend("u"))->Wait().status.ok());
}

TEST_F(PipelineFaults, LateAndCancelledCallsAreDroppedBeforeTheyChangeAnything) {
  const auto release = Block();
  auto late = NewRecord("u", {At(1, "item1")});
  late->deadline = absl::FromUnixMillis(kNow - 1);
  late = Submit(std::move(late));
  auto cancelled = Submit(NewRecord("u", {At(2, "item2")}));
  cancelled->cancelled = true;
  auto in_time = NewRecord("u", {At(3, "item3")});
  in_time->deadline = absl::FromUnixMillis(kNow + 1);
  in_time = Submit(std::move(in_time));
  release();
  EXPECT_EQ(late->Wait().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(cancelled->Wait().status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(in_time->Wait().status.ok());
  EXPECT_EQ(GetUser("u").lineage.event_count, 1u);
  EXPECT_EQ(metrics_.dropped_deadline->Value(), 1);
  EXPECT_EQ(metrics_.dropped_cancelled->Value(), 1);
}

TEST_F(PipelineFaults, DrainAnswersWhatWasTakenAndRefusesTheRest) {
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int i = 0; i < 20; ++i) jobs.push_back(Submit(NewRecord("u", {At(i, "item1")})));
  std::thread drain([&] { EXPECT_TRUE(pipeline_->Drain().ok()); });
  release();
  for (auto& job : jobs) EXPECT_TRUE(job->Wait().status.ok());
  drain.join();
  const auto refused = NewRecommend("u");
  EXPECT_EQ(pipeline_->Submit(refused.get()).code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(Stored("u"), "no checkpoint");
}

TEST_F(PipelineFaults, AFailedAppendAnswersTheStoresStatusAndChangesNothing) {
  Record("u", {At(1, "item1")});
  const RecommendCommand before = Recommend("u", 5);
  log_->append_error = absl::ResourceExhaustedError("disk full");
  auto job = Submit(NewRecord("u", {At(2, "item2")}));
  EXPECT_EQ(job->Wait().status.code(), absl::StatusCode::kResourceExhausted);
  const RecommendCommand during = Recommend("u", 5);
  EXPECT_TRUE(SameItems(before.items, during.items));
  EXPECT_EQ(during.state_version, 1u);
  EXPECT_EQ(metrics_.failed_append->Value(), 1);
  log_->append_error = absl::OkStatus();
  EXPECT_THAT(Record("u", {At(2, "item2")}), ElementsAre(EventOutcome::kApplied));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2")}));
}

TEST_F(PipelineFaults, ALogThatCannotBeReadFailsItsUserOnly) {
  Record("hot", {At(1, "item1")});
  log_->read_error = absl::DataLossError("event of user cold fails its checksum");
  auto cold = Submit(NewRecommend("cold"));
  EXPECT_EQ(cold->Wait().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Recommend("hot").tier, Tier::kHot);
  // A late event needs the log too: the event is stored, and the state comes from the log later.
  auto late = Submit(NewRecord("hot", {At(0, "item2")}));
  EXPECT_EQ(late->Wait().status.code(), absl::StatusCode::kDataLoss);
  log_->read_error = absl::OkStatus();
  EXPECT_THAT(Record("hot", {At(0, "item2")}), Each(EventOutcome::kDuplicate));
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("hot"), Folded({At(0, "item2"), At(1, "item1")}));
}

TEST_F(PipelineFaults, AFailedAppendThatReachedTheDiskIsInTheStateOnceTheLogHasIt) {
  Record("u", {At(1, "item1")});
  log_->append_error = absl::UnavailableError("the sync failed");
  EXPECT_FALSE(Submit(NewRecord("u", {At(2, "item2")}))->Wait().status.ok());
  // Resident again, and without the event.
  EXPECT_EQ(Recommend("u").state_version, 1u);
  log_->append_error = absl::OkStatus();
  const std::vector<Event> reached = {At(2, "item2")};
  const UserEvents batch[] = {{"u", reached}};
  ASSERT_TRUE(store_->Append(batch, Durability::kSynced).ok());
  ++log_->extra_generations;
  EXPECT_THAT(Record("u", {At(3, "item3")}), ElementsAre(EventOutcome::kApplied));
  EXPECT_EQ(Recommend("u").state_version, 3u);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2"), At(3, "item3")}));
}

TEST_F(PipelineFaults, ADamagedEventIsInTheWayOfItsUserAlone) {
  log_->damaged_user = "damaged";
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (const char* user : {"a", "damaged", "b", "a"}) {
    jobs.push_back(Submit(NewRecord(user, {At(static_cast<int64_t>(jobs.size()), "item1")})));
  }
  release();
  EXPECT_TRUE(jobs[0]->Wait().status.ok());
  EXPECT_EQ(jobs[1]->Wait().status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(jobs[2]->Wait().status.ok());
  EXPECT_THAT(jobs[3]->Wait().record->outcomes, ElementsAre(EventOutcome::kApplied));
  EXPECT_EQ(metrics_.failed_append->Value(), 1);
  EXPECT_EQ(Recommend("a").state_version, 2u);
}

TEST_F(PipelineFaults, NothingIsStoredIfTheLogCannotSayWhatIsLate) {
  options_.late_policy = LatePolicy::kReject;
  Start();
  log_->read_error = absl::DataLossError("event of user u fails its checksum");
  EXPECT_EQ(Submit(NewRecord("u", {At(1, "item1")}))->Wait().status.code(),
            absl::StatusCode::kDataLoss);
  log_->read_error = absl::OkStatus();
  EXPECT_EQ(GetUser("u").lineage.event_count, 0u);
  EXPECT_THAT(Record("u", {At(1, "item1")}), ElementsAre(EventOutcome::kApplied));
}

TEST_F(PipelineFaults, ACheckpointThatDoesNotFitTheLogIsNotServed) {
  Record("u", {At(1, "item1"), At(2, "item2")});
  const std::vector<ScoredItem> right = Recommend("u").items;
  ASSERT_TRUE(pipeline_->Drain().ok());
  const StateRecord good = **store_->Get("u", engine_->fingerprint());
  StateRecord other_lineage = good;
  other_lineage.lineage.hash[1] ^= 1;
  StateRecord short_payload = good;
  short_payload.payload.resize(16);
  StateRecord other_count = good;
  const int64_t three = 3;
  std::memcpy(other_count.payload.data() + 8, &three, sizeof three);
  for (const StateRecord& bad : {other_lineage, short_payload, other_count}) {
    const UserState states[] = {{"u", engine_->fingerprint(), &bad}};
    ASSERT_TRUE(store_->Put(states).ok());
    Start();
    const RecommendCommand answer = Recommend("u");
    EXPECT_EQ(answer.tier, Tier::kRebuilt);
    EXPECT_TRUE(SameItems(answer.items, right));
    ASSERT_TRUE(pipeline_->Drain().ok());
    EXPECT_EQ(Stored("u"), good.payload);
  }
  EXPECT_EQ(metrics_.stale_checkpoints->Value(), 3);
}

TEST_F(PipelineFaults, OneDurableRecordSyncsItsBatch) {
  const auto release = Block();
  auto buffered = Submit(NewRecord("a", {At(1, "item1")}));
  auto durable = NewRecord("b", {At(1, "item1")});
  durable->record->durability = Durability::kSynced;
  durable = Submit(std::move(durable));
  release();
  buffered->Wait();
  durable->Wait();
  EXPECT_EQ(log_->synced_appends, 1);
  Record("a", {At(2, "item1")});
  EXPECT_EQ(log_->synced_appends, 1);
}

TEST_F(PipelineFaults, ChangedStatesAreWrittenPeriodically) {
  options_.checkpoint_interval = absl::Milliseconds(5);
  options_.checkpoint_group = 2;
  Start();
  for (int u = 0; u < 7; ++u) Record(absl::StrCat("u", u), {At(1, "item1")});
  for (int u = 0; u < 7; ++u) {
    for (int wait = 0; wait < 2000 && Stored(absl::StrCat("u", u)) == "no checkpoint"; ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(Stored(absl::StrCat("u", u)), Folded({At(1, "item1")}));
  }
}

// Takes its time, as a disk does that others use too.
class SlowStates final : public StateStore {
 public:
  explicit SlowStates(StateStore* states) : states_(states) {}
  absl::StatusOr<std::optional<StateRecord>> Get(std::string_view user_id,
                                                 std::string_view fingerprint) const override {
    return states_->Get(user_id, fingerprint);
  }
  absl::Status Put(std::span<const UserState> states) override {
    ++puts;
    absl::SleepFor(absl::Milliseconds(30));
    return states_->Put(states);
  }
  absl::StatusOr<std::optional<StateRecord>> GetBase(std::string_view user_id,
                                                     std::string_view fingerprint) const override {
    return states_->GetBase(user_id, fingerprint);
  }
  absl::Status Flush() override { return states_->Flush(); }
  absl::Status DeleteStates(std::string_view fingerprint) override {
    return states_->DeleteStates(fingerprint);
  }
  std::atomic<int> puts = 0;

 private:
  StateStore* const states_;
};

TEST_F(PipelineFaults, FewRequestsWaitForCheckpoints) {
  constexpr int kUsers = 10;
  SlowStates states(store_.get());
  options_.max_batch = 1;
  options_.checkpoint_group = 1;
  options_.checkpoint_interval = absl::Milliseconds(1);
  pipeline_ = std::make_unique<Pipeline>(
      options_, PipelineDeps{models_.get(), log_.get(), &states,
                             [this](std::string_view user) { return store_->DeleteUser(user); },
                             [this](std::string_view user) { return store_->PurgeDeleted(user); },
                             &metrics_});
  const auto release = Block();
  std::vector<std::unique_ptr<TestJob>> jobs;
  for (int u = 0; u < kUsers; ++u) {
    jobs.push_back(Submit(NewRecord(absl::StrCat("u", u), {At(1, "item1")})));
  }
  for (int i = 0; i < 50; ++i) jobs.push_back(Submit(NewRecommend("u0")));
  int puts_while_busy = 0;
  jobs.back()->on_complete = [&] { puts_while_busy = states.puts; };
  release();
  for (auto& job : jobs) job->Wait();
  // One, and a rest that is many times the length of the others.
  EXPECT_LE(puts_while_busy, kUsers / 3);
  // Without requests the others come.
  while (metrics_.checkpoints->Value() < kUsers) absl::SleepFor(absl::Milliseconds(1));
  for (int u = 0; u < kUsers; ++u) {
    EXPECT_EQ(Stored(absl::StrCat("u", u)), Folded({At(1, "item1")}));
  }
  pipeline_.reset();
}

}  // namespace
}  // namespace tim4rec
