// What a model knows of a query's time besides the gap before it: trend, age, calendar.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/backends/builtin.h"
#include "model/evaluation/evaluator.h"
#include "model/training/export.h"
#include "model/training/query_terms.h"
#include "model/training/sequence_model.h"
#include "model/training/softmax_loss.h"
#include "model/training/torch_ranking.h"
#include "model/training/trainer.h"
#include "model/training/windows.h"
#include "model/weights/item_timeline.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 17;
constexpr int64_t kDayMs = 86'400'000;

// Users of 1 to 12 events on random days from before 1970 on; the last items are held out only.
Dataset RandomData(uint64_t seed) {
  std::mt19937_64 random(seed);
  Dataset data;
  data.items.resize(26);
  for (size_t i = 1; i < data.items.size(); ++i) data.items[i].id = absl::StrCat("i", i);
  for (int user = 0; user < 40; ++user) {
    UserHistory history;
    history.user = absl::StrCat("u", user);
    int64_t time = static_cast<int64_t>(random() % 60) * kDayMs - 30 * kDayMs;
    for (uint64_t i = 0, events = 1 + random() % 12; i < events; ++i) {
      history.items.push_back(static_cast<int32_t>(1 + random() % 20));
      history.timestamps_ms.push_back(time);
      time += static_cast<int64_t>(random() % (random() % 3 == 0 ? 20 * kDayMs : kDayMs / 4));
    }
    if (history.evaluated()) history.items.back() = static_cast<int32_t>(21 + random() % 5);
    data.n_events += history.size();
    data.users.push_back(std::move(history));
  }
  return data;
}

double FloorDay(int64_t ms) { return std::floor(static_cast<double>(ms) / kDayMs); }

TEST(ItemTimeline, EqualsACountOfTheTrainingEvents) {
  for (uint64_t seed = kSeed; seed < kSeed + 5; ++seed) {
    const Dataset data = RandomData(seed);
    const ItemTimeline timeline = TimelineOf(data);
    ASSERT_EQ(timeline.n_items(), 26);
    std::vector<float> trend(26), age(26);
    for (int64_t day = -40; day < 120; day += 3) {
      std::vector<double> count(26, 0), first(26, std::numeric_limits<double>::infinity());
      for (const UserHistory& history : data.users) {
        for (int64_t i = 0; i < history.train_size(); ++i) {
          const double on = FloorDay(history.timestamps_ms[i]);
          const int32_t item = history.items[i];
          if (on < day) count[item] += std::pow(0.5, (static_cast<double>(day) - on) / 15);
          first[item] = std::min(first[item], on);
        }
      }
      timeline.Trend(day, trend);
      timeline.Age(day, age);
      for (int item = 0; item < 26; ++item) {
        EXPECT_NEAR(trend[item], std::log(1 + count[item]), 1e-5) << "seed " << seed;
        const double since = static_cast<double>(day) - first[item];
        EXPECT_NEAR(age[item], since >= 0 ? std::log(1 + since) : -1, 1e-5) << "seed " << seed;
      }
    }
  }
}

TEST(ItemTimeline, DoesNotSeeHeldOutEvents) {
  const Dataset data = RandomData(kSeed);
  Dataset changed = data;
  for (UserHistory& history : changed.users) {
    for (int64_t i = history.train_size(); i < history.size(); ++i) {
      history.items[i] = 1;
      history.timestamps_ms[i] = history.timestamps_ms[i - 1];
    }
  }
  const ItemTimeline before = TimelineOf(data), after = TimelineOf(changed);
  std::vector<float> a(26), b(26);
  for (int64_t day = -40; day < 120; ++day) {
    before.Trend(day, a);
    after.Trend(day, b);
    EXPECT_EQ(a, b);
    before.Age(day, a);
    after.Age(day, b);
    EXPECT_EQ(a, b);
  }
}

