// What a fold computes: the float64 model's values within rounding, and exactly the canonical bits,
// however the events are split into runs and batches.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model/backends/builtin.h"
#include "tests/model/canonical_step.h"
#include "tests/model/float64_model.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using Record = std::vector<std::byte>;

std::unique_ptr<Backend> CpuBackend(const PackageContents& contents) {
  auto package = ModelPackage::FromContents(contents);
  EXPECT_TRUE(package.ok()) << package.status();
  auto backend = BuiltinBackends().factories.at("cpu")(*package);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::vector<FoldEvent> EventsOf(const History& history) {
  std::vector<FoldEvent> events;
  for (size_t i = 0; i < history.items.size(); ++i) {
    events.push_back({history.items[i], history.timestamps_ms[i]});
  }
  return events;
}

Record Export(const Backend& backend, Slot slot) {
  Record record(static_cast<size_t>(backend.state_bytes()));
  EXPECT_TRUE(backend.Export(slot, record).ok());
  return record;
}

Record Fold(Backend& backend, const std::vector<FoldEvent>& events) {
  const Slot slot = *backend.Allocate();
  const tim4rec::Run run = {slot, events};
  EXPECT_TRUE(backend.Advance({&run, 1}).ok());
  Record record = Export(backend, slot);
  backend.Release(slot);
  return record;
}

TEST(Fold, EqualsTheFloat64Model) {
  double worst = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const Float64Model reference(contents);
    const auto backend = CpuBackend(contents);
    const History history = RandomHistory(config, 1 + static_cast<int64_t>(seed % 80), seed);
    const std::vector<FoldEvent> events = EventsOf(history);
    const Slot slot = *backend->Allocate();
    const tim4rec::Run run = {slot, events};
    ASSERT_TRUE(backend->Advance({&run, 1}).ok());
    for (const int64_t wait_ms : {int64_t{0}, int64_t{3'600'000}, int64_t{90'000'000'000}}) {
      const QueryRequest request = {slot, history.timestamps_ms.back() + wait_ms};
      std::vector<float> query(static_cast<size_t>(config.hidden_size));
      ASSERT_TRUE(backend->Query({&request, 1}, query).ok());
      const auto exact = reference.Query(history.items, history.timestamps_ms, request.as_of_ms);
      double error = 0, norm = 0;
      for (size_t d = 0; d < query.size(); ++d) {
        error += std::pow(query[d] - exact[d], 2);
        norm += exact[d] * exact[d];
      }
      worst = std::max(worst, std::sqrt(error / norm));
      EXPECT_LE(std::sqrt(error / norm), 1e-5) << "seed " << seed << "\n" << config.ToJson();
    }
  }
  std::printf("worst relative error %.3g\n", worst);
}

TEST(Fold, HasTheCanonicalBits) {
  for (uint64_t seed = 101; seed <= 140; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto backend = CpuBackend(contents);
    const History history = RandomHistory(config, 20, seed);
    const std::vector<FoldEvent> events = EventsOf(history);
    Record expected(static_cast<size_t>(backend->state_bytes()));
    for (size_t i = 0; i < events.size(); ++i) {
      CanonicalStep(contents, events[i].item, events[i].timestamp_ms, &expected);
    }
    ASSERT_EQ(Fold(*backend, events), expected) << "seed " << seed << "\n" << config.ToJson();
    const Slot slot = *backend->Allocate();
    ASSERT_TRUE(backend->Import(slot, expected).ok());
    const QueryRequest request = {slot, history.timestamps_ms.back() + 12'345'678};
    std::vector<float> query(static_cast<size_t>(config.hidden_size));
    ASSERT_TRUE(backend->Query({&request, 1}, query).ok());
    EXPECT_EQ(query, CanonicalQuery(contents, expected, request.as_of_ms)) << "seed " << seed;
  }
}

TEST(Fold, KeepsItsBitsForEver) {
  const PackageContents contents = MakeTinyModel(1);
  const auto backend = CpuBackend(contents);
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const std::byte b : Fold(*backend, EventsOf(RandomHistory(contents.config, 50, 1)))) {
    hash = (hash ^ static_cast<uint64_t>(b)) * 0x100000001b3;
  }
  EXPECT_EQ(hash, 6879470232254048701u)
      << "stored states no longer equal refolded ones: if that is meant, raise "
         "StateLayout::kVersion";
}

TEST(Fold, DoesNotDependOnHowARunIsSplit) {
  std::mt19937_64 random(7);
  for (uint64_t seed = 201; seed <= 230; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const auto backend = CpuBackend(MakeTinyModel(config, seed));
    const std::vector<FoldEvent> events = EventsOf(RandomHistory(config, 50, seed));
    const Record expected = Fold(*backend, events);
    const Slot steps = *backend->Allocate();
    const Slot pieces = *backend->Allocate();
    for (const FoldEvent& event : events) {
      const tim4rec::Run run = {steps, {&event, 1}};
      ASSERT_TRUE(backend->Advance({&run, 1}).ok());
    }
    for (size_t at = 0; at < events.size();) {
      const size_t count = std::min<size_t>(random() % 9, events.size() - at);  // 0 as well
      const tim4rec::Run run = {pieces, std::span(events).subspan(at, count)};
      ASSERT_TRUE(backend->Advance({&run, 1}).ok());
      at += count;
    }
    EXPECT_EQ(Export(*backend, steps), expected) << "seed " << seed;
    EXPECT_EQ(Export(*backend, pieces), expected) << "seed " << seed;
  }
}

TEST(Fold, DoesNotDependOnTheBatch) {
  constexpr uint64_t kSeed = 9;
  constexpr int kUsers = 37;
  const PackageContents contents = MakeTinyModel(kSeed);
  const auto backend = CpuBackend(contents);
  std::vector<std::vector<FoldEvent>> histories;
  std::vector<tim4rec::Run> runs;
  for (int user = 0; user < kUsers; ++user) {
    histories.push_back(EventsOf(RandomHistory(contents.config, 1 + user, kSeed + user)));
  }
  for (int user = kUsers - 1; user >= 0; --user) {
    runs.push_back({*backend->Allocate(), histories[user]});
  }
  ASSERT_TRUE(backend->Advance(runs).ok());
  for (int user = 0; user < kUsers; ++user) {
    EXPECT_EQ(Export(*backend, runs[kUsers - 1 - user].slot), Fold(*backend, histories[user]));
  }
}

TEST(Fold, ContinuesFromAnImportedState) {
  for (uint64_t seed = 301; seed <= 320; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto first = CpuBackend(contents), second = CpuBackend(contents);
    const std::vector<FoldEvent> events = EventsOf(RandomHistory(config, 30, seed));
    const Record half = Fold(*first, {events.begin(), events.begin() + 15});
    const Slot slot = *second->Allocate();
    ASSERT_TRUE(second->Import(slot, half).ok());
    const tim4rec::Run rest = {slot, std::span(events).subspan(15)};
    ASSERT_TRUE(second->Advance({&rest, 1}).ok());
    EXPECT_EQ(Export(*second, slot), Fold(*first, events)) << "seed " << seed;
  }
}

TEST(Fold, CountsEarlierTimestampsAsGapZeroAndClampsLongOnes) {
  const PackageContents contents = MakeTinyModel(3);
  const auto backend = CpuBackend(contents);
  const int64_t max_gap_ms = contents.config.time.max_gap_ms;
  const auto tensors = [&](std::vector<FoldEvent> events) {
    Record record = Fold(*backend, events);
    return Record(record.begin() + 16, record.end());  // without the timestamps
  };
  EXPECT_EQ(tensors({{1, 5000}, {2, 1000}}), tensors({{1, 5000}, {2, 5000}}));
  EXPECT_EQ(tensors({{1, 0}, {2, max_gap_ms}}), tensors({{1, 0}, {2, max_gap_ms + 1}}));
  EXPECT_EQ(tensors({{1, 0}, {2, max_gap_ms}}), tensors({{1, INT64_MIN}, {2, INT64_MAX}}));
  EXPECT_EQ(tensors({{1, 7}, {2, 7}}), tensors({{1, INT64_MAX}, {2, INT64_MIN}}));
  EXPECT_NE(tensors({{1, 0}, {2, 1000}}), tensors({{1, 0}, {2, 100'000'000}}));
}

}  // namespace
}  // namespace tim4rec
