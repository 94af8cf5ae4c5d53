#include "model/training/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <memory>
#include <string>

#include "model/backends/builtin.h"
#include "model/evaluation/evaluator.h"
#include "model/training/export.h"
#include "model/training/softmax_loss.h"
#include "model/training/windows.h"
#include "tests/model/training/synthetic.h"
#include "tests/model/training/temporary.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 7;

class Training : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path =
        directory_.Write("data.inter", SyntheticInteractions(60, 30, 25, kSeed));
    auto data = BuildDataset(*ReadInteractions(path, {}), 2, {});
    ASSERT_TRUE(data.ok()) << data.status();
    data_ = *std::move(data);
    config_.n_items = static_cast<int64_t>(data_.items.size());
    config_.hidden_size = 16;
    config_.d_state = 8;
    config_.head_dim = 8;
    config_.time_hidden = 4;
    config_.dropout_prob = 0.2;
    config_.time = FitTimeConstants(data_);
    options_.epochs = 4;
    options_.patience = 10;
    options_.warmup_steps = 5;
    options_.batch_events = 128;
    options_.max_length = 16;
    options_.learning_rate = 1e-2;
    options_.checkpoint = directory_.path("checkpoint");
    hooks_.validate = [this](const TrainedTensors& tensors) { return Measure(tensors); };
    hooks_.epoch = [this](const EpochReport& report) { losses_.push_back(report.loss); };
  }

  absl::StatusOr<RankingMetrics> Measure(const TrainedTensors& tensors) {
    PackageContents contents;
    contents.config = config_;
    contents.tensors = tensors;
    contents.items = data_.items;
    auto package = ModelPackage::FromContents(std::move(contents));
    if (!package.ok()) return package.status();
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    if (!engine.ok()) return engine.status();
    const auto cases = MakeRankingCases(data_, (*engine)->catalog(), Split::kValid, true);
    const auto result = EvaluateRanking(**engine, cases, {});
    if (!result.ok()) return result.status();
    return result->metrics;
  }

  TemporaryDirectory directory_;
  Dataset data_;
  ModelConfig config_;
  TrainOptions options_;
  TrainHooks hooks_;
  std::vector<double> losses_;
};

TEST(SoftmaxLoss, EqualsAutograd) {
  torch::manual_seed(kSeed);
  const auto queries = torch::randn({23, 6}, torch::requires_grad());
  const auto table = torch::randn({11, 6}, torch::requires_grad());
  const auto targets = torch::randint(1, 11, {23}, torch::kInt64);
  const auto loss =
      torch::nn::functional::cross_entropy(queries.mm(table.t()).slice(1, 1), targets - 1);
  loss.backward();
  for (const int64_t block : {1, 50, 1000}) {
    const auto blocked = FullSoftmaxLoss(queries.detach(), table.detach(), targets, block);
    EXPECT_NEAR(blocked.loss, loss.item<double>(), 1e-5) << "block " << block;
    EXPECT_TRUE(torch::allclose(blocked.query_gradient, queries.grad(), 1e-4, 1e-6));
    EXPECT_TRUE(torch::allclose(blocked.table_gradient, table.grad(), 1e-4, 1e-6));
  }
}

TEST_F(Training, LearnsAndRepeatsBitForBit) {
  const auto first = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->epochs_run, 4);
  ASSERT_EQ(losses_.size(), 4u);
  EXPECT_LT(losses_[3], losses_[0] - 0.3);
  EXPECT_GT(first->valid.hr10, 0.6);  // 10 of 30 items by chance: 0.33
  EXPECT_EQ(first->valid.ndcg10, Measure(first->tensors)->ndcg10);

  const auto second = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(first->tensors, second->tensors);

  options_.seed = 99;
  const auto other = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(first->tensors, other->tensors);
}

TEST_F(Training, ResumeEqualsAnUninterruptedRun) {
  const auto whole = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(whole.ok()) << whole.status();
  std::filesystem::remove(options_.checkpoint);

  // Stops in the middle of the third epoch, as a kill would.
  struct Killed {};
  hooks_.step = [](const StepReport& report) {
    if (report.epoch == 3 && report.step == 2) throw Killed();
  };
  EXPECT_THROW((void)Train(data_, config_, options_, hooks_), Killed);
  hooks_.step = nullptr;
  losses_.clear();
  options_.resume = true;
  const auto resumed = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(losses_.size(), 2u);
  EXPECT_EQ(resumed->tensors, whole->tensors);
  EXPECT_EQ(resumed->best_epoch, whole->best_epoch);
  EXPECT_EQ(resumed->loss, whole->loss);

  // Nothing is left to do: the same result again.
  losses_.clear();
  const auto again = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(losses_.empty());
  EXPECT_EQ(again->tensors, whole->tensors);
}

