#include "model/reference/reference.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <vector>

#include "model/backends/builtin.h"
#include "model/engine/engine.h"
#include "model/reference/streaming_model.h"
#include "model/reference/tensors.h"
#include "tests/model/float64_model.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

double RelativeError(const std::vector<double>& actual, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

std::unique_ptr<Reference> MakeReference(const ModelConfig& config, const NamedTensors& tensors) {
  auto reference = Reference::Create(config, tensors);
  EXPECT_TRUE(reference.ok()) << reference.status();
  return *std::move(reference);
}

TEST(StreamingModel, HasTheParametersOfThePackage) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const auto& [name, tensor] : ExportTensors(StreamingModel(config, StreamingInit()))) {
      shapes[name] = tensor.first;
    }
    EXPECT_EQ(shapes, TensorShapes(config)) << "seed " << seed;
  }
}

TEST(MaskedSsd, EqualsTheRecurrence) {
  torch::manual_seed(1);
  const int64_t batch = 2, length = 37, heads = 3, width = 4, states = 5;
  const auto options = torch::TensorOptions(torch::kFloat64);
  const auto x = torch::randn({batch, length, heads, width}, options);
  const auto delta = torch::rand({batch, length, heads}, options);
  // Some decays wipe the state out: their sums must not spoil the small ones after them.
  auto log_decay = -torch::rand({batch, length, heads}, options);
  log_decay = torch::where(torch::rand_like(log_decay) < 0.1, log_decay * 1e6, log_decay);
  const auto b = torch::randn({batch, length, states}, options);
  const auto c = torch::randn({batch, length, states}, options);

  auto state = torch::zeros({batch, heads, width, states}, options);
  std::vector<torch::Tensor> rows;
  for (int64_t t = 0; t < length; ++t) {
    const auto written = (x.select(1, t) * delta.select(1, t).unsqueeze(-1)).unsqueeze(-1) *
                         b.select(1, t).view({batch, 1, 1, states});
    state = state * log_decay.select(1, t).exp().view({batch, heads, 1, 1}) + written;
    rows.push_back((state * c.select(1, t).view({batch, 1, 1, states})).sum(-1));
  }
  const auto expected = torch::stack(rows, 1);
  for (const int64_t chunk : {1, 2, 8, 36, 37, 64}) {
    const auto actual = MaskedSsd(x, delta, log_decay, b, c, chunk);
    EXPECT_LT((actual - expected).abs().max().item<double>(), 1e-8) << "chunk " << chunk;
  }
  const auto floats =
      MaskedSsd(x.to(torch::kFloat32), delta.to(torch::kFloat32), log_decay.to(torch::kFloat32),
                b.to(torch::kFloat32), c.to(torch::kFloat32), 8);
  EXPECT_LT((floats - expected).abs().max().item<double>(), 1e-4);
}

TEST(MaskedSsd, HasTheGradientsOfTheRecurrence) {
  torch::manual_seed(2);
  const auto options = torch::TensorOptions(torch::kFloat64).requires_grad(true);
  const int64_t batch = 2, length = 11, heads = 3, width = 4, states = 5;
  const std::vector<torch::Tensor> inputs = {torch::randn({batch, length, heads, width}, options),
                                             torch::rand({batch, length, heads}, options),
                                             torch::rand({batch, length, heads}, options),
                                             torch::randn({batch, length, states}, options),
                                             torch::randn({batch, length, states}, options)};
  const auto recurrence = [&] {
    auto state = torch::zeros({batch, heads, width, states}, torch::kFloat64);
    std::vector<torch::Tensor> rows;
    for (int64_t t = 0; t < length; ++t) {
      const auto written =
          (inputs[0].select(1, t) * inputs[1].select(1, t).unsqueeze(-1)).unsqueeze(-1) *
          inputs[3].select(1, t).view({batch, 1, 1, states});
      state = state * inputs[2].select(1, t).neg().exp().view({batch, heads, 1, 1}) + written;
      rows.push_back((state * inputs[4].select(1, t).view({batch, 1, 1, states})).sum(-1));
    }
    return torch::stack(rows, 1);
  };
  const auto expected_y = recurrence();
  const auto weights = torch::randn_like(expected_y);
  const auto expected = torch::autograd::grad({expected_y}, inputs, {weights});
  for (const int64_t chunk : {4, 11}) {
    const auto y = MaskedSsd(inputs[0], inputs[1], -inputs[2], inputs[3], inputs[4], chunk);
    const auto actual = torch::autograd::grad({y}, inputs, {weights});
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_LT((actual[i] - expected[i]).abs().max().item<double>(), 1e-10)
          << "chunk " << chunk << ", input " << i;
    }
  }
}

TEST(Reference, EqualsTheFormulas) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto reference = MakeReference(config, contents.tensors);
    const Float64Model formulas(contents);
    const History history = RandomHistory(config, 1 + 13 * (seed % 11), seed);
    const int64_t as_of = history.timestamps_ms.back() + 86'400'000;
    const auto query = reference->Query(history.items, history.timestamps_ms, as_of);
    ASSERT_TRUE(query.ok()) << query.status();
    const auto expected = formulas.Query(history.items, history.timestamps_ms, as_of);
    EXPECT_LT(RelativeError(*query, expected), 1e-9) << "seed " << seed;
    EXPECT_EQ(reference->TopItems(*query, 10), formulas.TopItems(*query, 10)) << "seed " << seed;
  }
}

