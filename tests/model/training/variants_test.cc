// What the trainer does for each variant: the published model and the baseline SASRec.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "model/backends/builtin.h"
#include "model/evaluation/evaluator.h"
#include "model/reference/dropout.h"
#include "model/reference/published_model.h"
#include "model/reference/sasrec_model.h"
#include "model/training/export.h"
#include "model/training/sequence_model.h"
#include "model/training/torch_ranking.h"
#include "model/training/trainer.h"
#include "model/training/windows.h"
#include "tests/model/training/synthetic.h"
#include "tests/model/training/temporary.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 11;

class Variants : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path =
        directory_.Write("data.inter", SyntheticInteractions(40, 20, 15, kSeed));
    auto data = BuildDataset(*ReadInteractions(path, {}), 2, {});
    ASSERT_TRUE(data.ok()) << data.status();
    data_ = *std::move(data);
    config_.n_items = static_cast<int64_t>(data_.items.size());
    config_.hidden_size = 16;
    config_.d_state = 8;
    config_.head_dim = 8;
    config_.max_item_list_length = 8;
    config_.time = FitTimeConstants(data_);
    options_.epochs = 4;
    options_.warmup_steps = 5;
    options_.batch_events = 128;
    options_.batch_windows = 32;
    options_.max_length = 8;
    options_.learning_rate = 1e-2;
    hooks_.epoch = [this](const EpochReport& report) { losses_.push_back(report.loss); };
    hooks_.validate = [this](const TrainedTensors& tensors) { return Measure(tensors); };
  }

  absl::StatusOr<RankingMetrics> Measure(const TrainedTensors& tensors) {
    const auto catalog = ItemCatalog::Create(data_.items);
    if (!catalog.ok()) return catalog.status();
    const auto cases = MakeRankingCases(data_, *catalog, Split::kValid, true);
    absl::StatusOr<RankingResult> result;
    if (!options_.served()) {
      result = EvaluateWithTorch(data_, config_, options_, tensors, cases);
    } else {
      auto package = ModelPackage::FromContents(ToContents(data_, config_, tensors));
      if (!package.ok()) return package.status();
      const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
      if (!engine.ok()) return engine.status();
      result = EvaluateRanking(**engine, cases, {});
    }
    if (!result.ok()) return result.status();
    return result->metrics;
  }

  // Learns, and gives the same bits twice and when resumed.
  TrainResult LearnsAndRepeats(double hr10) {
    const auto first = Train(data_, config_, options_, hooks_);
    EXPECT_TRUE(first.ok()) << first.status();
    if (!first.ok()) return {};
    EXPECT_EQ(losses_.size(), 4u);
    EXPECT_LT(losses_.back(), losses_.front() - 0.3);
    EXPECT_GT(first->valid.hr10, hr10);
    EXPECT_EQ(first->curve.size(), 4u);
    EXPECT_EQ(first->curve.back().loss, losses_.back());
    options_.checkpoint = directory_.path("checkpoint");
    struct Killed {};
    TrainHooks dying = hooks_;
    dying.step = [](const StepReport& report) {
      if (report.epoch == 2) throw Killed();
    };
    EXPECT_THROW((void)Train(data_, config_, options_, dying), Killed);
    options_.resume = true;
    const auto resumed = Train(data_, config_, options_, hooks_);
    EXPECT_TRUE(resumed.ok()) << resumed.status();
    if (resumed.ok()) {
      EXPECT_EQ(resumed->tensors, first->tensors);
      EXPECT_EQ(resumed->curve.size(), 4u);
      EXPECT_EQ(resumed->curve.front().loss, first->curve.front().loss);
    }
    return *first;
  }

  TemporaryDirectory directory_;
  Dataset data_;
  ModelConfig config_;
  TrainOptions options_;
  TrainHooks hooks_;
  std::vector<double> losses_;
};

TEST_F(Variants, PublishedLearnsRepeatsAndIsServed) {
  config_.variant = Variant::kPublished;
  for (const bool is_time : {true, false}) {
    config_.is_time = config_.p2p_residual = is_time;
    losses_.clear();
    options_.checkpoint.clear();
    options_.resume = false;
    const TrainResult trained = LearnsAndRepeats(0.6);
    const auto contents = MakePackage(data_, config_, trained.tensors, "{}");
    ASSERT_TRUE(contents.ok()) << contents.status();
    EXPECT_EQ(contents->probe.size(), 8u);
    ASSERT_TRUE(WritePackage(directory_.path("model"), *contents).ok());
    auto package = ModelPackage::Open(directory_.path("model"));
    ASSERT_TRUE(package.ok()) << package.status();
    // Starting an engine checks the probe.
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    EXPECT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ(trained.valid.ndcg10, Measure(trained.tensors)->ndcg10);
  }
}

TEST_F(Variants, SasrecLearnsAndRepeats) {
  options_.sasrec = true;
  LearnsAndRepeats(0.6);
}