TEST(QueryTerms, AreTheSameWhateverIsKept) {
  const Dataset data = RandomData(kSeed);
  const ItemTimeline timeline = TimelineOf(data);
  const auto times = torch::randint(-30 * kDayMs, 90 * kDayMs, {50}, torch::kInt64);
  torch::nn::Module large_module, small_module;
  QueryTerms large(data, {.trend = true, .age = true}, &large_module);
  QueryTerms small(data, {.trend = true, .age = true}, &small_module, /*cache_floats=*/1);
  const ScoreTerms terms = large.At(times);
  EXPECT_EQ(terms.weights.size(0), 2);
  const TermBlock block = terms.block(7, 40);
  EXPECT_TRUE(block.values.equal(small.At(times).block(7, 40).values));
  std::vector<float> row(26);
  for (int64_t i = 7; i < 40; ++i) {
    timeline.Trend(DayOf(times[i].item<int64_t>()), row);
    EXPECT_TRUE(block.values[0][i - 7].equal(torch::tensor(row)));
    timeline.Age(DayOf(times[i].item<int64_t>()), row);
    EXPECT_TRUE(block.values[1][i - 7].equal(torch::tensor(row)));
    EXPECT_TRUE(block.excluded[i - 7].equal(torch::tensor(row) < 0));
  }
}

TEST(SoftmaxLoss, WithTermsEqualsAutograd) {
  torch::manual_seed(kSeed);
  const auto options = torch::TensorOptions(torch::kFloat64).requires_grad(true);
  const auto queries = torch::randn({23, 6}, options), table = torch::randn({11, 6}, options);
  const auto weights = torch::tensor({0.7, -0.3}, options);
  const auto values = torch::randn({2, 23, 11}, torch::kFloat64);
  const auto targets = torch::randint(1, 11, {23}, torch::kInt64);
  auto excluded = torch::rand({23, 11}) < 0.3;
  excluded.scatter_(1, targets.unsqueeze(1), false);
  const auto scores = (queries.mm(table.t()) + (weights.reshape({2, 1, 1}) * values).sum(0))
                          .masked_fill(excluded, -std::numeric_limits<double>::infinity());
  const auto loss = torch::nn::functional::cross_entropy(scores.slice(1, 1), targets - 1);
  loss.backward();
  const ScoreTerms terms = {
      weights.detach(), [&](int64_t begin, int64_t end) {
        return TermBlock{values.slice(1, begin, end), excluded.slice(0, begin, end)};
      }};
  for (const int64_t block : {1, 50, 1000}) {
    const auto blocked = FullSoftmaxLoss(queries.detach(), table.detach(), targets, block, terms);
    EXPECT_NEAR(blocked.loss, loss.item<double>(), 1e-12) << "block " << block;
    EXPECT_TRUE(torch::allclose(blocked.query_gradient, queries.grad(), 1e-9, 1e-12));
    EXPECT_TRUE(torch::allclose(blocked.table_gradient, table.grad(), 1e-9, 1e-12));
    EXPECT_TRUE(torch::allclose(blocked.weight_gradient, weights.grad(), 1e-9, 1e-12));
  }
}

class QueryTime : public ::testing::Test {
 protected:
  void SetUp() override {
    data_ = RandomData(kSeed);
    config_.n_items = static_cast<int64_t>(data_.items.size());
    config_.hidden_size = 16;
    config_.d_state = 8;
    config_.head_dim = 8;
    config_.time_hidden = 4;
    config_.time = FitTimeConstants(data_);
    torch::manual_seed(kSeed);
  }

  // Weights of a fresh model, none of them at a neutral start.
  TrainedTensors Weights() {
    const auto model = MakeSequenceModel(data_, config_, options_);
    std::mt19937_64 random(kSeed);
    TrainedTensors tensors;
    for (const auto& parameter : model->module().named_parameters()) {
      const auto value = parameter.value().detach();
      std::vector<float> numbers(value.data_ptr<float>(), value.data_ptr<float>() + value.numel());
      for (float& number : numbers) number += static_cast<float>(random() % 1000) / 2000 - 0.25F;
      tensors[parameter.key()] = {value.sizes().vec(), std::move(numbers)};
    }
    return tensors;
  }