TEST(Reference, IsCausal) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const auto reference = MakeReference(config, MakeTinyModel(config, seed).tensors);
    const History history = RandomHistory(config, 90, seed);
    const auto before = reference->Outputs(history.items, history.timestamps_ms);
    ASSERT_TRUE(before.ok()) << before.status();
    for (const int64_t changed : {0, 1, 40, 70, 89}) {
      History other = history;
      other.items[changed] = other.items[changed] % (config.n_items - 1) + 1;
      for (size_t i = changed; i < other.items.size(); ++i) other.timestamps_ms[i] += 12'345'678;
      const auto after = reference->Outputs(other.items, other.timestamps_ms);
      ASSERT_TRUE(after.ok()) << after.status();
      for (int64_t i = 0; i < changed * config.hidden_size; ++i) {
        // The masks of later positions are exact zeros, so not even a rounding differs.
        ASSERT_EQ((*after)[i], (*before)[i]) << "seed " << seed << ", event " << changed;
      }
      EXPECT_NE((*after)[changed * config.hidden_size], (*before)[changed * config.hidden_size]);
    }
  }
}

TEST(Reference, EqualsTheServingPath) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const PackageContents contents = MakeTinyModel(config, seed);
    const auto reference = MakeReference(config, contents.tensors);
    auto package = ModelPackage::FromContents(contents);
    ASSERT_TRUE(package.ok()) << package.status();
    const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
    ASSERT_TRUE(engine.ok()) << engine.status();
    Backend& backend = (*engine)->backend();
    const History history = RandomHistory(config, 230, seed);
    const auto slot = backend.Allocate();
    ASSERT_TRUE(slot.ok()) << slot.status();
    std::vector<float> query(config.hidden_size);
    for (size_t i = 0; i < history.items.size(); ++i) {
      const FoldEvent event{history.items[i], history.timestamps_ms[i]};
      const tim4rec::Run run{*slot, {&event, 1}};  // not Test::Run
      ASSERT_TRUE(backend.Advance({&run, 1}).ok());
      if (i % 23 != 0 && i + 1 != history.items.size()) continue;
      const int64_t as_of = event.timestamp_ms + 3'600'000;
      const QueryRequest request{*slot, as_of};
      ASSERT_TRUE(backend.Query({&request, 1}, query).ok());
      const auto expected = reference->Query(std::span(history.items).first(i + 1),
                                             std::span(history.timestamps_ms).first(i + 1), as_of);
      ASSERT_TRUE(expected.ok()) << expected.status();
      EXPECT_LT(RelativeError({query.begin(), query.end()}, *expected), 1e-5)
          << "seed " << seed << ", event " << i;
    }
  }
}

// The output after each event, folded one by one by the backend that serves.
std::vector<std::vector<float>> EngineOutputs(const PackageContents& contents,
                                              const History& history) {
  const auto package = ModelPackage::FromContents(contents);
  EXPECT_TRUE(package.ok()) << package.status();
  const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
  EXPECT_TRUE(engine.ok()) << engine.status();
  Backend& backend = (*engine)->backend();
  const StateLayout layout = StateLayout::Of(contents.config);
  const Slot slot = *backend.Allocate();
  std::vector<std::byte> record(static_cast<size_t>(layout.bytes));
  std::vector<std::vector<float>> outputs;
  for (size_t i = 0; i < history.items.size(); ++i) {
    const FoldEvent event{history.items[i], history.timestamps_ms[i]};
    const tim4rec::Run run{slot, {&event, 1}};
    EXPECT_TRUE(backend.Advance({&run, 1}).ok());
    EXPECT_TRUE(backend.Export(slot, record).ok());
    std::vector<float>& output = outputs.emplace_back(contents.config.hidden_size);
    std::memcpy(output.data(),
                record.data() + StateLayout::kHeaderBytes + layout.output_offset * sizeof(float),
                output.size() * sizeof(float));
  }
  return outputs;
}

TEST(ServingPath, IsCausal) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const PackageContents contents = MakeTinyModel(RandomStreamingConfig(seed), seed);
    const History history = RandomHistory(contents.config, 90, seed);
    const auto before = EngineOutputs(contents, history);
    for (const size_t changed : {0, 1, 40, 89}) {
      History other = history;
      other.items[changed] = other.items[changed] % (contents.config.n_items - 1) + 1;
      for (size_t i = changed; i < 90; ++i) other.timestamps_ms[i] += 12'345'678;
      const auto after = EngineOutputs(contents, other);
      for (size_t i = 0; i < changed; ++i) {
        ASSERT_EQ(std::memcmp(after[i].data(), before[i].data(), 4 * after[i].size()), 0)
            << "seed " << seed << ", event " << changed << ", output " << i;
      }
      EXPECT_NE(after[changed], before[changed]);
    }
  }
}

