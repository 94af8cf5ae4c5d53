// The torch backend against the cpu backend, and its two ways to fold against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <random>

#include "model/backends/builtin.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

constexpr uint64_t kSeed = 2603'09555;
constexpr int64_t kDayMs = 86'400'000;

std::shared_ptr<const ModelPackage> PackageOf(PackageContents contents) {
  auto package = ModelPackage::FromContents(std::move(contents));
  EXPECT_TRUE(package.ok()) << package.status();
  return *package;
}

std::unique_ptr<Backend> Start(const std::string& name,
                               const std::shared_ptr<const ModelPackage>& package) {
  auto backend = BuiltinBackends().factories.at(name)(package);
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

// One user of one backend.
class User {
 public:
  User(Backend* backend, const ModelConfig& config)
      : backend_(backend), config_(config), slot_(*backend->Allocate()) {}

  void Fold(std::span<const FoldEvent> events) {
    const tim4rec::Run run = {slot_, events};
    const absl::Status advanced = backend_->Advance({&run, 1});
    EXPECT_TRUE(advanced.ok()) << advanced;
  }
  std::vector<float> Query(int64_t as_of_ms) {
    std::vector<float> query(static_cast<size_t>(config_.hidden_size));
    const QueryRequest request = {slot_, as_of_ms};
    const absl::Status asked = backend_->Query({&request, 1}, query);
    EXPECT_TRUE(asked.ok()) << asked;
    return query;
  }
  std::vector<ScoredItem> Top(std::span<const float> query, int k) {
    TopKRequest request;
    request.query = query;
    request.k = k;
    std::vector<std::vector<ScoredItem>> results;
    const absl::Status ranked = backend_->TopK({&request, 1}, &results);
    EXPECT_TRUE(ranked.ok()) << ranked;
    return results[0];
  }
  std::vector<std::byte> Record() const {
    std::vector<std::byte> record(static_cast<size_t>(backend_->state_bytes()));
    EXPECT_TRUE(backend_->Export(slot_, record).ok());
    return record;
  }
  void Import(std::span<const std::byte> record) {
    const absl::Status imported = backend_->Import(slot_, record);
    EXPECT_TRUE(imported.ok()) << imported;
  }

 private:
  Backend* backend_;
  const ModelConfig& config_;
  const Slot slot_;
};

double RelativeError(std::span<const float> actual, std::span<const float> expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

// Of two state records: their headers are equal, and their tensors differ by this.
double RecordError(const std::vector<std::byte>& actual, const std::vector<std::byte>& expected) {
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), StateLayout::kHeaderBytes), 0);
  const auto floats = [](const std::vector<std::byte>& record) {
    std::vector<float> values((record.size() - StateLayout::kHeaderBytes) / sizeof(float));
    std::memcpy(values.data(), record.data() + StateLayout::kHeaderBytes,
                values.size() * sizeof(float));
    return values;
  };
  return RelativeError(floats(actual), floats(expected));
}

ModelConfig ServedConfig() {
  ModelConfig config;
  config.n_items = 400;
  config.time.mean = 5;
  config.time.stddev = 3;
  return config;
}

TEST(TorchBackend, IsNotExactAndIsNotAuto) {
  const auto backend = Start("torch", PackageOf(MakeTinyModel(1)));
  EXPECT_FALSE(backend->exact());
  EXPECT_EQ(backend->name(), "torch");
  EXPECT_FALSE(backend->isa().empty());  // the device
  const auto& preference = BuiltinBackends().preference;
  EXPECT_EQ(std::count(preference.begin(), preference.end(), "torch"), 0);
}

// The items that are each user's best at every step, folded in as the next event. Users go in
// batches.
class Generation {
 public:
  Generation(Backend* backend, const ModelConfig& config,
             const std::vector<std::vector<FoldEvent>>& histories)
      : backend_(backend), width_(config.hidden_size) {
    for (const auto& history : histories) {
      slots_.push_back(*backend_->Allocate());
      const tim4rec::Run run = {slots_.back(), history};
      EXPECT_TRUE(backend_->Advance({&run, 1}).ok());
    }
  }

