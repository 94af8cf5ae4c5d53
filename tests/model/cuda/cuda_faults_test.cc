// Faults of the device under the cuda backend, at every call and whatever it does then.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "model/backends/builtin.h"
#include "model/backends/cuda/cuda_backend.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;
using cuda::ScalarDevice;
using ::testing::HasSubstr;
using Record = std::vector<std::byte>;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Users kept as the server keeps them: their events are remembered, and who is lost begins anew.
class Users {
 public:
  Users(Backend* backend, Backend* cpu) : backend_(*backend), cpu_(*cpu) {}

  struct User {
    Slot slot = -1;
    std::vector<FoldEvent> events;  // all
    size_t folded = 0;              // of them, into the slot
  };

  void Come(int count) {
    for (int i = 0; i < count; ++i) {
      users_.push_back({*backend_.Allocate(), {}, 0});
      users_.back().events.push_back({1 + i % 60, 1000 * i});
    }
  }

  // A step of everything that a server does, again until it goes well.
  void Step(int64_t now_ms) {
    for (size_t i = 0; i < users_.size(); ++i) {
      users_[i].events.push_back(
          {static_cast<int32_t>(1 + (now_ms + static_cast<int64_t>(i)) % 60), now_ms});
    }
    UntilItGoesWell([&] { return Advance(); });
    UntilItGoesWell([&] { return Query(now_ms); });
    UntilItGoesWell([&] { return Move(); });
    UntilItGoesWell([&] { return ExportAll(); });
    TopK();
  }

  int rebuilt() const { return rebuilt_; }

 private:
  template <typename Work>
  void UntilItGoesWell(const Work& work) {
    absl::Status status = work();
    for (int tries = 0; IsStateLost(status) && tries < 2; ++tries) {
      Rebuild();
      status = Advance();
      if (status.ok()) status = work();
    }
    ASSERT_TRUE(status.ok()) << status;
  }

  void Rebuild() {
    for (User& user : users_) {
      if (!backend_.Lost(user.slot)) continue;
      backend_.Release(user.slot);
      user.slot = *backend_.Allocate();
      EXPECT_FALSE(backend_.Lost(user.slot));
      user.folded = 0;
      ++rebuilt_;
    }
  }

  absl::Status Advance() {
    std::vector<tim4rec::Run> runs;
    for (const User& user : users_) {
      runs.push_back({user.slot, std::span(user.events).subspan(user.folded)});
    }
    absl::Status status = backend_.Advance(runs);
    if (status.ok()) {
      for (User& user : users_) user.folded = user.events.size();
    }
    return status;
  }