  RankingResult Evaluate(const Dataset& data, const TrainedTensors& tensors, bool query_time) {
    const auto catalog = ItemCatalog::Create(data.items);
    const auto cases = MakeRankingCases(data, *catalog, Split::kTest, query_time);
    auto result = EvaluateWithTorch(data, config_, options_, tensors, cases);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  Dataset data_;
  ModelConfig config_;
  TrainOptions options_;
};

TEST_F(QueryTime, TorchRanksAsTheEngineDoes) {
  for (const bool trend : {false, true}) {
    options_.query.trend = trend;
    const TrainedTensors tensors = Weights();
    auto package = ModelPackage::FromContents(ToContents(data_, config_, tensors));
    ASSERT_TRUE(package.ok()) << package.status();
    ASSERT_EQ((*package)->trend() != nullptr, trend);
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    ASSERT_TRUE(engine.ok()) << engine.status();
    const auto cases = MakeRankingCases(data_, (*engine)->catalog(), Split::kTest, true);
    const auto served = EvaluateRanking(**engine, cases, {});
    ASSERT_TRUE(served.ok()) << served.status();
    const RankingResult ranked = Evaluate(data_, tensors, true);
    ASSERT_EQ(ranked.top.size(), served->top.size());
    for (size_t i = 0; i < ranked.top.size(); ++i) {
      ASSERT_EQ(ranked.top[i].size(), 20u);
      for (size_t k = 0; k < 20; ++k) {
        EXPECT_NEAR(ranked.top[i][k].score, served->top[i][k].score, 1e-4) << i << " " << k;
      }
    }
  }
}

TEST_F(QueryTime, TermsAreAddedToTheScoresAndLaterItemsLeftOut) {
  options_.query = {.trend = true, .age = true};
  TrainedTensors tensors = Weights();
  auto& weights = tensors.at("query_term_weights").second;
  weights = {0.8F, -0.4F};
  const RankingResult with = Evaluate(data_, tensors, true);
  options_.query = {};
  tensors.erase("query_term_weights");
  const RankingResult without = Evaluate(data_, tensors, true);

  const ItemTimeline timeline = TimelineOf(data_);
  std::vector<float> trend(26), age(26);
  size_t user = 0, left_out = 0;
  for (const UserHistory& history : data_.users) {
    if (!history.evaluated()) continue;
    timeline.Trend(DayOf(history.timestamps_ms.back()), trend);
    timeline.Age(DayOf(history.timestamps_ms.back()), age);
    std::map<int32_t, float> plain;
    for (const ScoredItem& scored : without.top[user]) plain[scored.item] = scored.score;
    for (const ScoredItem& scored : with.top[user]) {
      EXPECT_GE(age[scored.item], 0);
      if (!plain.contains(scored.item)) continue;
      EXPECT_NEAR(scored.score,
                  plain[scored.item] + 0.8F * trend[scored.item] - 0.4F * age[scored.item], 1e-4);
    }
    left_out += 20 - with.top[user].size();
    ++user;
  }
  EXPECT_GT(left_out, 0u);
}

TEST_F(QueryTime, AHeldOutEventDoesNotChangeOthersLists) {
  options_.query = {.calendar = true, .trend = true, .age = true};
  const TrainedTensors tensors = Weights();
  const RankingResult before = Evaluate(data_, tensors, true);
  size_t users = 0, changed_user = 0;
  Dataset changed = data_;
  for (UserHistory& history : changed.users) {
    if (!history.evaluated() || ++users != 5) continue;
    changed_user = users - 1;
    history.items.back() = 3;
    history.items[history.size() - 2] = 7;
    history.timestamps_ms.back() += 40 * kDayMs;
  }
  const RankingResult after = Evaluate(changed, tensors, true);
  ASSERT_EQ(before.top.size(), after.top.size());
  for (size_t i = 0; i < before.top.size(); ++i) {
    bool same = before.top[i].size() == after.top[i].size();
    for (size_t k = 0; same && k < before.top[i].size(); ++k) {
      same = before.top[i][k].item == after.top[i][k].item &&
             std::abs(before.top[i][k].score - after.top[i][k].score) < 1e-4;
    }
    EXPECT_EQ(same, i != changed_user) << i;
  }
}

TEST_F(QueryTime, CalendarEntersTheGateByHourAndWeekdayInUtc) {
  options_.query.calendar = true;
  const auto model = MakeSequenceModel(data_, config_, options_);
  model->module().eval();
  const torch::NoGradGuard no_grad;
  auto parameters = model->module().named_parameters();
  for (auto& parameter : parameters) parameter.value().add_(torch::randn_like(parameter.value()));
  // 1970-01-01 was a Thursday; 2024-02-26 13:59:59.999 a Monday; 1969-12-31 23:00 a Wednesday.
  const std::vector<std::tuple<int64_t, int64_t, int64_t>> cases = {
      {0, 0, 0}, {1'708'955'999'999, 13, 4}, {-3'600'000, 23, 6}};
  for (const auto& [query_ms, hour, weekday] : cases) {
    RankingCase ranking;
    ranking.history = {{1, query_ms - 5000}, {2, query_ms - 1000}};
    ranking.as_of_ms = query_ms;
    const RankingCase* const one[] = {&ranking};
    const auto batch = MakeRankingTensors(one, 100, config_.time.max_gap_ms);
    const auto query = model->Queries(batch);
    // The other lookups do not matter; those of this hour and weekday do.
    const auto saved_hours = parameters["calendar_hour"].clone();
    const auto saved_days = parameters["calendar_weekday"].clone();
    parameters["calendar_hour"].zero_();
    parameters["calendar_weekday"].zero_();
    EXPECT_FALSE(model->Queries(batch).allclose(query));
    parameters["calendar_hour"][hour].copy_(saved_hours[hour]);
    parameters["calendar_weekday"][weekday].copy_(saved_days[weekday]);
    EXPECT_TRUE(model->Queries(batch).equal(query)) << query_ms;
    parameters["calendar_hour"].copy_(saved_hours);
    parameters["calendar_weekday"].copy_(saved_days);
  }
}

TEST_F(QueryTime, FeaturesNeedWhatTheyEnter) {
  TrainHooks hooks;
  hooks.validate = [](const TrainedTensors&) { return RankingMetrics(); };
  options_.query.calendar = true;
  config_.time_query = false;
  auto status = Train(data_, config_, options_, hooks).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("calendar needs gap"));
  options_.sasrec = true;
  status = Train(data_, config_, options_, hooks).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("are of the streaming variant"));
}

