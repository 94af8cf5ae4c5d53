// The cuda backend with the bulk mode for windows, on a device that computes with the scalar truth:
// its host side.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>

#include "model/backends/builtin.h"
#include "model/backends/cuda/cuda_backend.h"
#include "model/engine/engine.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;
using cuda::ScalarDevice;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Record = std::vector<std::byte>;

constexpr size_t kWidth = 16;

CudaOptions BulkOptions() {
  CudaOptions options = cuda::SmallOptions();
  options.windows = WindowEncoding::kBulk;
  return options;
}

std::shared_ptr<const ModelPackage> Package(PackageContents contents) {
  return *ModelPackage::FromContents(std::move(contents));
}

std::shared_ptr<const ModelPackage> Windowed() {
  return Package(MakeTinyModel(cuda::WindowedConfig(), 5));
}

absl::StatusOr<std::unique_ptr<Backend>> Create(DeviceScript* script,
                                                std::shared_ptr<const ModelPackage> package,
                                                const CudaOptions& options = BulkOptions()) {
  return CreateCudaBackendOn(std::make_unique<ScalarDevice>(script), std::move(package), options);
}

std::unique_ptr<Backend> Cpu(const std::shared_ptr<const ModelPackage>& package) {
  return *BuiltinBackends().factories.at("cpu")(package);
}

std::vector<float> Query(Backend& backend, std::span<const Slot> slots) {
  std::vector<QueryRequest> requests;
  for (const Slot slot : slots) requests.push_back({slot, 0});
  std::vector<float> queries(kWidth * slots.size());
  const absl::Status status = backend.Query(requests, queries);
  EXPECT_TRUE(status.ok()) << status;
  return queries;
}

std::vector<float> Query(Backend& backend, Slot slot) { return Query(backend, {&slot, 1}); }

Record Export(const Backend& backend, Slot slot) {
  Record record(static_cast<size_t>(backend.state_bytes()));
  EXPECT_TRUE(backend.Export(slot, record).ok());
  return record;
}

// Users in the bulk mode and on the cpu, with the same events: from one to more than a window.
class CudaBulk : public testing::Test {
 protected:
  CudaBulk() {
    uint64_t seed = std::random_device()();
    if (const char* text = std::getenv("TIM4REC_TEST_SEED")) {
      seed = std::strtoull(text, nullptr, 10);
    }
    std::cout << "TIM4REC_TEST_SEED=" << seed << std::endl;
    random_.seed(seed);
  }

  void Come(Backend& backend, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      slots_.push_back(*backend.Allocate());
      expected_.push_back(*cpu_->Allocate());
      std::vector<FoldEvent> events(1 + random_() % 25);
      int64_t now_ms = 1'600'000'000'000;
      for (FoldEvent& event : events) {
        now_ms += static_cast<int64_t>(random_() % 86'400'000);
        event = {static_cast<int32_t>(1 + random_() % 60), now_ms};
      }
      const tim4rec::Run run = {slots_.back(), events}, same = {expected_.back(), events};
      ASSERT_TRUE(backend.Advance({&run, 1}).ok());
      ASSERT_TRUE(cpu_->Advance({&same, 1}).ok());
      ASSERT_EQ(Export(backend, slots_.back()), Export(*cpu_, expected_.back()));
    }
  }

  std::mt19937_64 random_;
  const std::shared_ptr<const ModelPackage> package_ = Windowed();
  const std::unique_ptr<Backend> cpu_ = Cpu(package_);
  std::vector<Slot> slots_, expected_;
};

