// The published model on a backend: golden vectors and the float64 model within rounding, the
// canonical bits, and states that are windows of events.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "model/backends/builtin.h"
#include "model/engine/engine.h"
#include "tests/model/canonical_step.h"
#include "tests/model/float64_model.h"
#include "tests/model/golden_case.h"
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

std::vector<FoldEvent> EventsOf(const std::vector<int32_t>& items,
                                const std::vector<int64_t>& timestamps_ms) {
  std::vector<FoldEvent> events;
  for (size_t i = 0; i < items.size(); ++i) events.push_back({items[i], timestamps_ms[i]});
  return events;
}

std::vector<FoldEvent> EventsOf(const History& history) {
  return EventsOf(history.items, history.timestamps_ms);
}

void Advance(Backend& backend, Slot slot, std::span<const FoldEvent> events) {
  const tim4rec::Run run = {slot, events};
  ASSERT_TRUE(backend.Advance({&run, 1}).ok());
}

std::vector<float> Query(Backend& backend, Slot slot, size_t d, int64_t as_of_ms = 0) {
  std::vector<float> query(d);
  const QueryRequest request = {slot, as_of_ms};
  const absl::Status status = backend.Query({&request, 1}, query);
  EXPECT_TRUE(status.ok()) << status;
  return query;
}

Record Export(const Backend& backend, Slot slot) {
  Record record(static_cast<size_t>(backend.state_bytes()));
  EXPECT_TRUE(backend.Export(slot, record).ok());
  return record;
}

double Error(const std::vector<float>& actual, std::span<const double> expected) {
  return RelativeError(std::vector<double>(actual.begin(), actual.end()), expected);
}

TEST(PublishedOnABackend, ReproducesTheGoldenVectors) {
  const auto dirs = GoldenCaseDirs();
  if (dirs.empty()) GTEST_SKIP() << "no golden vectors in " << GoldenRoot();
  for (const std::string& dir : dirs) {
    const GoldenCase golden = LoadGoldenCase(dir);
    const auto backend = CpuBackend(golden.contents);
    const auto d = static_cast<size_t>(golden.contents.config.hidden_size);
    double worst = 0;
    for (int64_t row = 0; row < golden.batch(); ++row) {
      const Slot slot = *backend->Allocate();
      Advance(*backend, slot, EventsOf(golden.Items(row), golden.TimestampsMs(row)));
      const std::vector<float> query = Query(*backend, slot, d);
      worst = std::max(worst, Error(query, golden.Query(row)));
      TopKRequest request;
      request.query = query;
      request.k = 20;
      std::vector<std::vector<ScoredItem>> results;
      ASSERT_TRUE(backend->TopK({&request, 1}, &results).ok());
      std::vector<int32_t> items;
      for (const ScoredItem& scored : results[0]) items.push_back(scored.item);
      EXPECT_EQ(items, golden.TopItems(row)) << golden.name << " " << row;
    }
    std::printf("%-20s relative error of the query %.2e\n", golden.name.c_str(), worst);
    EXPECT_LT(worst, 5e-6) << golden.name;
  }
}

TEST(PublishedOnABackend, EqualsTheFloat64Model) {
  double worst = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const ModelConfig config = RandomPublishedConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const Float64Model reference(contents);
    const auto backend = CpuBackend(contents);
    for (const int64_t length : {1, 2, 7, 40}) {
      const History history = RandomHistory(config, length, seed);
      const Slot slot = *backend->Allocate();
      Advance(*backend, slot, EventsOf(history));
      const auto query = Query(*backend, slot, static_cast<size_t>(config.hidden_size));
      const double error = Error(query, reference.Query(history.items, history.timestamps_ms, 0));
      worst = std::max(worst, error);
      EXPECT_LE(error, 1e-5) << "seed " << seed << ", length " << length << "\n" << config.ToJson();
    }
  }
  std::printf("worst relative error %.3g\n", worst);
}

TEST(PublishedOnABackend, HasTheCanonicalBits) {
  for (uint64_t seed = 101; seed <= 140; ++seed) {
    const ModelConfig config = RandomPublishedConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto backend = CpuBackend(contents);
    const Slot slot = *backend->Allocate();
    const std::vector<FoldEvent> events = EventsOf(RandomHistory(config, 17, seed));
    Record expected(static_cast<size_t>(backend->state_bytes()));
    for (const FoldEvent& event : events) {
      CanonicalStep(contents, event.item, event.timestamp_ms, &expected);
      Advance(*backend, slot, {&event, 1});
      ASSERT_EQ(Export(*backend, slot), expected) << "seed " << seed;
      ASSERT_EQ(Query(*backend, slot, static_cast<size_t>(config.hidden_size)),
                CanonicalQuery(contents, expected, 0))
          << "seed " << seed << "\n"
          << config.ToJson();
    }
  }
}