  absl::Status Query(int64_t now_ms) {
    std::vector<QueryRequest> requests;
    for (const User& user : users_) requests.push_back({user.slot, now_ms});
    std::vector<float> queries(16 * users_.size());
    if (absl::Status status = backend_.Query(requests, queries); !status.ok()) return status;
    for (size_t i = 0; i < users_.size(); ++i) {
      const Slot slot = Folded(users_[i]);
      std::vector<float> expected(16);
      const QueryRequest request = {slot, now_ms};
      EXPECT_TRUE(cpu_.Query({&request, 1}, expected).ok());
      cpu_.Release(slot);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), queries.begin() + 16 * i));
    }
    return absl::OkStatus();
  }

  // As a checkpoint that is loaded: the state into a new slot.
  absl::Status Move() {
    User& user = users_.front();
    Record record(static_cast<size_t>(backend_.state_bytes()));
    if (absl::Status status = backend_.Export(user.slot, record); !status.ok()) return status;
    const Slot slot = *backend_.Allocate();
    const absl::Status status = backend_.Import(slot, record);
    if (status.ok()) {
      std::swap(user.slot, users_.front().slot);
      backend_.Release(std::exchange(user.slot, slot));
    } else {
      backend_.Release(slot);
    }
    return status;
  }

  absl::Status ExportAll() {
    std::vector<Record> records(users_.size(), Record(static_cast<size_t>(backend_.state_bytes())));
    std::vector<StateExport> exports;
    for (size_t i = 0; i < users_.size(); ++i) exports.push_back({users_[i].slot, records[i]});
    if (absl::Status status = backend_.ExportAll(exports); !status.ok()) return status;
    for (size_t i = 0; i < users_.size(); ++i) {
      const Slot slot = Folded(users_[i]);
      Record expected(records[i].size());
      EXPECT_TRUE(cpu_.Export(slot, expected).ok());
      cpu_.Release(slot);
      EXPECT_EQ(records[i], expected);
    }
    return absl::OkStatus();
  }

  // Never fails: rankings need no state.
  void TopK() {
    const std::vector<float> query(16, 0.25F);
    TopKRequest request;
    request.query = query;
    std::vector<std::vector<ScoredItem>> expected, results;
    ASSERT_TRUE(cpu_.TopK({&request, 1}, &expected).ok());
    const absl::Status status = backend_.TopK({&request, 1}, &results);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_EQ(results[0][i].item, expected[0][i].item);
      EXPECT_EQ(results[0][i].score, expected[0][i].score);
    }
  }

  Slot Folded(const User& user) {
    const Slot slot = *cpu_.Allocate();
    const tim4rec::Run run = {slot, user.events};
    EXPECT_TRUE(cpu_.Advance({&run, 1}).ok());
    return slot;
  }

  Backend& backend_;
  Backend& cpu_;
  std::vector<User> users_;
  int rebuilt_ = 0;
};

TEST(CudaFaults, AtEveryCallStatesAreRebuiltAndEveryAnswerIsRight) {
  const auto package = *ModelPackage::FromContents(MakeTinyModel(5));
  const auto cpu = *BuiltinBackends().factories.at("cpu")(package);
  for (int call = 0; call < DeviceScript::kLoadBulk; ++call) {
    if (call == DeviceScript::kLoadModel || call == DeviceScript::kAllocateHost) continue;
    bool reached = true;
    int lost = 0;
    for (int64_t at = 0; reached && at < 60; at += 1 + at / 8) {
      DeviceScript script;
      CudaOptions options = cuda::SmallOptions();
      options.state_chunk_bytes = 4 * cpu->state_bytes();
      const auto backend =
          *CreateCudaBackendOn(std::make_unique<ScalarDevice>(&script), package, options);
      const auto kind = static_cast<DeviceScript::Call>(call);
      const int64_t before = script.count(kind);
      script.FailFrom(kind, at);
      Users users(backend.get(), cpu.get());
      for (int step = 0; step < 4; ++step) {
        users.Come(3);
        users.Step(1'000'000 + 1000 * step);
        ASSERT_FALSE(HasFatalFailure()) << DeviceScript::NameOf(call) << " " << at;
      }
      reached = script.count(kind) - before > at;
      if (!reached) script.FailNoMore();  // not by what the test asks
      const std::optional<DeviceStats> stats = backend->device_stats();
      if (call == DeviceScript::kAllocate) {  // no room, and nothing is lost
        EXPECT_FALSE(stats->lost);
        EXPECT_EQ(stats->overflow_slots > 0, reached);
        continue;
      }
      EXPECT_EQ(stats->lost, reached) << DeviceScript::NameOf(call) << " " << at;
      if (!stats->lost) continue;
      ++lost;
      EXPECT_EQ(stats->fault, "an illegal memory access was encountered");
      EXPECT_EQ(stats->slots_used, 0);
      // It is left alone from then on.
      const int64_t folds = script.count(DeviceScript::kFold),
                    waits = script.count(DeviceScript::kWait);
      users.Step(2'000'000);
      EXPECT_EQ(script.count(DeviceScript::kFold), folds);
      EXPECT_EQ(script.count(DeviceScript::kWait), waits);
    }
    EXPECT_TRUE(lost > 0 || call == DeviceScript::kAllocate) << DeviceScript::NameOf(call);
  }
}

