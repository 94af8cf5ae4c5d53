#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "model/backends/builtin.h"
#include "model/evaluation/evaluator.h"
#include "model/evaluation/metrics.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

std::unique_ptr<Engine> TinyEngine() {
  auto package = ModelPackage::FromContents(MakeTinyModel(1));
  EXPECT_TRUE(package.ok()) << package.status();
  auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::vector<RankingCase> RandomCases(const ModelConfig& config, int count) {
  std::vector<RankingCase> cases;
  for (int i = 0; i < count; ++i) {
    const History history = RandomHistory(config, 1 + i % 9, i + 1);
    RankingCase ranking;
    for (size_t j = 0; j < history.items.size(); ++j) {
      ranking.history.push_back({history.items[j], history.timestamps_ms[j]});
    }
    ranking.target = 1 + i % static_cast<int>(config.n_items - 1);
    ranking.as_of_ms = history.timestamps_ms.back() + i * 1000;
    cases.push_back(ranking);
  }
  return cases;
}

TEST(RankingMeter, AveragesOverUsers) {
  RankingMeter meter;
  for (const int rank : {1, 3, 10, 11, 20, 21, 0, 500}) meter.Add(rank);
  const RankingMetrics mean = meter.Mean();
  EXPECT_EQ(mean.users, 8);
  EXPECT_DOUBLE_EQ(mean.hr10, 3 / 8.0);
  EXPECT_DOUBLE_EQ(mean.hr20, 5 / 8.0);
  EXPECT_DOUBLE_EQ(mean.ndcg10, (1 + 0.5 + 1 / std::log2(11)) / 8);
  EXPECT_DOUBLE_EQ(mean.ndcg20,
                   (1 + 0.5 + 1 / std::log2(11) + 1 / std::log2(12) + 1 / std::log2(21)) / 8);
  EXPECT_DOUBLE_EQ(mean.mrr10, (1 + 1 / 3.0 + 0.1) / 8);
  EXPECT_DOUBLE_EQ(mean.mrr20, (1 + 1 / 3.0 + 0.1 + 1 / 11.0 + 0.05) / 8);
}

TEST(RankingMeter, IsZeroWithoutUsers) { EXPECT_EQ(RankingMeter().Mean().ndcg10, 0); }

TEST(BucketMeter, SortsByTheLowerBorder) {
  BucketMeter meter(HistoryBuckets());
  meter.Add(0, 1);
  meter.Add(4, 0);
  meter.Add(5, 2);
  meter.Add(9, 1);
  meter.Add(1'000'000, 1);
  const auto means = meter.Means();
  ASSERT_EQ(means.size(), HistoryBuckets().size());
  EXPECT_EQ(means[0].label, "1-4 events");
  EXPECT_EQ(means[0].metrics.users, 2);
  EXPECT_DOUBLE_EQ(means[0].metrics.hr10, 0.5);
  EXPECT_EQ(means[1].metrics.users, 2);
  EXPECT_DOUBLE_EQ(means[1].metrics.mrr10, 0.75);
  EXPECT_EQ(means[2].metrics.users, 0);
  EXPECT_EQ(means.back().metrics.users, 1);
}

TEST(BucketMeter, BucketsFollowEachOtherWithoutHoles) {
  for (const auto* buckets : {&HistoryBuckets(), &GapBuckets()}) {
    for (size_t i = 1; i < buckets->size(); ++i) {
      EXPECT_EQ((*buckets)[i].from, (*buckets)[i - 1].below);
    }
  }
}

TEST(Evaluator, SortsUsersByHistoryAndGap) {
  std::vector<RankingCase> cases(3);
  std::vector<std::vector<ScoredItem>> top(3, {{7, 2.0f}, {8, 1.0f}});
  cases[0] = {std::vector<FoldEvent>(3), 7, 0, 0};
  cases[1] = {std::vector<FoldEvent>(3), 8, 0, 59'999};
  cases[2] = {std::vector<FoldEvent>(12), 9, 0, 366LL * 86'400'000};
  const RankingResult result = MeterRanking(cases, top);
  EXPECT_EQ(result.metrics.users, 3);
  EXPECT_EQ(result.by_history[0].metrics.users, 2);
  EXPECT_DOUBLE_EQ(result.by_history[0].metrics.mrr10, 0.75);
  EXPECT_EQ(result.by_history[2].metrics.users, 1);
  EXPECT_EQ(result.by_gap[0].metrics.hr10, 1);
  EXPECT_EQ(result.by_gap[1].metrics.mrr20, 0.5);
  EXPECT_EQ(result.by_gap.back().metrics.users, 1);
  EXPECT_EQ(result.by_gap.back().metrics.hr20, 0);
}

TEST(Evaluator, DoesNotDependOnThreads) {
  const auto engine = TinyEngine();
  const auto cases = RandomCases(engine->config(), 150);
  RankingOptions one, three;
  one.threads = 1;
  three.threads = 3;
  size_t last = 0;
  three.progress = [&](size_t done) {
    EXPECT_GT(done, last);
    last = done;
  };
  const auto a = EvaluateRanking(*engine, cases, one);
  const auto b = EvaluateRanking(*engine, cases, three);
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  EXPECT_EQ(last, cases.size());
  EXPECT_EQ(a->metrics.ndcg20, b->metrics.ndcg20);
  EXPECT_GT(a->metrics.hr20, 0);
  for (size_t i = 0; i < cases.size(); ++i) {
    ASSERT_EQ(a->top[i].size(), 20u);
    for (int j = 0; j < 20; ++j) EXPECT_EQ(a->top[i][j].item, b->top[i][j].item);
  }
}

TEST(Evaluator, RanksByPopularityWithoutHistoryAndMissesUnknownTargets) {
  const auto engine = TinyEngine();
  const int32_t popular = engine->catalog().by_popularity()[0];
  std::vector<RankingCase> cases(2);
  cases[0].target = popular;
  cases[1].target = 0;
  const auto result = EvaluateRanking(*engine, cases, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->top[0][0].item, popular);
  EXPECT_DOUBLE_EQ(result->metrics.hr10, 0.5);
  EXPECT_DOUBLE_EQ(result->metrics.ndcg10, 0.5);
}

TEST(Evaluator, GivesSlotsBackOnFailure) {
  const auto engine = TinyEngine();
  std::vector<RankingCase> cases = RandomCases(engine->config(), 3);
  cases[1].history[0].item = 1'000'000;
  EXPECT_FALSE(EvaluateRanking(*engine, cases, {}).ok());
  const auto slot = engine->backend().Allocate();
  ASSERT_TRUE(slot.ok());
  EXPECT_LT(*slot, 3);
}

}  // namespace
}  // namespace tim4rec
