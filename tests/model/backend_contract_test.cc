// What backend.h promises, for every backend that starts here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>
#include <fstream>
#include <map>
#include <thread>

#include "model/backends/builtin.h"
#include "model/backends/cuda/cuda_backend.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;
using Record = std::vector<std::byte>;

// Those of the program, and the cuda backend on a device that computes with the scalar truth, with
// room for some of the states.
const std::map<std::string, BackendFactory>& Factories() {
  static const auto* factories = [] {
    auto* all = new std::map(BuiltinBackends().factories);
    (*all)["cuda_on_scalar_device"] = [](std::shared_ptr<const ModelPackage> package) {
      static auto* script = new cuda::DeviceScript;
      return CreateCudaBackendOn(std::make_unique<cuda::ScalarDevice>(script), std::move(package),
                                 cuda::SmallOptions());
    };
    return all;
  }();
  return *factories;
}

class BackendContract : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto package = ModelPackage::FromContents(MakeTinyModel(5));
    ASSERT_TRUE(package.ok()) << package.status();
    package_ = *package;
    auto backend = Factories().at(GetParam())(package_);
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  Record Export(Slot slot) const {
    Record record(static_cast<size_t>(backend_->state_bytes()));
    EXPECT_TRUE(backend_->Export(slot, record).ok());
    return record;
  }

  absl::Status Advance(Slot slot, std::vector<FoldEvent> events) {
    const tim4rec::Run run = {slot, events};
    return backend_->Advance({&run, 1});
  }

  absl::Status Query(Slot slot, size_t floats = 16) {
    std::vector<float> query(floats);
    const QueryRequest request = {slot, 0};
    return backend_->Query({&request, 1}, query);
  }

  absl::Status TopK(TopKRequest request) { return backend_->TopK({&request, 1}, &results_); }

  std::shared_ptr<const ModelPackage> package_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::vector<ScoredItem>> results_;
};

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST_P(BackendContract, BeginsWithTheEmptyState) {
  EXPECT_EQ(backend_->state_bytes(), StateLayout::Of(package_->config()).bytes);
  const Slot slot = *backend_->Allocate();
  EXPECT_EQ(Export(slot), Record(static_cast<size_t>(backend_->state_bytes())));
  EXPECT_EQ(Query(slot).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(BackendContract, GivesDenseSlotsAndReusesThem) {
  std::vector<Slot> slots;
  for (int i = 0; i < 3000; ++i) slots.push_back(*backend_->Allocate());
  for (int i = 0; i < 3000; ++i) EXPECT_EQ(slots[i], i);
  ASSERT_TRUE(Advance(slots[1234], {{3, 10}}).ok());
  backend_->Release(slots[1234]);
  const Slot again = *backend_->Allocate();
  EXPECT_EQ(again, 1234);
  EXPECT_EQ(Export(again), Record(static_cast<size_t>(backend_->state_bytes())));
}

TEST_P(BackendContract, CountsEventsAndKeepsTheLastTimestamp) {
  const Slot slot = *backend_->Allocate();
  ASSERT_TRUE(Advance(slot, {{3, 10}, {4, 30}}).ok());
  const Record record = Export(slot);
  int64_t header[2];
  std::memcpy(header, record.data(), sizeof(header));
  EXPECT_EQ(header[0], 30);
  EXPECT_EQ(header[1], 2);
}

TEST_P(BackendContract, FailedAdvanceChangesNothing) {
  const Slot a = *backend_->Allocate(), b = *backend_->Allocate();
  ASSERT_TRUE(Advance(a, {{3, 10}}).ok());
  const Record before = Export(a);
  for (const int32_t item : {0, -1, 61, INT32_MAX}) {
    const std::vector<FoldEvent> good = {{1, 20}}, bad = {{2, 20}, {item, 30}};
    const std::vector<tim4rec::Run> runs = {{a, good}, {b, bad}};
    const absl::Status status = backend_->Advance(runs);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr("runs[1].events[1].item is"));
    EXPECT_THAT(Message(status), HasSubstr("allowed 1 to 60"));
  }
  EXPECT_EQ(Advance(-1, {{1, 1}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Advance(1 << 30, {{1, 1}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Export(a), before);
  EXPECT_EQ(Export(b), Record(static_cast<size_t>(backend_->state_bytes())));
}

TEST_P(BackendContract, QueryChangesNoState) {
  const Slot slot = *backend_->Allocate();
  ASSERT_TRUE(Advance(slot, {{3, 10}}).ok());
  const Record before = Export(slot);
  EXPECT_TRUE(Query(slot).ok());
  EXPECT_EQ(Export(slot), before);
  EXPECT_EQ(Query(slot, 15).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Query(-7).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(BackendContract, ImportRefusesOtherRecords) {
  const Slot slot = *backend_->Allocate();
  ASSERT_TRUE(Advance(slot, {{3, 10}}).ok());
  const Record record = Export(slot);
  const auto shorter = std::span(record).first(record.size() - 4);
  EXPECT_EQ(backend_->Import(slot, shorter).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->Import(-1, record).code(), absl::StatusCode::kInvalidArgument);
  Record negative = record;
  negative[15] = std::byte{0x80};  // the sign of folded_events
  EXPECT_EQ(backend_->Import(slot, negative).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Export(slot), record);
  Record small(8);
  EXPECT_EQ(backend_->Export(slot, small).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(BackendContract, TopKChecksItsRequest) {
  const std::vector<float> query(16, 0.5f);
  const std::vector<int32_t> descending = {3, 2}, beyond = {1, 61}, padding = {0, 1};
  const auto fault = [&](auto change) {
    TopKRequest request;
    request.query = query;
    change(&request);
    const absl::Status status = TopK(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Message(status);
  };
  EXPECT_THAT(fault([](auto* r) { r->k = 0; }), HasSubstr("requests[0].k is 0"));
  EXPECT_THAT(fault([](auto* r) { r->k = 1001; }), HasSubstr("k is 1001, allowed 1 to 1000"));
  EXPECT_THAT(fault([&](auto* r) { r->query = std::span(query).first(3); }), HasSubstr("query"));
  EXPECT_THAT(fault([&](auto* r) { r->excluded = descending; }), HasSubstr("excluded[1]"));
  EXPECT_THAT(fault([&](auto* r) { r->boost = query; }), HasSubstr("boost has 16 values"));
  EXPECT_THAT(fault([&](auto* r) { r->candidates_only = true, r->candidates = descending; }),
              HasSubstr("candidates[1]"));
  EXPECT_THAT(fault([&](auto* r) { r->candidates_only = true, r->candidates = beyond; }),
              HasSubstr("allowed 1 to 60"));
  EXPECT_THAT(fault([&](auto* r) { r->candidates_only = true, r->candidates = padding; }),
              HasSubstr("allowed 1 to 60"));
}

TEST_P(BackendContract, TopKAddsTheBoost) {
  const std::vector<float> query(16, 0.5f);
  std::vector<float> boost(64, 0);
  TopKRequest request;
  request.query = query;
  request.k = 60;
  ASSERT_TRUE(TopK(request).ok());
  std::map<int32_t, float> scores;
  for (const ScoredItem& scored : results_[0]) scores[scored.item] = scored.score;
  for (int32_t item = 1; item < 61; ++item) boost[item] = static_cast<float>(item % 7) / 4;
  boost[33] = 1e6f;
  request.boost = boost;
  const std::vector<int32_t> candidates = {5, 33, 60};
  for (const bool candidates_only : {false, true}) {
    request.candidates_only = candidates_only;
    request.candidates = candidates;
    ASSERT_TRUE(TopK(request).ok());
    ASSERT_EQ(results_[0].size(), candidates_only ? 3u : 60u);
    EXPECT_EQ(results_[0][0].item, 33);
    for (const ScoredItem& scored : results_[0]) {
      EXPECT_EQ(scored.score, scores[scored.item] + boost[scored.item]) << scored.item;
    }
  }
}

TEST_P(BackendContract, TopKRanksTheWholeCatalogueWithoutPadding) {
  const std::vector<float> query(16, 0.5f);
  const std::vector<int32_t> excluded = {0, 7, 9, 60, 1000}, candidates = {7, 8};
  TopKRequest request;
  request.query = query;
  request.k = 1000;
  ASSERT_TRUE(TopK(request).ok());
  EXPECT_EQ(results_[0].size(), 60u);
  for (size_t i = 1; i < results_[0].size(); ++i) {
    EXPECT_GE(results_[0][i - 1].score, results_[0][i].score);
  }
  const std::vector<uint64_t> eligible = {0x0f00'0000'0000'0381};  // 0, 7, 8, 9, 56 to 59
  request.eligible = eligible;
  ASSERT_TRUE(TopK(request).ok());
  EXPECT_EQ(results_[0].size(), 7u);
  request.eligible = {};
  request.excluded = excluded;
  ASSERT_TRUE(TopK(request).ok());
  EXPECT_EQ(results_[0].size(), 57u);
  request.candidates_only = true;
  ASSERT_TRUE(TopK(request).ok());
  EXPECT_TRUE(results_[0].empty());
  request.candidates = candidates;
  ASSERT_TRUE(TopK(request).ok());
  ASSERT_EQ(results_[0].size(), 1u);
  EXPECT_EQ(results_[0][0].item, 8);
  const std::vector<uint64_t> none = {~uint64_t{0x100}};
  request.eligible = none;
  ASSERT_TRUE(TopK(request).ok());
  EXPECT_TRUE(results_[0].empty());
}

TEST_P(BackendContract, ServesDisjointSlotsFromManyThreads) {
  const std::vector<FoldEvent> events = {{1, 10}, {2, 2000}, {3, 3'000'000}};
  const Slot slot = *backend_->Allocate();
  ASSERT_TRUE(Advance(slot, events).ok());
  const Record expected = Export(slot);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        std::vector<Slot> mine;
        for (int i = 0; i < 8; ++i) mine.push_back(*backend_->Allocate());
        for (const Slot own : mine) {
          EXPECT_TRUE(Advance(own, events).ok());
          EXPECT_TRUE(Query(own).ok());
          EXPECT_EQ(Export(own), expected);
        }
        for (const Slot own : mine) backend_->Release(own);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_P(BackendContract, TakesLittleMoreMemoryThanTheStates) {
  const auto resident = [] {
    int64_t total = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> total >> pages;
    return pages * sysconf(_SC_PAGESIZE);
  };
  ModelConfig config;
  config.n_items = 50;
  auto backend =
      BuiltinBackends().factories.at("cpu")(*ModelPackage::FromContents(MakeTinyModel(config, 1)));
  ASSERT_TRUE(backend.ok());
  constexpr int kSlots = 2000;
  const int64_t before = resident();
  for (int i = 0; i < kSlots; ++i) ASSERT_TRUE((*backend)->Allocate().ok());
  const int64_t states = kSlots * (*backend)->state_bytes();
  EXPECT_LE(resident() - before, states * 115 / 100);
}
#endif

// Those that serve on this machine; the others say why.
const std::vector<std::string>& BackendNames() {
  static const auto* all = [] {
    auto* names = new std::vector<std::string>;
    const auto package = ModelPackage::FromContents(MakeTinyModel(5));
    for (const auto& [name, factory] : Factories()) {
      const auto backend = factory(*package);
      if (backend.ok()) {
        names->push_back(name);
      } else {
        std::cout << "not tested here: " << name << ": " << backend.status() << "\n";
      }
    }
    return names;
  }();
  return *all;
}

INSTANTIATE_TEST_SUITE_P(Builtin, BackendContract, ::testing::ValuesIn(BackendNames()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace tim4rec