  std::vector<float> Queries(std::span<const int64_t> now_ms) {
    std::vector<QueryRequest> requests;
    for (size_t i = 0; i < slots_.size(); ++i) requests.push_back({slots_[i], now_ms[i]});
    std::vector<float> queries(slots_.size() * width_);
    EXPECT_TRUE(backend_->Query(requests, queries).ok());
    return queries;
  }
  std::vector<int32_t> Best(std::span<const float> queries) {
    std::vector<TopKRequest> requests(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      requests[i].query = queries.subspan(i * width_, width_);
      requests[i].k = 1;
    }
    std::vector<std::vector<ScoredItem>> results;
    EXPECT_TRUE(backend_->TopK(requests, &results).ok());
    std::vector<int32_t> items;
    for (const auto& result : results) items.push_back(result[0].item);
    return items;
  }
  void Fold(std::span<const int32_t> items, std::span<const int64_t> now_ms) {
    std::vector<FoldEvent> events;
    for (size_t i = 0; i < slots_.size(); ++i) events.push_back({items[i], now_ms[i]});
    std::vector<tim4rec::Run> runs;
    for (size_t i = 0; i < slots_.size(); ++i) runs.push_back({slots_[i], {&events[i], 1}});
    EXPECT_TRUE(backend_->Advance(runs).ok());
  }
  std::vector<std::byte> Record(size_t user) const {
    std::vector<std::byte> record(static_cast<size_t>(backend_->state_bytes()));
    EXPECT_TRUE(backend_->Export(slots_[user], record).ok());
    return record;
  }

 private:
  Backend* backend_;
  const size_t width_;
  std::vector<Slot> slots_;
};

TEST(TorchBackend, GreedyItemsOver64StepsEqualThoseOfTheCpuBackend) {
  std::cout << "seed " << kSeed << "\n";
  const ModelConfig config = ServedConfig();
  const auto package = PackageOf(MakeTinyModel(config, kSeed));
  const auto cpu = Start("cpu", package), torch = Start("torch", package);
  std::mt19937_64 random(kSeed);
  std::vector<std::vector<FoldEvent>> histories;
  std::vector<int64_t> now_ms;
  for (uint64_t user = 0; user < 100; ++user) {
    histories.push_back(EventsOf(RandomHistory(config, 1 + random() % 40, kSeed + user)));
    now_ms.push_back(histories.back().back().timestamp_ms);
  }
  Generation expected(cpu.get(), config, histories), actual(torch.get(), config, histories);
  double worst_query = 0, worst_state = 0;
  for (int step = 0; step < 64; ++step) {
    for (int64_t& now : now_ms) now += static_cast<int64_t>(random() % (20 * kDayMs));
    const auto expected_queries = expected.Queries(now_ms), actual_queries = actual.Queries(now_ms);
    worst_query = std::max(worst_query, RelativeError(actual_queries, expected_queries));
    const auto items = expected.Best(expected_queries);
    ASSERT_EQ(actual.Best(actual_queries), items) << "step " << step;
    expected.Fold(items, now_ms);
    actual.Fold(items, now_ms);
  }
  for (size_t user = 0; user < 100; ++user) {
    worst_state = std::max(worst_state, RecordError(actual.Record(user), expected.Record(user)));
  }
  std::cout << "largest relative error of a step's queries " << worst_query << ", of a state "
            << worst_state << "\n";
  EXPECT_LT(worst_query, 1e-5);
  EXPECT_LT(worst_state, 1e-5);
}

TEST(TorchBackend, ChunkedPrefillEqualsTheCachedStep) {
  for (const int64_t length : {2, 63, 64, 65, 300}) {
    const ModelConfig config = ServedConfig();
    const auto torch = Start("torch", PackageOf(MakeTinyModel(config, kSeed)));
    const auto events = EventsOf(RandomHistory(config, length, kSeed));
    User stepped(torch.get(), config), prefilled(torch.get(), config), mixed(torch.get(), config);
    for (const FoldEvent& event : events) stepped.Fold({&event, 1});
    prefilled.Fold(events);
    // A run begins with the state that steps made, and the other way round.
    const auto half = events.size() / 2;
    for (size_t i = 0; i < half; ++i) mixed.Fold({&events[i], 1});
    mixed.Fold(std::span(events).subspan(half, events.size() - half - 1));
    mixed.Fold({&events.back(), 1});
    EXPECT_LT(RecordError(prefilled.Record(), stepped.Record()), 1e-5) << length;
    EXPECT_LT(RecordError(mixed.Record(), stepped.Record()), 1e-5) << length;
    const int64_t as_of_ms = events.back().timestamp_ms + kDayMs;
    EXPECT_LT(RelativeError(prefilled.Query(as_of_ms), stepped.Query(as_of_ms)), 1e-5) << length;
  }
}

