// The pipeline over the cuda backend, on a device that fails at any call: callers notice nothing.
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "model/backends/builtin.h"
#include "model/backends/cuda/cuda_backend.h"
#include "server/pipeline/model_swap.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;
using cuda::ScalarDevice;
using testing::Each;
using testing::ElementsAre;

class DeviceLoss : public PipelineTest {
 protected:
  ~DeviceLoss() override {
    pipeline_.reset();  // before the script goes
    models_.reset();
    engine_.reset();
  }

  // Devices speak to it until the models go.
  DeviceScript& NewScript() { return *scripts_.emplace_back(std::make_unique<DeviceScript>()); }

  // A model on a device of its own, of which the script says when it fails.
  static ModelHandle OnDevice(const std::string& name, uint64_t seed, DeviceScript* script) {
    auto model = std::make_shared<LoadedModel>();
    model->package = *ModelPackage::FromContents(MakeTinyModel(seed));
    model->version = absl::StrCat(name, "@", model->package->fingerprint());
    BackendRegistry registry;
    registry.factories["cuda"] = [script](auto package) {
      CudaOptions options = cuda::SmallOptions();
      options.state_chunk_bytes = 64 << 10;
      return CreateCudaBackendOn(std::make_unique<ScalarDevice>(script), package, options);
    };
    auto engine = Engine::Create(model->package, registry, "cuda");
    EXPECT_TRUE(engine.ok()) << engine.status();
    model->engine = *std::move(engine);
    return model;
  }

  // The model of the fixture, whose engine_ stays that of the cpu.
  void ServeOn(DeviceScript* script) {
    pipeline_.reset();
    models_ = std::make_unique<Models>(OnDevice("m", 7, script));
    Start();
  }

  // Likewise, with somebody who wants to know of a loss.
  void TellOf(DeviceScript* script, int* told) {
    pipeline_.reset();
    models_ = std::make_unique<Models>(OnDevice("m", 7, script));
    pipeline_ = std::make_unique<Pipeline>(
        options_, PipelineDeps{models_.get(), log_.get(), store_.get(),
                               [this](std::string_view user) { return store_->DeleteUser(user); },
                               [this](std::string_view user) { return store_->PurgeDeleted(user); },
                               &metrics_, nullptr, [told] { ++*told; }});
  }

  const Backend& backend() const { return models_->serving()->engine->backend(); }

  RecommendCommand Expected(const std::vector<Event>& events) const {
    std::vector<FoldEvent> fold;
    for (const Event& event : events) {
      fold.push_back({*engine_->catalog().Find(event.item_id), event.timestamp_ms});
    }
    Backend& cpu = engine_->backend();
    const Slot slot = *cpu.Allocate();
    const ::tim4rec::Run run = {slot, fold};
    EXPECT_TRUE(cpu.Advance({&run, 1}).ok());
    std::vector<float> query(16);
    const QueryRequest at = {slot, kNow};
    EXPECT_TRUE(cpu.Query({&at, 1}, query).ok());
    cpu.Release(slot);
    std::vector<int32_t> seen;
    for (const FoldEvent& event : fold) seen.push_back(event.item);
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    TopKRequest request;
    request.query = query;
    request.excluded = seen;
    std::vector<std::vector<ScoredItem>> results;
    EXPECT_TRUE(engine_->TopK({&request, 1}, {&at, 1}, &results).ok());
    RecommendCommand expected;
    expected.items = results[0];
    return expected;
  }

  Event At(int64_t second, int64_t item) const {
    return {absl::StrCat("item", 1 + item % 60), kNow - 1'000'000 + 1000 * second, ""};
  }

 private:
  std::vector<std::unique_ptr<DeviceScript>> scripts_;
};