TEST(CudaFaults, ALostSlotSaysSoWhateverIsAsked) {
  const auto package = *ModelPackage::FromContents(MakeTinyModel(5));
  DeviceScript script;
  const auto backend =
      *CreateCudaBackendOn(std::make_unique<ScalarDevice>(&script), package, cuda::SmallOptions());
  const Slot slot = *backend->Allocate();
  const std::vector<FoldEvent> events = {{3, 10}};
  const tim4rec::Run run = {slot, events};
  ASSERT_TRUE(backend->Advance({&run, 1}).ok());
  EXPECT_FALSE(backend->Lost(slot));
  script.FailFrom(DeviceScript::kWait, 0);
  Record record(static_cast<size_t>(backend->state_bytes()));
  std::vector<float> query(16);
  const QueryRequest request = {slot, 20};
  for (int tries = 0; tries < 2; ++tries) {
    for (const absl::Status& status :
         {backend->Advance({&run, 1}), backend->Query({&request, 1}, query),
          backend->Export(slot, record), backend->Import(slot, record)}) {
      EXPECT_TRUE(IsStateLost(status)) << status;
      EXPECT_THAT(Message(status), HasSubstr("an illegal memory access was encountered"));
    }
  }
  EXPECT_TRUE(backend->Lost(slot));
  backend->Release(slot);
  const Slot after = *backend->Allocate();
  EXPECT_NE(after, slot);
  EXPECT_FALSE(backend->Lost(after));
  // A batch that holds a lost slot changes nothing of the others.
  const tim4rec::Run both[] = {{after, events}, {slot, events}};
  EXPECT_TRUE(IsStateLost(backend->Advance(both)));
  ASSERT_TRUE(backend->Export(after, record).ok());
  EXPECT_EQ(record, Record(record.size()));
}

TEST(CudaFaults, ADeviceThatFailsAtTheStartIsRefused) {
  const auto streaming = *ModelPackage::FromContents(MakeTinyModel(5));
  const auto windowed = *ModelPackage::FromContents(MakeTinyModel(cuda::WindowedConfig(), 5));
  CudaOptions options = cuda::SmallOptions();
  options.windows = WindowEncoding::kBulk;
  for (int call = 0; call < DeviceScript::kCalls; ++call) {
    DeviceScript script;
    script.FailFrom(static_cast<DeviceScript::Call>(call), 0);
    // Each kind of model calls what the other does not.
    const auto& package = call < DeviceScript::kLoadBulk ? streaming : windowed;
    const absl::Status status =
        CreateCudaBackendOn(std::make_unique<ScalarDevice>(&script), package, options).status();
    if (call == DeviceScript::kAllocate || call == DeviceScript::kAllocateHost ||
        call == DeviceScript::kLoadBulk) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable)
          << DeviceScript::NameOf(call) << ": " << status;
      EXPECT_THAT(Message(status), HasSubstr("an illegal memory access was encountered"));
    }
  }
}

TEST(CudaFaults, ManyThreadsLoseTheDeviceOnce) {
  const auto package = *ModelPackage::FromContents(MakeTinyModel(5));
  for (int64_t at = 0; at < 60; at += 7) {
    DeviceScript script;
    const auto backend = *CreateCudaBackendOn(std::make_unique<ScalarDevice>(&script), package,
                                              cuda::SmallOptions());
    script.FailFrom(DeviceScript::kWait, at);
    std::vector<std::unique_ptr<Backend>> cpus;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      cpus.push_back(*BuiltinBackends().factories.at("cpu")(package));
      threads.emplace_back([&, cpu = cpus.back().get()] {
        Users users(backend.get(), cpu);
        for (int step = 0; step < 8; ++step) {
          users.Come(2);
          users.Step(1'000'000 + 1000 * step);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(backend->device_stats()->lost);
  }
}

}  // namespace
}  // namespace tim4rec