TEST_F(CudaBulk, AWindowHasOneAnswerInEveryBatchAndItsStateIsExact) {
  DeviceScript script;
  const auto backend = *Create(&script, package_);
  EXPECT_EQ(backend->window_encoding(), WindowEncoding::kBulk);
  EXPECT_TRUE(backend->exact());
  EXPECT_GT(backend->query_bound(), cpu_->query_bound());
  Come(*backend, 40);
  // A state that came from elsewhere, and one that moved.
  for (const size_t from : {size_t{1}, size_t{2}}) {
    slots_.push_back(*backend->Allocate());
    expected_.push_back(expected_[from]);
    const Record record = from == 1 ? Export(*cpu_, expected_[1]) : Export(*backend, slots_[2]);
    ASSERT_TRUE(backend->Import(slots_.back(), record).ok());
  }
  const std::vector<float> together = Query(*backend, slots_);
  const std::vector<float> exact = Query(*cpu_, expected_);
  EXPECT_NE(std::memcmp(together.data(), exact.data(), 4 * exact.size()), 0);
  for (size_t i = 0; i < slots_.size(); ++i) {
    const auto of = std::span(together).subspan(kWidth * i, kWidth);
    const std::vector<float> alone = Query(*backend, slots_[i]);
    EXPECT_EQ(std::memcmp(alone.data(), of.data(), 4 * kWidth), 0) << i;
    EXPECT_LE(cuda::RelativeError(of, std::span(exact).subspan(kWidth * i, kWidth)),
              backend->query_bound());
  }
  EXPECT_EQ(script.count(DeviceScript::kQuery), 0);
  const DeviceStats stats = *backend->device_stats();
  EXPECT_EQ(stats.query.launches, script.count(DeviceScript::kEncodeWindows));
  EXPECT_GT(stats.query.seconds, 0);
}

