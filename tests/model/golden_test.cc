// The published model against the golden vectors, and against a naive recurrence for other
// hyper-parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdio>

#include "model/reference/published_model.h"
#include "model/reference/reference.h"
#include "model/reference/tensors.h"
#include "tests/model/float64_model.h"
#include "tests/model/golden_case.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

torch::Tensor ToTensor(const SafeTensor& tensor) {
  void* data = const_cast<std::byte*>(tensor.bytes.data());
  const auto dtype = tensor.dtype == DType::kF32   ? torch::kFloat32
                     : tensor.dtype == DType::kF64 ? torch::kFloat64
                                                   : torch::kInt64;
  return torch::from_blob(data, tensor.shape, dtype);
}

// Of the worst row.
double WorstRowError(const torch::Tensor& actual, const torch::Tensor& expected) {
  const auto a = actual.to(torch::kFloat64).flatten(1);
  const auto b = expected.to(torch::kFloat64).flatten(1);
  return ((a - b).norm(2, {1}) / b.norm(2, {1})).max().item<double>();
}

struct Errors {
  double query = 0, hidden = 0, time = 0;
  bool same_top = false;
};

Errors Compare(const GoldenCase& golden, torch::ScalarType dtype) {
  torch::NoGradGuard no_grad;
  PublishedModel model(golden.contents.config);
  const absl::Status imported = ImportTensors(golden.contents.tensors, &model);
  EXPECT_TRUE(imported.ok()) << imported;
  model->to(dtype);
  model->eval();
  std::vector<TimedOutput> layers;
  const auto outputs = model->forward(ToTensor(golden.expected.at("item_seq")),
                                      ToTensor(golden.expected.at("timestamps")), &layers);
  const auto last = ToTensor(golden.expected.at("item_seq_len")) - 1;
  const auto query = outputs.index({torch::arange(outputs.size(0)), last});
  Errors errors;
  errors.query = WorstRowError(query, ToTensor(golden.expected.at("seq_output_f64")));
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string layer = "layer" + std::to_string(i);
    const auto& hidden = golden.expected.at(layer + ".hidden_f64");
    errors.hidden =
        std::max(errors.hidden, WorstRowError(layers[i].hidden.slice(0, 0, 2), ToTensor(hidden)));
    if (!golden.contents.config.is_time) continue;
    const auto& time = golden.expected.at(layer + ".time_f64");
    errors.time =
        std::max(errors.time, WorstRowError(layers[i].time.slice(0, 0, 2), ToTensor(time)));
  }
  const auto scores = query.matmul(model->item_vectors().t());
  errors.same_top = std::get<1>(scores.topk(20)).equal(ToTensor(golden.expected.at("top20_items")));
  return errors;
}

TEST(PublishedModel, ReproducesTheGoldenVectors) {
  const auto dirs = GoldenCaseDirs();
  if (dirs.empty()) GTEST_SKIP() << "no golden vectors in " << GoldenRoot();
  std::printf("%-20s %8s %12s %12s %12s\n", "case", "dtype", "query", "hidden", "time");
  for (const std::string& dir : dirs) {
    const GoldenCase golden = LoadGoldenCase(dir);
    for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
      const Errors errors = Compare(golden, dtype);
      std::printf("%-20s %8s %12.2e %12.2e %12.2e\n", golden.name.c_str(), torch::toString(dtype),
                  errors.query, errors.hidden, errors.time);
      const double bound = dtype == torch::kFloat64 ? 1e-6 : 5e-6;
      EXPECT_LT(errors.query, bound) << golden.name;
      EXPECT_LT(errors.hidden, bound) << golden.name;
      EXPECT_LT(errors.time, bound) << golden.name;
      EXPECT_TRUE(errors.same_top) << golden.name;
    }
  }
}

TEST(PublishedReference, ReproducesTheGoldenVectorsFromHistories) {
  const auto dirs = GoldenCaseDirs();
  if (dirs.empty()) GTEST_SKIP() << "no golden vectors in " << GoldenRoot();
  for (const std::string& dir : dirs) {
    const GoldenCase golden = LoadGoldenCase(dir);
    const auto reference = Reference::Create(golden.contents.config, golden.contents.tensors);
    ASSERT_TRUE(reference.ok()) << reference.status();
    for (int64_t row = 0; row < golden.batch(); ++row) {
      const auto query = (*reference)->Query(golden.Items(row), golden.TimestampsMs(row), 0);
      ASSERT_TRUE(query.ok()) << query.status();
      EXPECT_LT(RelativeError(*query, golden.Query(row)), 1e-6) << golden.name << " " << row;
      EXPECT_EQ((*reference)->TopItems(*query, 20), golden.TopItems(row));
    }
  }
}

TEST(PublishedReference, EqualsTheNaiveRecurrence) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const ModelConfig config = RandomPublishedConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto reference = Reference::Create(config, contents.tensors);
    ASSERT_TRUE(reference.ok()) << reference.status();
    const Float64Model naive(contents);
    for (const int64_t length : {1, 3, 11, 30}) {  // windows hold 5 to 20
      const History history = RandomHistory(config, length, seed);
      const auto query = (*reference)->Query(history.items, history.timestamps_ms, 0);
      ASSERT_TRUE(query.ok()) << query.status();
      EXPECT_LT(RelativeError(*query, naive.Query(history.items, history.timestamps_ms, 0)), 1e-9)
          << "seed " << seed << ", length " << length << "\n"
          << config.ToJson();
    }
  }
}

TEST(PublishedReference, OutputsAreTheQueriesOfPrefixes) {
  for (uint64_t seed = 50; seed < 58; ++seed) {
    const ModelConfig config = RandomPublishedConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto reference = Reference::Create(config, contents.tensors);
    ASSERT_TRUE(reference.ok()) << reference.status();
    const History history = RandomHistory(config, 23, seed);
    const auto outputs = (*reference)->Outputs(history.items, history.timestamps_ms);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    const size_t d = static_cast<size_t>(config.hidden_size);
    for (const size_t length : {1, 9, 23}) {
      const auto query = (*reference)
                             ->Query(std::span(history.items).first(length),
                                     std::span(history.timestamps_ms).first(length), 7);
      ASSERT_TRUE(query.ok()) << query.status();
      EXPECT_LT(RelativeError(std::span(*outputs).subspan((length - 1) * d, d), *query), 1e-11)
          << "seed " << seed;
    }
  }
}

TEST(PublishedReference, NamesEveryTensorFault) {
  const ModelConfig config = RandomPublishedConfig(3);
  PackageContents contents = MakeTinyModel(config, 3);
  contents.tensors.erase("ssd_layers.0.ssd.D");
  contents.tensors["in_layer_norm.bias"].first = {1};
  contents.tensors["extra"] = {{1}, {0}};
  const auto reference = Reference::Create(config, contents.tensors);
  EXPECT_EQ(reference.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(reference.status().message()),
              testing::AllOf(testing::HasSubstr("ssd_layers.0.ssd.D is missing"),
                             testing::HasSubstr("in_layer_norm.bias has the shape [1]"),
                             testing::HasSubstr("extra is unknown")));
}

}  // namespace
}  // namespace tim4rec