TEST_F(QueryTime, InitialisationsDifferInDecayAlone) {
  config_.hidden_size = 32;  // 8 heads
  const auto start = [&](Initialisation init) {
    options_.init = init;
    torch::manual_seed(kSeed);
    const auto model = MakeSequenceModel(data_, config_, options_);
    std::map<std::string, torch::Tensor> values;
    for (const auto& parameter : model->module().named_parameters()) {
      values[parameter.key()] = parameter.value().detach();
    }
    return values;
  };
  const auto mamba2 = start(Initialisation::kMamba2), hippo = start(Initialisation::kHippo);
  const auto spaced = start(Initialisation::kLogTimescales);
  for (const auto& [name, value] : mamba2) {
    const bool rates = name.ends_with("A_log") || name.ends_with("dt_bias");
    const bool memories = name.ends_with("log_memory_ms");
    EXPECT_EQ(value.equal(hippo.at(name)), !rates) << name;
    EXPECT_EQ(value.equal(spaced.at(name)), !memories) << name;
    if (memories) {
      // The longest gap takes 1 % off.
      const double kept = std::exp(-static_cast<double>(config_.time.max_gap_ms) /
                                   value.exp().min().item<double>());
      EXPECT_NEAR(kept, 0.99, 1e-3);
      EXPECT_GT(spaced.at(name)[7].item<float>(), spaced.at(name)[0].item<float>());
    }
    if (name.ends_with("A_log")) {
      EXPECT_TRUE(hippo.at(name).exp().allclose(torch::arange(1, 9, torch::kFloat32)));
      EXPECT_GE(value.exp().min().item<float>(), 1);
      EXPECT_LE(value.exp().max().item<float>(), 16);
    }
    if (name.ends_with("dt_bias")) {
      // The histories here are shorter than the least length, 10 events.
      EXPECT_TRUE(torch::softplus(hippo.at(name)).allclose(torch::full({8}, 0.1)));
    }
  }
}

}  // namespace
}  // namespace tim4rec