TEST(StreamingModel, TrainingFormIsCausalInFloat32) {
  const ModelConfig config = MakeTinyModel(3).config;
  StreamingModel model(config, StreamingInit());
  ASSERT_TRUE(ImportTensors(MakeTinyModel(3).tensors, &model).ok());
  model->eval();
  const torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  const auto items = torch::randint(1, config.n_items, {3, 150}, torch::kInt64);
  const auto gaps = torch::exp(torch::rand({3, 150}) * 18 + 5);
  const auto before = model->forward(items, gaps);
  for (const int64_t changed : {0, 1, 63, 64, 100, 149}) {
    auto other_items = items.clone(), other_gaps = gaps.clone();
    other_items.select(1, changed).copy_(items.select(1, changed) % (config.n_items - 1) + 1);
    other_gaps.select(1, changed).mul_(3);
    const auto after = model->forward(other_items, other_gaps);
    EXPECT_TRUE(torch::equal(after.slice(1, 0, changed), before.slice(1, 0, changed))) << changed;
    EXPECT_FALSE(torch::equal(after.select(1, changed), before.select(1, changed))) << changed;
  }
}

TEST(ServingPath, OneByOneEqualsTheFullForwardWithoutDrift) {
  ModelConfig config;
  config.n_items = 300;
  config.hidden_size = 32;
  config.time.mean = 5;
  config.time.stddev = 3;
  const PackageContents contents = MakeTinyModel(config, 9);
  // Gaps of 0, and from a seventh of a second to four months.
  const History history = RandomHistory(config, 10'000, 9);
  const auto incremental = EngineOutputs(contents, history);
  const auto full =
      MakeReference(config, contents.tensors)->Outputs(history.items, history.timestamps_ms);
  ASSERT_TRUE(full.ok()) << full.status();
  double worst_thousand = 0, worst = 0;
  for (size_t i = 0; i < incremental.size(); ++i) {
    const auto* expected = full->data() + i * config.hidden_size;
    const double error = RelativeError({incremental[i].begin(), incremental[i].end()},
                                       {expected, expected + config.hidden_size});
    worst = std::max(worst, error);
    if (i < 1000) worst_thousand = worst;
  }
  std::cout << "largest relative error over 1,000 events " << worst_thousand << ", over 10,000 "
            << worst << "\n";
  EXPECT_LT(worst_thousand, 1e-5);
  EXPECT_LT(worst, 1e-4);
}

TEST(Reference, TrainingForwardEqualsTheServingPath) {
  const ModelConfig config = RandomStreamingConfig(4);
  const PackageContents contents = MakeTinyModel(config, 4);
  StreamingModel model(config, StreamingInit());
  ASSERT_TRUE(ImportTensors(contents.tensors, &model).ok());
  model->eval();
  torch::NoGradGuard no_grad;
  const History history = RandomHistory(config, 200, 4);
  // A shorter neighbour and padding must not matter.
  auto items = torch::zeros({2, 210}, torch::kInt64);
  auto gaps = torch::zeros({2, 210});
  for (int i = 0; i < 200; ++i) {
    items[0][i] = history.items[i];
    items[1][i / 2] = 1;
    if (i > 0) {
      const int64_t gap = history.timestamps_ms[i] - history.timestamps_ms[i - 1];
      gaps[0][i] = static_cast<double>(std::min(gap, config.time.max_gap_ms));
    }
  }
  const auto outputs = model->forward(items, gaps)[0].slice(0, 0, 200).to(torch::kFloat64);
  const auto expected =
      MakeReference(config, contents.tensors)->Outputs(history.items, history.timestamps_ms);
  ASSERT_TRUE(expected.ok()) << expected.status();
  const auto flat = outputs.contiguous();
  const std::vector<double> actual(flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel());
  EXPECT_LT(RelativeError(actual, *expected), 1e-5);
}

TEST(Reference, RefusesWrongInput) {
  const ModelConfig config = RandomStreamingConfig(1);
  const auto tensors = MakeTinyModel(config, 1).tensors;
  const auto reference = MakeReference(config, tensors);
  const std::vector<int32_t> none, outside = {static_cast<int32_t>(config.n_items)};
  const std::vector<int64_t> times = {1};
  EXPECT_FALSE(reference->Outputs(none, {}).ok());
  EXPECT_FALSE(reference->Outputs(outside, times).ok());
  NamedTensors fewer = tensors;
  fewer.erase("in_layer_norm.bias");
  fewer["other"] = {{1}, {0}};
  const auto refused = Reference::Create(config, fewer).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message(), "weights: in_layer_norm.bias is missing; other is unknown");
}

TEST(RandomWeights, DependOnTheSeedAlone) {
  const ModelConfig config = RandomStreamingConfig(2);
  const auto a = RandomWeights(config, 5), b = RandomWeights(config, 5),
             c = RandomWeights(config, 6);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ(*a, *b);
  EXPECT_NE(*a, *c);
}

}  // namespace
}  // namespace tim4rec