TEST_F(Variants, QueryFeaturesLearnAndRepeat) {
  options_.query = {.calendar = true, .trend = true, .age = true};
  const TrainResult trained = LearnsAndRepeats(0.6);
  ASSERT_TRUE(trained.tensors.contains("query_term_weights"));
  const auto& weights = trained.tensors.at("query_term_weights").second;
  // Farther from its start, 0.5, than the common rate takes it: 0.01 at most in each of some 25
  // steps.
  EXPECT_GT(std::abs(weights[0] - 0.5F), 0.3F);
  EXPECT_NE(weights[1], 0);
}

TEST_F(Variants, TheTrendLearnsRepeatsAndIsServed) {
  options_.query.trend = true;
  const TrainResult trained = LearnsAndRepeats(0.6);
  const auto contents = MakePackage(data_, config_, trained.tensors, "{}");
  ASSERT_TRUE(contents.ok()) << contents.status();
  ASSERT_TRUE(contents->trend);
  EXPECT_EQ(contents->trend->weight, trained.tensors.at("query_term_weights").second[0]);
  ASSERT_TRUE(WritePackage(directory_.path("model"), *contents).ok());
  auto package = ModelPackage::Open(directory_.path("model"));
  ASSERT_TRUE(package.ok()) << package.status();
  const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto cases = MakeRankingCases(data_, (*engine)->catalog(), Split::kValid, true);
  EXPECT_EQ(EvaluateRanking(**engine, cases, {})->metrics.ndcg10, trained.valid.ndcg10);
}

TEST_F(Variants, SasrecNeedsHeadsThatDivideTheWidth) {
  options_.sasrec = true;
  options_.attention_heads = 3;
  const auto status = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("attention heads is 3"));
}

TEST_F(Variants, SasrecListsAreItsScoresInOrder) {
  options_.sasrec = true;
  options_.epochs = 1;
  const auto trained = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(trained.ok()) << trained.status();
  const auto catalog = ItemCatalog::Create(data_.items);
  const auto cases = MakeRankingCases(data_, *catalog, Split::kTest, true);
  const auto all = EvaluateWithTorch(data_, config_, options_, trained->tensors, cases);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->top.size(), cases.size());
  EXPECT_EQ(all->top[0].size(), 20u);
  for (size_t i = 0; i < cases.size(); i += 7) {
    // Alone, and by its last events alone, a history gives the same list.
    RankingCase tail = cases[i];
    tail.history.erase(tail.history.begin(), tail.history.end() - options_.max_length);
    const auto alone = EvaluateWithTorch(data_, config_, options_, trained->tensors, {&tail, 1});
    ASSERT_TRUE(alone.ok()) << alone.status();
    std::set<int32_t> items;
    for (size_t k = 0; k < 20; ++k) {
      EXPECT_NEAR(alone->top[0][k].score, all->top[i][k].score, 1e-4);
      if (k > 0) {
        EXPECT_LE(all->top[i][k].score, all->top[i][k - 1].score);
      }
      items.insert(all->top[i][k].item);
    }
    EXPECT_EQ(items.size(), 20u);
    EXPECT_FALSE(items.contains(0));
  }
}

TEST(Sasrec, IsCausal) {
  torch::manual_seed(kSeed);
  SasrecModel model(SasrecConfig{.n_items = 30, .hidden_size = 16, .max_length = 12});
  model->eval();
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) parameter.add_(torch::randn_like(parameter) * 0.2);
  const auto items = torch::randint(1, 30, {2, 12}, torch::kInt64);
  const auto before = model->forward(items);
  for (const int64_t changed : {0, 5, 11}) {
    auto other = items.clone();
    other.select(1, changed).copy_(items.select(1, changed) % 29 + 1);
    const auto after = model->forward(other);
    EXPECT_TRUE(before.slice(1, 0, changed).equal(after.slice(1, 0, changed))) << changed;
    EXPECT_FALSE(before.slice(1, changed).allclose(after.slice(1, changed))) << changed;
  }
  // Padding on the right changes nothing but rounding.
  auto padded = items.clone();
  padded.slice(1, 7).zero_();
  EXPECT_TRUE(model->forward(items.slice(1, 0, 7))
                  .allclose(model->forward(padded).slice(1, 0, 7), 1e-4, 1e-5));
}