TEST_F(Training, RefusesCheckpointsOfOtherRuns) {
  options_.resume = true;
  EXPECT_EQ(Train(data_, config_, options_, hooks_).status().code(), absl::StatusCode::kNotFound);
  options_.resume = false;
  options_.epochs = 1;
  ASSERT_TRUE(Train(data_, config_, options_, hooks_).ok());
  options_.resume = true;
  options_.learning_rate = 0.5;
  data_.users[0].timestamps_ms[1] += 1;
  const auto refused = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("learning rate (checkpoint: 0.01, now: 0.5)"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("data (checkpoint: 60 users"));

  std::filesystem::resize_file(options_.checkpoint, 1000);
  const auto broken = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(broken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.message()), HasSubstr("is not a readable checkpoint"));
}

TEST_F(Training, DevicesThatAreNotThereAreNamed) {
  options_.device = "gpu";
  const auto unknown = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("device is gpu; expected cpu or cuda"));
  options_.device = "cuda";
  options_.epochs = 1;
  const auto trained = Train(data_, config_, options_, hooks_).status();
  if (torch::cuda::is_available()) {
    EXPECT_TRUE(trained.ok()) << trained;
    return;
  }
  EXPECT_EQ(trained.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(trained.message()), HasSubstr("has no CUDA or finds no device"));
  EXPECT_FALSE(std::filesystem::exists(options_.checkpoint));
}

TEST_F(Training, StopsWithAdviceWhenTheLossIsNotFinite) {
  options_.learning_rate = 1e30;
  const auto diverged = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(diverged.code(), absl::StatusCode::kAborted) << diverged;
  EXPECT_THAT(std::string(diverged.message()), HasSubstr("training diverged: the loss is"));
  EXPECT_THAT(std::string(diverged.message()), HasSubstr("lower --lr"));
}

TEST_F(Training, StopsEarlyAndKeepsTheBestEpoch) {
  options_.epochs = 50;
  options_.patience = 2;
  const std::vector<double> accuracies = {0.1, 0.5, 0.3, 0.4, 0.9};
  std::vector<TrainedTensors> seen;
  hooks_.validate = [&](const TrainedTensors& tensors) {
    seen.push_back(tensors);
    RankingMetrics metrics;
    metrics.ndcg10 = accuracies[seen.size() - 1];
    return absl::StatusOr<RankingMetrics>(metrics);
  };
  const auto trained = Train(data_, config_, options_, hooks_);
  ASSERT_TRUE(trained.ok()) << trained.status();
  EXPECT_EQ(trained->epochs_run, 4);
  EXPECT_EQ(trained->best_epoch, 2);
  EXPECT_EQ(trained->tensors, seen[1]);
}

TEST_F(Training, PassesOnAFailedValidationAndACheckpointThatCannotBeWritten) {
  TrainHooks failing = hooks_;
  failing.validate = [](const TrainedTensors&) {
    return absl::StatusOr<RankingMetrics>(absl::DataLossError("broken"));
  };
  EXPECT_EQ(Train(data_, config_, options_, failing).status().message(), "broken");
  options_.checkpoint = directory_.path("absent/checkpoint");
  const auto status = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent/checkpoint"));
}

TEST_F(Training, NamesEveryWrongOption) {
  options_.epochs = 0;
  options_.learning_rate = -1;
  options_.batch_events = 0;
  const auto status = Train(data_, config_, options_, hooks_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* fault : {"epochs is 0", "learning rate is -1", "batch size is 0"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault));
  }
}

TEST_F(Training, MakesPackagesThatPassTheirProbe) {
  for (const bool all : {true, false}) {
    config_.time_write = config_.time_decay = config_.time_query = config_.is_ffn = all;
    config_.num_layers = all ? 2 : 1;
    options_.epochs = 1;
    const auto trained = Train(data_, config_, options_, hooks_);
    ASSERT_TRUE(trained.ok()) << trained.status();
    const auto contents = MakePackage(data_, config_, trained->tensors, "{}");
    ASSERT_TRUE(contents.ok()) << contents.status();
    EXPECT_EQ(contents->probe.size(), 8u);
    EXPECT_EQ(contents->probe[0].items.size(), 1u);
    ASSERT_TRUE(WritePackage(directory_.path("model"), *contents).ok());
    auto package = ModelPackage::Open(directory_.path("model"));
    ASSERT_TRUE(package.ok()) << package.status();
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    EXPECT_TRUE(engine.ok()) << engine.status();
  }
}

}  // namespace
}  // namespace tim4rec