// One batch after the other of every kind of request, and the checkpoints between them.
TEST_F(DeviceLoss, AtEveryCallNobodyNoticesAndNothingIsLost) {
  int64_t lost = 0;
  int64_t run = 0;
  options_.max_resident_users = 6;  // of 8: evictions, and loads of checkpoints
  for (int call = 0; call < DeviceScript::kLoadBulk; ++call) {
    if (call == DeviceScript::kLoadModel || call == DeviceScript::kAllocateHost) continue;
    bool reached = true;
    for (int64_t at = 0; reached && at < 100; at += 1 + at) {
      SCOPED_TRACE(absl::StrCat(DeviceScript::NameOf(call), " ", at));
      DeviceScript& script = NewScript();
      options_.checkpoint_interval = absl::Milliseconds(run % 2);  // or on eviction alone
      ServeOn(&script);
      const auto kind = static_cast<DeviceScript::Call>(call);
      const int64_t before = script.count(kind);
      script.FailFrom(kind, at);
      std::vector<std::string> users;
      for (int u = 0; u < 8; ++u) users.push_back(absl::StrCat("r", run, "u", u));
      std::vector<std::vector<Event>> events(users.size());
      for (int64_t step = 0; step < 4; ++step) {
        const auto release = Block();
        std::vector<std::unique_ptr<TestJob>> jobs;
        for (size_t u = 0; u < users.size(); ++u) {
          std::vector<Event> next = {At(10 * step, step + static_cast<int64_t>(u))};
          if (step == 1) next.push_back(At(10 * step + 1, step + 7));
          events[u].insert(events[u].end(), next.begin(), next.end());
          auto job = NewRecord(users[u], next);
          job->recommend.emplace();
          jobs.push_back(Submit(std::move(job)));
        }
        auto history = std::make_unique<TestJob>();
        history->history = events[0];
        history->recommend.emplace();
        history = Submit(std::move(history));
        auto verify = std::make_unique<TestJob>();
        verify->user_id = users[1];
        verify->verify_user.emplace();
        verify = Submit(std::move(verify));
        // The state as it was after the first event.
        auto past = Submit(NewRecommend(users[2], events[2][0].timestamp_ms));
        release();
        for (size_t u = 0; u < users.size(); ++u) {
          ASSERT_TRUE(jobs[u]->Wait().status.ok()) << jobs[u]->status;
          EXPECT_THAT(jobs[u]->record->outcomes, Each(EventOutcome::kApplied));
          EXPECT_EQ(jobs[u]->record->state_version, events[u].size());
          EXPECT_EQ(jobs[u]->recommend->event_count, events[u].size());
          EXPECT_TRUE(SameItems(jobs[u]->recommend->items, Expected(events[u]).items));
        }
        ASSERT_TRUE(history->Wait().status.ok()) << history->status;
        EXPECT_TRUE(SameItems(history->recommend->items, Expected(events[0]).items));
        ASSERT_TRUE(past->Wait().status.ok()) << past->status;
        EXPECT_EQ(past->recommend->event_count, 1u);
        ASSERT_TRUE(verify->Wait().status.ok()) << verify->status;
        EXPECT_EQ(verify->verify_user->difference, "");
      }
      reached = script.count(kind) - before > at;
      ASSERT_TRUE(pipeline_->Drain().ok());
      lost += backend().device_stats()->lost ? 1 : 0;
      for (size_t u = 0; u < users.size(); ++u) {
        // What was not written before the device went, the log rebuilds.
        const auto stored = store_->Get(users[u], engine_->fingerprint());
        ASSERT_TRUE(stored.ok());
        if (*stored && (*stored)->lineage.event_count == events[u].size()) {
          EXPECT_EQ((*stored)->payload, Folded(events[u]));
        } else {
          EXPECT_TRUE(backend().device_stats()->lost) << users[u];
        }
      }
      ++run;
    }
  }
  EXPECT_GT(lost, 25);
  EXPECT_GT(metrics_.states_recovered->Value(), 50);
}

