#include "model/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "model/backends/builtin.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;

std::shared_ptr<const ModelPackage> Package(PackageContents contents) {
  auto package = ModelPackage::FromContents(std::move(contents));
  EXPECT_TRUE(package.ok()) << package.status();
  return *std::move(package);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(Engine, AdmitsModelsThatReproduceTheirProbe) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const auto package = Package(MakeTinyModel(RandomStreamingConfig(seed), seed));
    const auto engine = Engine::Create(package, BuiltinBackends());
    ASSERT_TRUE(engine.ok()) << "seed " << seed << ": " << engine.status() << "\n"
                             << package->config().ToJson();
    EXPECT_TRUE((*engine)->backend().exact());
    EXPECT_EQ((*engine)->fingerprint(), package->fingerprint());
  }
}

TEST(Engine, AddsTheTrendOfTheDayOfTheQuery) {
  constexpr int64_t kDayMs = 86'400'000;
  PackageContents contents = MakeTinyModel(3);
  contents.probe.clear();
  const auto plain = *Engine::Create(Package(contents), BuiltinBackends());
  contents.trend = RandomTrend(61, 100, 130, 3);
  const auto engine = *Engine::Create(Package(contents), BuiltinBackends());
  EXPECT_EQ(engine->fingerprint(), plain->fingerprint());
  const std::vector<float> query(16, 0.25F);
  TopKRequest request;
  request.query = query;
  request.k = 60;
  std::vector<std::vector<ScoredItem>> before, after;
  // More days than are kept, some of them before 1970, at all and within one call.
  std::vector<QueryRequest> queries;
  for (const int64_t day : {99, 100, 101, 117, 131, 400, -3, 117}) {
    queries.push_back({0, day * kDayMs + 86'399'999});
  }
  const std::vector<TopKRequest> requests(queries.size(), request);
  ASSERT_TRUE(plain->TopK(requests, queries, &before).ok());
  ASSERT_TRUE(engine->TopK(requests, queries, &after).ok());
  for (size_t i = 0; i < queries.size(); ++i) {
    std::vector<float> trend(61);
    contents.trend->timeline.Trend(DayOf(queries[i].as_of_ms), trend);
    std::vector<ScoredItem> expected = before[i];
    for (ScoredItem& scored : expected) scored.score += 1.5F * trend[scored.item];
    std::ranges::stable_sort(expected, [](const ScoredItem& a, const ScoredItem& b) {
      return a.score > b.score || (a.score == b.score && a.item < b.item);
    });
    ASSERT_EQ(after[i].size(), expected.size());
    for (size_t k = 0; k < expected.size(); ++k) {
      EXPECT_EQ(after[i][k].item, expected[k].item) << i << " " << k;
      EXPECT_EQ(after[i][k].score, expected[k].score) << i << " " << k;
    }
  }
  // The trend counts, and what has no past does not.
  EXPECT_NE(after[4][0].score, before[4][0].score);
  EXPECT_EQ(after[1][0].score, before[1][0].score);
}

TEST(Engine, HoldsTheProbeAgainstScoresWithTheTrend) {
  PackageContents contents = MakeTinyModel(1);
  contents.trend = RandomTrend(61, DayOf(contents.probe[0].as_of_ms) - 20,
                               DayOf(contents.probe[0].as_of_ms) - 1, 1);
  const auto engine = Engine::Create(Package(contents), BuiltinBackends());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(engine.status()), HasSubstr("probe case 0: rank "));
}

TEST(Engine, RefusesAQueryVectorThatDiffers) {
  PackageContents contents = MakeTinyModel(1);
  contents.probe[1].query[3] += 1e-3;
  const auto engine = Engine::Create(Package(contents), BuiltinBackends());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(engine.status()), HasSubstr("probe case 1: the query vector"));
}

TEST(Engine, RefusesARankingThatDiffers) {
  PackageContents contents = MakeTinyModel(1);
  std::swap(contents.probe[2].top_items[4], contents.probe[2].top_items[5]);
  const auto engine = Engine::Create(Package(contents), BuiltinBackends());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(engine.status()), HasSubstr("probe case 2: rank 5"));
}

TEST(Engine, ExcusesRanksOfItemsThatTie) {
  PackageContents contents = MakeTinyModel(1);
  contents.probe.resize(1);
  ProbeCase& probe = contents.probe[0];
  // An item outside the history and the top becomes the twin of the third.
  int32_t twin = 1;
  while (std::ranges::count(probe.items, twin) + std::ranges::count(probe.top_items, twin) > 0) {
    ++twin;
  }
  auto& table = contents.tensors["item_embedding.weight"].second;
  const int64_t d = contents.config.hidden_size;
  const int32_t third = probe.top_items[2];
  std::copy_n(table.begin() + third * d, d, table.begin() + twin * d);
  // The backend ranks the smaller index first; the probe says the opposite.
  probe.top_items = {probe.top_items[0], probe.top_items[1], std::max(third, twin),
                     std::min(third, twin)};
  const auto engine = Engine::Create(Package(contents), BuiltinBackends());
  EXPECT_TRUE(engine.ok()) << engine.status();
}

TEST(Engine, NamesTheBackendsItHas) {
  const auto engine = Engine::Create(Package(MakeTinyModel(1)), BuiltinBackends(), "tpu");
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(engine.status()), HasSubstr("\"tpu\" is not in this program"));
  EXPECT_THAT(Message(engine.status()), HasSubstr("auto, cpu"));
}

TEST(Engine, AutoTakesTheFirstBackendThatStarts) {
  BackendRegistry registry = BuiltinBackends();
  registry.factories["broken"] = [](auto) { return absl::UnavailableError("no device"); };
  registry.preference = {"broken", "cpu"};
  const auto engine = Engine::Create(Package(MakeTinyModel(1)), registry);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->backend().name(), "cpu");
  registry.preference = {"broken"};
  const auto none = Engine::Create(Package(MakeTinyModel(1)), registry);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(none.status()), HasSubstr("broken: no device"));
}

TEST(Engine, ServesThePublishedVariantAfterItsProbe) {
  ModelConfig config = MakeTinyModel(1).config;
  config.variant = Variant::kPublished;
  const auto engine = Engine::Create(Package(MakeTinyModel(config, 1)), BuiltinBackends());
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_TRUE((*engine)->backend().exact());
}

TEST(Engine, CudaFailsWithTheReason) {
  if (!BuiltinBackends().factories.contains("cuda")) {
    GTEST_SKIP() << "built without the cuda backend";
  }
  const auto engine = Engine::Create(Package(MakeTinyModel(1)), BuiltinBackends(), "cuda");
  if (engine.ok()) GTEST_SKIP() << "a CUDA device serves here";
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(engine.status()), HasSubstr("no CUDA device can be used: "));
  // "auto" goes on to the cpu, and says why.
  const auto chosen = Engine::Create(Package(MakeTinyModel(1)), BuiltinBackends());
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ((*chosen)->backend().name(), "cpu");
  EXPECT_EQ((*chosen)->passed_over(), "cuda: " + Message(engine.status()));
}

}  // namespace
}  // namespace tim4rec