TEST_F(CudaBulk, WhatNoLaunchHoldsIsEncodedInParts) {
  DeviceScript script;
  script.memory_bytes = 256 << 20;
  const auto backend = *Create(&script, package_);
  Come(*backend, 30);
  // More queries than a launch takes, each of up to a window's events.
  std::vector<Slot> asked;
  std::vector<size_t> who;
  for (size_t i = 0; i < cuda::kMostQueries + 100; ++i) {
    who.push_back(random_() % slots_.size());
    asked.push_back(slots_[who.back()]);
  }
  const std::vector<float> each = Query(*backend, slots_);
  const auto check = [&](Backend& by, int64_t least, DeviceScript& told) {
    const int64_t before = told.count(DeviceScript::kEncodeWindows);
    const std::vector<float> queries = Query(by, asked);
    EXPECT_GE(told.count(DeviceScript::kEncodeWindows) - before, least);
    for (size_t i = 0; i < asked.size(); ++i) {
      ASSERT_EQ(std::memcmp(&queries[kWidth * i], &each[kWidth * who[i]], 4 * kWidth), 0) << i;
    }
  };
  check(*backend, 2, script);
  // With memory for fewer, and for one window at a time.
  CudaOptions options = cuda::SmallOptions();
  options.reserve_bytes = 1;
  options.state_chunk_bytes = 16 << 10;
  DeviceScript whole;
  const int64_t others_bytes =
      (*Create(&whole, package_, options))->device_stats()->memory_used_bytes;
  options.windows = WindowEncoding::kBulk;
  for (const auto& [more_bytes, least] :
       {std::pair<int64_t, int64_t>{6 << 20, 6}, {100'000, 500}}) {
    DeviceScript small;
    small.memory_bytes = others_bytes + more_bytes;
    const auto in_parts = *Create(&small, package_, options);
    for (size_t i = 0; i < slots_.size(); ++i) {
      ASSERT_EQ(*in_parts->Allocate(), slots_[i]);
      ASSERT_TRUE(in_parts->Import(slots_[i], Export(*backend, slots_[i])).ok());
    }
    check(*in_parts, least, small);
  }
}

TEST_F(CudaBulk, MemoryThatIsRefusedInOnePieceIsAskedForInSmallerOnes) {
  DeviceScript script;
  script.refused_loads = 3;
  const auto backend = *Create(&script, package_);
  EXPECT_EQ(script.count(DeviceScript::kLoadBulk), 4);
  Come(*backend, 5);
  Query(*backend, slots_);
}

TEST_F(CudaBulk, WithoutRoomForOneWindowTheModelIsRefusedWithTheBytes) {
  DeviceScript script;
  script.FailFrom(DeviceScript::kLoadBulk, 0);
  const absl::Status status = Create(&script, package_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              testing::MatchesRegex("the model needs [0-9]+ bytes of device memory, [0-9]+ of "
                                    "[0-9]+ are free, but not in the pieces that it needs"));
}

TEST_F(CudaBulk, StatesInMainMemoryAreEncodedExactly) {
  DeviceScript script;
  CudaOptions options = BulkOptions();
  options.reserve_bytes = int64_t{1} << 40;  // no room
  const auto backend = *Create(&script, package_, options);
  Come(*backend, 5);
  EXPECT_EQ(backend->device_stats()->overflow_slots, 5);
  EXPECT_EQ(Query(*backend, slots_), Query(*cpu_, expected_));
}

TEST_F(CudaBulk, OnceTheDeviceIsLostWindowsAreEncodedExactly) {
  DeviceScript script;
  const auto backend = *Create(&script, package_);
  Come(*backend, 3);
  script.FailFrom(DeviceScript::kEncodeWindows, 1);
  Query(*backend, slots_);
  std::vector<float> query(kWidth);
  const QueryRequest request = {slots_[0], 0};
  EXPECT_TRUE(IsStateLost(backend->Query({&request, 1}, query)));
  for (size_t i = 0; i < slots_.size(); ++i) {
    EXPECT_TRUE(backend->Lost(slots_[i]));
    backend->Release(slots_[i]);
    slots_[i] = *backend->Allocate();
    ASSERT_TRUE(backend->Import(slots_[i], Export(*cpu_, expected_[i])).ok());
  }
  EXPECT_EQ(Query(*backend, slots_), Query(*cpu_, expected_));
  EXPECT_TRUE(backend->device_stats()->lost);
}

TEST_F(CudaBulk, AModelWithoutWindowsIsNotTouched) {
  const auto package = Package(MakeTinyModel(5));
  DeviceScript script;
  const auto backend = *Create(&script, package);
  EXPECT_EQ(script.count(DeviceScript::kLoadBulk), 0);
  EXPECT_EQ(backend->window_encoding(), WindowEncoding::kExact);
  const auto cpu = Cpu(package);
  EXPECT_EQ(backend->query_bound(), cpu->query_bound());
  const std::vector<FoldEvent> events = {{3, 10}, {4, 20}};
  const tim4rec::Run run = {*backend->Allocate(), events}, same = {*cpu->Allocate(), events};
  ASSERT_TRUE(backend->Advance({&run, 1}).ok());
  ASSERT_TRUE(cpu->Advance({&same, 1}).ok());
  EXPECT_EQ(Query(*backend, run.slot), Query(*cpu, same.slot));
  EXPECT_EQ(script.count(DeviceScript::kEncodeWindows), 0);
}

TEST_F(CudaBulk, TheProbeHoldsTheModeToItsBound) {
  DeviceScript script;
  BackendRegistry registry;
  registry.factories["cuda"] = [&](auto package) { return Create(&script, package); };
  const auto engine = Engine::Create(package_, registry, "cuda");
  ASSERT_TRUE(engine.ok()) << engine.status();
  DeviceScript wrong;
  wrong.wrong_encode = true;
  const absl::Status status = Create(&wrong, package_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("encodes windows outside the bulk mode's bound: the query of probe "
                              "case 0 has the relative error "),
                    HasSubstr(", allowed ")));
}

TEST_F(CudaBulk, OnThisMachinesDeviceAWindowHasOneAnswerInEveryBatch) {
  const auto& factories = BuiltinBackends(WindowEncoding::kBulk).factories;
  if (!factories.contains("cuda")) GTEST_SKIP() << "built without nvcc";
  const auto started = factories.at("cuda")(package_);
  // A device that is there and fails is no reason to skip.
  if (started.status().message().find("no CUDA device can be used") != absl::string_view::npos) {
    GTEST_SKIP() << started.status();
  }
  ASSERT_TRUE(started.ok()) << started.status();
  Backend& backend = **started;
  Come(backend, 300);
  const std::vector<float> together = Query(backend, slots_), exact = Query(*cpu_, expected_);
  for (size_t i = 0; i < slots_.size(); ++i) {
    const auto of = std::span(together).subspan(kWidth * i, kWidth);
    const std::vector<float> alone = Query(backend, slots_[i]);
    ASSERT_EQ(std::memcmp(alone.data(), of.data(), 4 * kWidth), 0) << i;
    EXPECT_LE(cuda::RelativeError(of, std::span(exact).subspan(kWidth * i, kWidth)),
              2 * backend.query_bound());  // the bound is of the probe's windows
  }
}

}  // namespace
}  // namespace tim4rec