TEST_F(DeviceLoss, RebuildsFromTheCheckpointAndGoesOnInMainMemory) {
  DeviceScript& script = NewScript();
  ServeOn(&script);
  Record("u", {At(1, 1), At(2, 2)});
  Record("v", {At(1, 3)});
  EXPECT_EQ(backend().device_stats()->slots_used, 2);
  EXPECT_EQ(Recommend("u").tier, Tier::kHot);
  script.FailFrom(DeviceScript::kFold, 0);
  EXPECT_THAT(Record("u", {At(3, 3)}), ElementsAre(EventOutcome::kApplied));
  EXPECT_EQ(metrics_.states_recovered->Value(), 1);
  EXPECT_EQ(Recommend("u").tier, Tier::kHot);  // again
  // Who was on the device too and comes later is found to be lost then.
  EXPECT_EQ(Recommend("v").tier, Tier::kRebuilt);
  EXPECT_EQ(Recommend("v").tier, Tier::kHot);
  EXPECT_EQ(metrics_.states_recovered->Value(), 2);
  EXPECT_EQ(backend().device_stats()->overflow_slots, 2);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, 1), At(2, 2), At(3, 3)}));
  EXPECT_EQ(Stored("v"), Folded({At(1, 3)}));
}

TEST_F(DeviceLoss, ALogThatCannotBeReadThenFailsItsUserAndComesBack) {
  DeviceScript& script = NewScript();
  ServeOn(&script);
  Record("u", {At(1, 1)});
  script.FailFrom(DeviceScript::kWait, 0);
  log_->read_error = absl::UnavailableError("the disk is away");
  const auto failed = Submit(NewRecord("u", {At(2, 2)}));
  EXPECT_EQ(failed->Wait().status.code(), absl::StatusCode::kUnavailable);
  log_->read_error = absl::OkStatus();
  EXPECT_TRUE(SameItems(Recommend("u").items, Expected({At(1, 1), At(2, 2)}).items));
}

TEST_F(DeviceLoss, APromotionGoesOn) {
  for (const auto call : {DeviceScript::kFold, DeviceScript::kCopyRecords}) {
    DeviceScript &script = NewScript(), &next_script = NewScript();
    ServeOn(&script);
    std::vector<std::string> users;
    for (int u = 0; u < 20; ++u) {
      users.push_back(absl::StrCat(DeviceScript::NameOf(call), u));
      Record(users.back(), {At(1, u), At(2, u + 1), At(3, u + 2)});
    }
    const ModelHandle next = OnDevice("n", 8, &next_script);
    ASSERT_TRUE(models_->Add(next).ok());
    next_script.FailFrom(call, 3);
    const absl::Status refolded = pipeline_->Refold(models_->serving(), next, [] { return false; });
    EXPECT_TRUE(refolded.ok()) << refolded;
    EXPECT_TRUE(next->engine->backend().device_stats()->lost);
    models_->SetServing(next);
    for (const std::string& user : users) {
      const auto job = Submit(NewRecommend(user));
      ASSERT_TRUE(job->Wait().status.ok()) << job->status;
      EXPECT_EQ(job->recommend->event_count, 3u);
    }
    pipeline_.reset();
    models_.reset();
  }
}

TEST_F(DeviceLoss, TellsWhoWantsToKnow) {
  DeviceScript& script = NewScript();
  int told = 0;
  TellOf(&script, &told);
  Record("u", {At(1, 1)});
  EXPECT_EQ(told, 0);
  script.FailFrom(DeviceScript::kQuery, 0);
  Recommend("u");
  EXPECT_EQ(told, 1);
  Recommend("u");
  EXPECT_EQ(told, 1);
}

// A ranking needs no state, and is done by the CPU: who comes next finds that his is lost.
TEST_F(DeviceLoss, InARankingIsToldByTheNextUser) {
  DeviceScript& script = NewScript();
  int told = 0;
  TellOf(&script, &told);
  Record("u", {At(1, 1)});
  script.FailFrom(DeviceScript::kRank, 0);
  EXPECT_TRUE(SameItems(Recommend("u").items, Expected({At(1, 1)}).items));
  EXPECT_EQ(told, 0);
  EXPECT_TRUE(SameItems(Recommend("u").items, Expected({At(1, 1)}).items));
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace tim4rec