TEST(PublishedModel, LastOutputsAreThoseOfAllPositions) {
  torch::manual_seed(kSeed);
  for (const bool is_time : {true, false}) {
    ModelConfig config;
    config.variant = Variant::kPublished;
    config.n_items = 30;
    config.hidden_size = 16;
    config.head_dim = 8;
    config.is_time = is_time;
    config.max_item_list_length = 12;
    PublishedModel model(config);
    model->to(torch::kFloat64);
    model->eval();
    const auto items = torch::randint(1, 30, {5, 9}, torch::kInt64);
    const auto last = torch::tensor({8, 0, 3, 8, 5}, torch::kInt64);
    auto whole = torch::zeros({5, 12}, torch::kInt64);
    auto seconds = torch::zeros({5, 12}, torch::kFloat64);
    for (int64_t row = 0; row < 5; ++row) {
      for (int64_t i = 0; i <= last[row].item<int64_t>(); ++i) {
        whole[row][i] = items[row][i];
        seconds[row][i] = 1.6e9 + 1e5 * static_cast<double>(i * i);
      }
    }
    const auto all = model->forward(whole, seconds);
    const auto expected = AtLast(all, last).squeeze(1);
    const auto actual = model->LastOutputs(whole.slice(1, 0, 9), seconds, last);
    EXPECT_TRUE(torch::allclose(actual, expected, 1e-10, 1e-12)) << is_time;
    // Gradients too.
    const auto weights = torch::randn_like(expected);
    const auto parameters = model->parameters();
    const auto gradients = [&](const torch::Tensor& outputs) {
      return torch::autograd::grad({outputs}, parameters, {weights}, c10::nullopt,
                                   /*create_graph=*/false, /*allow_unused=*/true);
    };
    const auto of_all = gradients(expected), of_last = gradients(actual);
    for (size_t i = 0; i < parameters.size(); ++i) {
      ASSERT_EQ(of_last[i].defined(), of_all[i].defined()) << "parameter " << i;
      if (!of_all[i].defined()) continue;  // the last layer's part of the next one's time
      EXPECT_TRUE(torch::allclose(of_last[i], of_all[i], 1e-8, 1e-10)) << "parameter " << i;
    }
  }
}

TEST(Dropout, KeepsTheExpectedValueAndRepeats) {
  Dropout dropout(0.3);
  const auto x = torch::full({1001, 77}, 2.0, torch::requires_grad());
  torch::manual_seed(kSeed);
  const auto first = dropout(x);
  const auto dropped = (first == 0).to(torch::kFloat64);
  EXPECT_NEAR(dropped.mean().item<double>(), 0.3, 0.01);
  // Neighbours, which share a random number, are dropped independently.
  EXPECT_NEAR((dropped.slice(1, 1) * dropped.slice(1, 0, 76)).mean().item<double>(), 0.09, 0.01);
  EXPECT_NEAR(first.max().item<double>(), 2 / 0.7, 1e-4);
  first.sum().backward();
  EXPECT_TRUE(torch::equal(x.grad() * 2, first));
  torch::manual_seed(kSeed);
  EXPECT_TRUE(torch::equal(dropout(x), first));
  dropout->eval();
  EXPECT_TRUE(torch::equal(dropout(x), x));
}

TEST_F(Variants, PrefixWindowsPredictEveryTrainingEventOnceFromTheEventsBeforeIt) {
  std::mt19937_64 rng(kSeed);
  const auto batches = MakePrefixBatches(data_, 8, 32, &rng);
  std::set<std::pair<int32_t, int32_t>> targets;
  size_t windows = 0;
  for (const Batch& batch : batches) {
    EXPECT_LE(batch.size(), 32u);
    for (const Window& window : batch) {
      ++windows;
      targets.insert({window.user, window.end});
      EXPECT_EQ(window.begin, std::max(0, window.end - 8));
      EXPECT_LT(window.end, data_.users[window.user].train_size());
    }
  }
  size_t expected = 0;
  for (const UserHistory& history : data_.users) expected += history.train_size() - 1;
  EXPECT_EQ(windows, expected);
  EXPECT_EQ(targets.size(), expected);

  const BatchTensors tensors =
      MakeBatchTensors(data_, batches[0], {.last_only = true, .window = 8}, 1000);
  ASSERT_EQ(tensors.positions.numel(), 32);
  const int64_t length = tensors.items.size(1);
  int64_t longest = 0, shortest = 8;
  for (const Window& window : batches[0]) {
    longest = std::max<int64_t>(longest, window.size());
    shortest = std::min<int64_t>(shortest, window.size());
  }
  EXPECT_EQ(length, longest);
  EXPECT_LE(longest - shortest, 1);  // 40 users have 40 windows of each length
  EXPECT_EQ(tensors.seconds.sizes(), (torch::IntArrayRef{32, 8}));
  for (int64_t row = 0; row < 32; ++row) {
    const Window& window = batches[0][row];
    const UserHistory& history = data_.users[window.user];
    EXPECT_EQ(tensors.positions[row].item<int64_t>(), row * length + window.size() - 1);
    EXPECT_EQ(tensors.last[row].item<int64_t>(), window.size() - 1);
    EXPECT_EQ(tensors.targets[row].item<int64_t>(), history.items[window.end]);
    EXPECT_EQ(tensors.seconds[row][0].item<double>(), history.timestamps_ms[window.begin] / 1000.0);
    if (window.size() < 8) {
      EXPECT_EQ(tensors.seconds[row][7].item<double>(), 0);
    }
  }
}

}  // namespace
}  // namespace tim4rec