TEST(TorchBackend, LongRunsGoInPieces) {
  const ModelConfig config = MakeTinyModel(3).config;
  const auto package = PackageOf(MakeTinyModel(3));
  const auto cpu = Start("cpu", package), torch = Start("torch", package);
  const auto events = EventsOf(RandomHistory(config, 9'000, kSeed));
  User expected(cpu.get(), config), actual(torch.get(), config);
  expected.Fold(events);
  actual.Fold(events);
  EXPECT_LT(RecordError(actual.Record(), expected.Record()), 1e-5);
}

TEST(TorchBackend, ServesEveryShapeOfBothVariants) {
  double worst = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const ModelConfig config =
        seed % 2 == 0 ? RandomStreamingConfig(seed) : RandomPublishedConfig(seed);
    const auto package = PackageOf(MakeTinyModel(config, seed));
    const auto cpu = Start("cpu", package), torch = Start("torch", package);
    const auto events = EventsOf(RandomHistory(config, 47, seed));
    User expected(cpu.get(), config), actual(torch.get(), config);
    size_t done = 0;
    for (const size_t count : {1, 1, 30, 1, 14}) {
      const auto run = std::span(events).subspan(done, count);
      expected.Fold(run);
      actual.Fold(run);
      done += count;
    }
    const int64_t as_of_ms = events.back().timestamp_ms + kDayMs;
    const double error = RelativeError(actual.Query(as_of_ms), expected.Query(as_of_ms));
    worst = std::max(worst, error);
    EXPECT_LT(error, 5e-5) << "seed " << seed;
    if (config.has_window()) {
      EXPECT_EQ(actual.Record(), expected.Record()) << "seed " << seed;
    } else {
      EXPECT_LT(RecordError(actual.Record(), expected.Record()), 5e-5) << "seed " << seed;
    }
  }
  std::cout << "largest relative error " << worst << "\n";
}

TEST(TorchBackend, GoesOnFromTheCpuBackendsStateAndBack) {
  for (const bool published : {false, true}) {
    ModelConfig config = published ? RandomPublishedConfig(4) : RandomStreamingConfig(4);
    config.is_time = published;
    const auto package = PackageOf(MakeTinyModel(config, 4));
    const auto cpu = Start("cpu", package), torch = Start("torch", package);
    const auto events = EventsOf(RandomHistory(config, 30, 4));
    User first(cpu.get(), config), second(torch.get(), config), third(cpu.get(), config),
        whole(cpu.get(), config);
    first.Fold(std::span(events).first(10));
    second.Import(first.Record());
    EXPECT_EQ(second.Record(), first.Record());
    second.Fold(std::span(events).subspan(10, 10));
    third.Import(second.Record());
    third.Fold(std::span(events).last(10));
    whole.Fold(events);
    const int64_t as_of_ms = events.back().timestamp_ms;
    EXPECT_LT(RelativeError(third.Query(as_of_ms), whole.Query(as_of_ms)), 1e-5);
  }
}

TEST(TorchBackend, BatchesGiveWhatSingleRunsGive) {
  const ModelConfig config = ServedConfig();
  const auto torch = Start("torch", PackageOf(MakeTinyModel(config, kSeed)));
  std::vector<std::vector<FoldEvent>> events;
  std::vector<Slot> slots;
  std::vector<User> single;
  for (uint64_t user = 0; user < 20; ++user) {
    events.push_back(EventsOf(RandomHistory(config, user % 4 == 0 ? 9 : 1, user)));
    slots.push_back(*torch->Allocate());
    single.emplace_back(torch.get(), config).Fold(events.back());
  }
  std::vector<tim4rec::Run> runs;
  for (size_t i = 0; i < slots.size(); ++i) runs.push_back({slots[i], events[i]});
  ASSERT_TRUE(torch->Advance(runs).ok());
  std::vector<std::byte> record(static_cast<size_t>(torch->state_bytes()));
  for (size_t i = 0; i < slots.size(); ++i) {
    ASSERT_TRUE(torch->Export(slots[i], record).ok());
    EXPECT_LT(RecordError(record, single[i].Record()), 1e-6) << i;
  }
}

TEST(TorchBackend, BreaksTiesByIndex) {
  PackageContents contents = MakeTinyModel(8);
  auto& [shape, table] = contents.tensors["item_embedding.weight"];
  // Small integers, whose scores are exact in any order of summation.
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>((i * 7) % 3) - 1;
  contents.probe.clear();
  const auto package = PackageOf(contents);
  const auto cpu = Start("cpu", package), torch = Start("torch", package);
  std::vector<float> query(static_cast<size_t>(shape[1]));
  for (size_t i = 0; i < query.size(); ++i) query[i] = static_cast<float>(i % 3) - 1;
  const std::vector<int32_t> excluded = {4, 17, 30};
  for (const int k : {1, 2, 5, 17, 60, 1000}) {
    TopKRequest request;
    request.query = query;
    request.k = k;
    request.excluded = excluded;
    std::vector<std::vector<ScoredItem>> expected, actual;
    ASSERT_TRUE(cpu->TopK({&request, 1}, &expected).ok());
    ASSERT_TRUE(torch->TopK({&request, 1}, &actual).ok());
    ASSERT_EQ(actual[0].size(), expected[0].size()) << k;
    for (size_t i = 0; i < expected[0].size(); ++i) {
      EXPECT_EQ(actual[0][i].item, expected[0][i].item) << "k " << k << ", rank " << i;
      EXPECT_EQ(actual[0][i].score, expected[0][i].score);
    }
  }
}

}  // namespace
}  // namespace tim4rec