TEST(PublishedOnABackend, AStateDoesNotDependOnRunsQueriesOrTheQuerysTime) {
  for (uint64_t seed = 201; seed <= 220; ++seed) {
    const ModelConfig config = RandomPublishedConfig(seed);
    const auto backend = CpuBackend(MakeTinyModel(config, seed));
    const auto d = static_cast<size_t>(config.hidden_size);
    const std::vector<FoldEvent> events = EventsOf(RandomHistory(config, 45, seed));
    const Slot whole = *backend->Allocate(), steps = *backend->Allocate();
    Advance(*backend, whole, events);
    for (const FoldEvent& event : events) {
      Advance(*backend, steps, {&event, 1});
      Query(*backend, steps, d);
    }
    EXPECT_EQ(Export(*backend, whole), Export(*backend, steps)) << "seed " << seed;
    EXPECT_EQ(Query(*backend, whole, d), Query(*backend, steps, d));
    EXPECT_EQ(Query(*backend, whole, d, 0), Query(*backend, whole, d, INT64_MAX));
  }
}

ModelConfig WindowConfig() {
  ModelConfig config = RandomPublishedConfig(1);
  config.is_time = true;
  config.max_item_list_length = 7;
  return config;
}

TEST(WindowState, HasTheDocumentedBytes) {
  const ModelConfig config = WindowConfig();
  const StateLayout layout = StateLayout::Of(config);
  EXPECT_EQ(layout.window_items_offset, 14);
  EXPECT_EQ(layout.bytes, 16 + 4 * 24);  // 7 * 12 bytes, padded to 16
  const auto backend = CpuBackend(MakeTinyModel(config, 1));
  EXPECT_EQ(backend->state_bytes(), layout.bytes);
  const Slot slot = *backend->Allocate();
  std::vector<FoldEvent> events;
  for (int32_t i = 1; i <= 9; ++i) events.push_back({i, 1000 * i});
  Advance(*backend, slot, events);
  const Record record = Export(*backend, slot);
  int64_t times[9];
  std::memcpy(times, record.data(), sizeof(times));
  EXPECT_EQ(times[0], 9000);
  EXPECT_EQ(times[1], 9);
  for (int64_t i = 0; i < 7; ++i) {
    int32_t item;
    std::memcpy(&item, record.data() + 16 + 56 + 4 * i, 4);
    EXPECT_EQ(item, i + 3);
    EXPECT_EQ(times[2 + i], 1000 * (i + 3));
  }
}

TEST(WindowState, ImportChecksItemsAndForgetsTheEncoding) {
  const ModelConfig config = WindowConfig();
  const auto backend = CpuBackend(MakeTinyModel(config, 1));
  const auto d = static_cast<size_t>(config.hidden_size);
  const Slot a = *backend->Allocate(), b = *backend->Allocate();
  Advance(*backend, a, std::vector<FoldEvent>{{3, 1'000'000'000}, {4, 1'500'000'000}});
  Advance(*backend, b, std::vector<FoldEvent>{{5, 1'000'000'000}});
  const std::vector<float> of_a = Query(*backend, a, d);
  EXPECT_NE(Query(*backend, b, d), of_a);
  Record record = Export(*backend, a);
  ASSERT_TRUE(backend->Import(b, record).ok());
  EXPECT_EQ(Query(*backend, b, d), of_a);

  const Record before = Export(*backend, b);
  const int32_t bad = static_cast<int32_t>(config.n_items);
  std::memcpy(record.data() + 16 + 56 + 4, &bad, 4);
  const absl::Status status = backend->Import(b, record);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(Export(*backend, b), before);
  EXPECT_EQ(Query(*backend, b, d), of_a);

  backend->Release(b);
  const Slot again = *backend->Allocate();
  EXPECT_EQ(again, b);
  Advance(*backend, again, std::vector<FoldEvent>{{5, 1'000'000'000}});
  EXPECT_NE(Query(*backend, again, d), of_a);
}

TEST(PublishedOnABackend, ServesThroughTheEngineAfterItsProbe) {
  for (uint64_t seed = 301; seed <= 310; ++seed) {
    PackageContents contents = MakeTinyModel(RandomPublishedConfig(seed), seed);
    auto package = ModelPackage::FromContents(contents);
    ASSERT_TRUE(package.ok()) << package.status();
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    EXPECT_TRUE(engine.ok()) << engine.status();
    contents.probe[1].query[0] += 1;
    package = ModelPackage::FromContents(contents);
    ASSERT_TRUE(package.ok()) << package.status();
    EXPECT_EQ(Engine::Create(*package, BuiltinBackends(), "cpu").status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

}  // namespace
}  // namespace tim4rec
