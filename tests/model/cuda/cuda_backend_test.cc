// The cuda backend on a device that computes with the scalar truth: its host side.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "model/backends/builtin.h"
#include "model/backends/cuda/combiner.h"
#include "model/backends/cuda/cuda_backend.h"
#include "model/engine/engine.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;
using cuda::ScalarDevice;
using ::testing::HasSubstr;
using Record = std::vector<std::byte>;

std::mt19937_64 PrintedRandom() {
  uint64_t seed = std::random_device()();
  if (const char* text = std::getenv("TIM4REC_TEST_SEED")) seed = std::strtoull(text, nullptr, 10);
  std::cout << "TIM4REC_TEST_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::shared_ptr<const ModelPackage> Package(PackageContents contents) {
  return *ModelPackage::FromContents(std::move(contents));
}

absl::StatusOr<std::unique_ptr<Backend>> Create(DeviceScript* script,
                                                std::shared_ptr<const ModelPackage> package,
                                                const CudaOptions& options = cuda::SmallOptions()) {
  return CreateCudaBackendOn(std::make_unique<ScalarDevice>(script), std::move(package), options);
}

Record Export(const Backend& backend, Slot slot) {
  Record record(static_cast<size_t>(backend.state_bytes()));
  const absl::Status exported = backend.Export(slot, record);
  EXPECT_TRUE(exported.ok()) << exported;
  return record;
}

// A user in two backends.
struct User {
  Slot expected, actual;
  int64_t last_ms = 1'600'000'000'000;
  std::vector<FoldEvent> next;  // the next events
};

enum class On { kDevice, kSmallDevice, kThisMachinesDevice };

// Whatever is asked of both, in whatever batches, while users come and go, gives the same bits.
void CompareWithCpu(const ModelConfig& config, uint64_t seed, On where) {
  std::mt19937_64 random(seed);
  const auto package = Package(MakeTinyModel(config, seed));
  DeviceScript script;
  CudaOptions options = cuda::SmallOptions();
  const auto cpu = *BuiltinBackends().factories.at("cpu")(package);
  // Room for 8 users, or for all.
  options.state_chunk_bytes = 4 * cpu->state_bytes();
  if (where == On::kSmallDevice) {
    DeviceScript whole;
    const auto probe = *Create(&whole, package, options);
    options.reserve_bytes = probe->device_stats()->memory_bytes -
                            probe->device_stats()->memory_used_bytes - 4 * cpu->state_bytes();
  }
  const auto created = where == On::kThisMachinesDevice
                           ? BuiltinBackends().factories.at("cuda")(package)
                           : Create(&script, package, options);
  ASSERT_TRUE(created.ok()) << created.status();
  Backend& cuda = **created;
  EXPECT_EQ(cuda.state_bytes(), cpu->state_bytes());
  std::vector<User> users;
  for (int round = 0; round < 40; ++round) {
    while (users.size() < 5 + random() % 20) {
      User user{*cpu->Allocate(), *cuda.Allocate(), 1'600'000'000'000, {}};
      if (!users.empty() && random() % 2 == 0) {  // a copy of another, moved either way
        const User& other = users[random() % users.size()];
        ASSERT_TRUE(cuda.Import(user.actual, Export(*cpu, other.expected)).ok());
        ASSERT_TRUE(cpu->Import(user.expected, Export(cuda, other.actual)).ok());
        user.last_ms = other.last_ms;
      }
      users.push_back(std::move(user));
    }
    std::vector<tim4rec::Run> expected_runs, runs;
    const bool steps = random() % 2 == 0;
    for (User& user : users) {
      user.next.clear();
      const size_t count = steps ? 1 : random() % 30;
      for (size_t i = 0; i < count; ++i) {
        user.last_ms += static_cast<int64_t>(random() % 86'400'000);
        const auto item = static_cast<int32_t>(1 + random() % (config.n_items - 1));
        user.next.push_back({item, user.last_ms});
      }
      if (random() % 4 == 0) continue;
      expected_runs.push_back({user.expected, user.next});
      runs.push_back({user.actual, user.next});
    }
    ASSERT_TRUE(cpu->Advance(expected_runs).ok());
    ASSERT_TRUE(cuda.Advance(runs).ok());
    std::vector<Record> records(users.size(), Record(static_cast<size_t>(cuda.state_bytes())));
    std::vector<StateExport> exports;
    for (size_t i = 0; i < users.size(); ++i) exports.push_back({users[i].actual, records[i]});
    ASSERT_TRUE(cuda.ExportAll(exports).ok());
    std::vector<QueryRequest> expected_requests, requests;
    for (size_t i = 0; i < users.size(); ++i) {
      ASSERT_EQ(records[i], Export(*cpu, users[i].expected)) << "seed " << seed;
      if (records[i][8] == std::byte{0} && records[i][9] == std::byte{0}) continue;  // no event
      expected_requests.push_back({users[i].expected, users[i].last_ms + 1000 * round});
      requests.push_back({users[i].actual, users[i].last_ms + 1000 * round});
    }
    const auto width = static_cast<size_t>(config.hidden_size);
    std::vector<float> expected(requests.size() * width), queries(requests.size() * width, -1);
    ASSERT_TRUE(cpu->Query(expected_requests, expected).ok());
    ASSERT_TRUE(cuda.Query(requests, queries).ok());
    ASSERT_EQ(std::memcmp(expected.data(), queries.data(), expected.size() * 4), 0)
        << "seed " << seed;
    while (!users.empty() && random() % 3 != 0) {
      const size_t gone = random() % users.size();
      cpu->Release(users[gone].expected);
      cuda.Release(users[gone].actual);
      users.erase(users.begin() + static_cast<int64_t>(gone));
    }
  }
  const DeviceStats stats = *cuda.device_stats();
  EXPECT_GT(stats.device_lookups, 0);
  EXPECT_EQ(stats.host_lookups > 0, where == On::kSmallDevice);
  EXPECT_EQ(stats.slots_used + stats.overflow_slots, static_cast<int64_t>(users.size()));
  EXPECT_FALSE(stats.lost);
}

TEST(CudaBackend, GivesTheBitsOfTheCpu) {
  std::mt19937_64 random = PrintedRandom();
  for (int model = 0; model < 12; ++model) {
    const uint64_t seed = random();
    CompareWithCpu(RandomStreamingConfig(seed), seed,
                   model % 2 == 0 ? On::kSmallDevice : On::kDevice);
  }
}

TEST(CudaBackend, GivesTheBitsOfTheCpuForPublishedModels) {
  std::mt19937_64 random = PrintedRandom();
  for (int model = 0; model < 6; ++model) {
    const uint64_t seed = random();
    CompareWithCpu(RandomPublishedConfig(seed), seed,
                   model % 2 == 0 ? On::kSmallDevice : On::kDevice);
  }
}

TEST(CudaBackend, GivesTheBitsOfTheCpuOnThisMachinesDevice) {
  const auto& factories = BuiltinBackends().factories;
  if (!factories.contains("cuda")) GTEST_SKIP() << "built without nvcc";
  const auto started = factories.at("cuda")(Package(MakeTinyModel(5)));
  // A device that is there and fails is no reason to skip.
  if (absl::StrContains(started.status().message(), "no CUDA device can be used")) {
    GTEST_SKIP() << started.status();
  }
  ASSERT_TRUE(started.ok()) << started.status();
  std::mt19937_64 random = PrintedRandom();
  ModelConfig served;
  served.n_items = 5000;
  CompareWithCpu(served, random(), On::kThisMachinesDevice);
  for (int model = 0; model < 4; ++model) {
    const uint64_t seed = random();
    CompareWithCpu(RandomStreamingConfig(seed), seed, On::kThisMachinesDevice);
    CompareWithCpu(RandomPublishedConfig(seed), seed, On::kThisMachinesDevice);
  }
}

TEST(CudaBackend, FoldsRunsThatNoLaunchHolds) {
  const auto package = Package(MakeTinyModel(5));
  DeviceScript script;
  const auto cuda = *Create(&script, package);
  const auto cpu = *BuiltinBackends().factories.at("cpu")(package);
  std::vector<FoldEvent> events;
  for (int i = 0; i < 2 * cuda::kMostEvents + 7; ++i) events.push_back({1 + i % 60, 1000 * i});
  const std::vector<FoldEvent> one = {{3, 10}};
  const Slot slots[] = {*cuda->Allocate(), *cuda->Allocate()};
  const Slot expected[] = {*cpu->Allocate(), *cpu->Allocate()};
  const int64_t before = script.count(DeviceScript::kFold);
  const tim4rec::Run runs[] = {{slots[0], events}, {slots[1], one}};
  ASSERT_TRUE(cuda->Advance(runs).ok());
  EXPECT_EQ(script.count(DeviceScript::kFold) - before, 3);
  const tim4rec::Run expected_runs[] = {{expected[0], events}, {expected[1], one}};
  ASSERT_TRUE(cpu->Advance(expected_runs).ok());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(Export(*cuda, slots[i]), Export(*cpu, expected[i]));
}

TEST(CudaBackend, ServesFromMainMemoryWhatDoesNotFit) {
  const auto package = Package(MakeTinyModel(5));
  DeviceScript script;
  script.memory_bytes = 96 << 20;
  CudaOptions options = cuda::SmallOptions();
  options.reserve_bytes = 20 << 20;
  const auto cuda = *Create(&script, package, options);
  const int64_t limit = cuda->device_stats()->slots_limit;
  ASSERT_GT(limit, 100);
  std::vector<Slot> slots;
  for (int64_t i = 0; i < limit + 10; ++i) slots.push_back(*cuda->Allocate());
  DeviceStats stats = *cuda->device_stats();
  EXPECT_EQ(stats.slots_used, limit);
  EXPECT_EQ(stats.overflow_slots, 10);
  EXPECT_GE(stats.memory_bytes - stats.memory_used_bytes, options.reserve_bytes);
  EXPECT_EQ(stats.slots_limit, limit);
  const std::vector<FoldEvent> events = {{1, 10}, {2, 2000}};
  const tim4rec::Run both[] = {{slots.front(), events}, {slots.back(), events}};
  ASSERT_TRUE(cuda->Advance(both).ok());
  EXPECT_EQ(Export(*cuda, slots.front()), Export(*cuda, slots.back()));
  // Who comes when somebody left finds room there.
  cuda->Release(slots.front());
  EXPECT_EQ(*cuda->Allocate(), slots.front());
  EXPECT_EQ(Export(*cuda, slots.front()), Record(static_cast<size_t>(cuda->state_bytes())));
  // A bad slot of main memory fails before anything is folded on the device.
  const Record before = Export(*cuda, slots[1]);
  const tim4rec::Run bad[] = {{slots[1], events}, {slots.back() + 1000, events}};
  EXPECT_EQ(cuda->Advance(bad).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Export(*cuda, slots[1]), before);
}

TEST(CudaBackend, RanksAsTheCpuDoes) {
  std::mt19937_64 random = PrintedRandom();
  ModelConfig config;
  config.n_items = 5000;
  PackageContents contents = MakeTinyModel(config, 3);
  const auto package = Package(std::move(contents));
  DeviceScript script;
  const auto cuda = *Create(&script, package);
  const auto cpu = *BuiltinBackends().factories.at("cpu")(package);
  std::vector<uint64_t> eligible((5000 + 63) / 64);
  for (uint64_t& word : eligible) word = random();
  std::vector<std::vector<float>> boosts(2, std::vector<float>((5000 + 15) / 16 * 16));
  for (auto& boost : boosts) {
    for (float& value : boost) value = static_cast<float>(random() % 1000) / 500;
  }
  // More than a launch takes, of all kinds.
  constexpr size_t kRequests = cuda::kMostRankings + 300;
  std::vector<std::vector<float>> queries(kRequests);
  std::vector<std::vector<int32_t>> lists(kRequests);
  std::vector<TopKRequest> requests(kRequests);
  for (size_t i = 0; i < kRequests; ++i) {
    for (int64_t d = 0; d < config.hidden_size; ++d) {
      queries[i].push_back(static_cast<float>(static_cast<int64_t>(random() % 2001) - 1000) / 500);
    }
    for (int32_t item = -5; item < 5100; item += 1 + static_cast<int32_t>(random() % 200)) {
      if (item > 0 || i % 3 != 0) lists[i].push_back(item);
    }
    requests[i].query = queries[i];
    requests[i].k = static_cast<int>(1 + random() % (i % 50 == 0 ? 1000 : 20));
    if (i % 2 == 0) requests[i].eligible = eligible;
    if (i % 5 != 0) requests[i].boost = boosts[i % 2];
    if (i % 3 == 0) {
      std::erase_if(lists[i], [](int32_t item) { return item >= 5000; });
      requests[i].candidates_only = true;
      requests[i].candidates = lists[i];
    } else {
      requests[i].excluded = lists[i];
    }
  }
  std::vector<std::vector<ScoredItem>> expected, results;
  ASSERT_TRUE(cpu->TopK(requests, &expected).ok());
  const int64_t before = script.count(DeviceScript::kRank);
  ASSERT_TRUE(cuda->TopK(requests, &results).ok());
  EXPECT_GT(script.count(DeviceScript::kRank), before);
  for (size_t i = 0; i < kRequests; ++i) {
    ASSERT_EQ(results[i].size(), expected[i].size()) << i;
    for (size_t j = 0; j < expected[i].size(); ++j) {
      ASSERT_EQ(results[i][j].item, expected[i][j].item) << i << " " << j;
      ASSERT_EQ(std::bit_cast<uint32_t>(results[i][j].score),
                std::bit_cast<uint32_t>(expected[i][j].score));
    }
  }
  EXPECT_EQ(cuda->device_stats()->rank.rows, 1 + static_cast<int64_t>(kRequests * 2 / 3) + 2);
}

TEST(CudaBackend, LeavesFewScoresToTheCpu) {
  DeviceScript script;
  CudaOptions options = cuda::SmallOptions();
  options.least_device_scores = 61 * 4;
  const auto cuda = *Create(&script, Package(MakeTinyModel(5)), options);
  const std::vector<float> query(16, 0.5F);
  std::vector<TopKRequest> requests(3);
  for (TopKRequest& request : requests) request.query = query;
  std::vector<std::vector<ScoredItem>> results;
  const int64_t before = script.count(DeviceScript::kRank);
  ASSERT_TRUE(cuda->TopK(requests, &results).ok());
  EXPECT_EQ(script.count(DeviceScript::kRank), before);
  requests.push_back(requests[0]);
  ASSERT_TRUE(cuda->TopK(requests, &results).ok());
  EXPECT_EQ(script.count(DeviceScript::kRank), before + 1);
}

TEST(CudaBackend, CallsOfManyThreadsAreCombined) {
  cuda::Combiner<int> combiner;
  std::atomic<int> calls = 0, together = 0, working = 0;
  std::vector<int> works(64);
  std::vector<std::thread> threads;
  for (int& work : works) {
    threads.emplace_back([&] {
      combiner.Do(&work, [&](const std::vector<int*>& taken) {
        EXPECT_EQ(++working, 1);
        ++calls;
        together += static_cast<int>(taken.size());
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        for (int* one : taken) ++*one;
        EXPECT_EQ(--working, 0);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(works, testing::Each(1));
  EXPECT_EQ(together, 64);
  EXPECT_LE(calls, 64);
}

TEST(CudaBackend, ServesManyThreadsThatImportFoldAskAndExport) {
  const auto package = Package(MakeTinyModel(5));
  DeviceScript script;
  const auto cuda = *Create(&script, package);
  const auto cpu = *BuiltinBackends().factories.at("cpu")(package);
  const std::vector<FoldEvent> first = {{1, 10}, {2, 2000}}, then = {{3, 3'000'000}};
  const Slot expected_slot = *cpu->Allocate();
  const tim4rec::Run begin = {expected_slot, first}, end = {expected_slot, then};
  ASSERT_TRUE(cpu->Advance({&begin, 1}).ok());
  const Record base = Export(*cpu, expected_slot);
  ASSERT_TRUE(cpu->Advance({&end, 1}).ok());
  const Record expected = Export(*cpu, expected_slot);
  std::vector<float> expected_query(16);
  const QueryRequest asked = {expected_slot, 4'000'000};
  ASSERT_TRUE(cpu->Query({&asked, 1}, expected_query).ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < 40; ++round) {
        std::vector<Slot> slots;
        for (int i = 0; i < 40; ++i) slots.push_back(*cuda->Allocate());
        std::vector<tim4rec::Run> runs;
        for (const Slot slot : slots) {
          EXPECT_TRUE(cuda->Import(slot, base).ok());
          runs.push_back({slot, then});
        }
        EXPECT_TRUE(cuda->Advance(runs).ok());
        for (const Slot slot : slots) {
          std::vector<float> query(16);
          const QueryRequest request = {slot, 4'000'000};
          EXPECT_TRUE(cuda->Query({&request, 1}, query).ok());
          EXPECT_EQ(query, expected_query);
          EXPECT_EQ(Export(*cuda, slot), expected);
          cuda->Release(slot);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(cuda->device_stats()->slots_used, 0);
}

TEST(CudaBackend, RefusesAModelThatDoesNotFitWithTheBytes) {
  DeviceScript script;
  script.memory_bytes = 1000;
  const auto package = Package(MakeTinyModel(5));
  const auto refused = Create(&script, package);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(refused.status()),
              testing::MatchesRegex(
                  "the model needs [0-9]+ bytes of device memory, 1000 of 1000 are free"));
  // What is free in all and not in one piece.
  for (const auto call : {DeviceScript::kAllocate, DeviceScript::kAllocateHost}) {
    DeviceScript in_pieces;
    in_pieces.FailFrom(call, 0);
    const auto status = Create(&in_pieces, package).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(Message(status), HasSubstr(call == DeviceScript::kAllocate
                                               ? "but not in the pieces that it needs"
                                               : "bytes of pinned host memory: out of memory"));
  }
}

TEST(CudaBackend, RefusesADeviceThatComputesOtherBits) {
  DeviceScript script;
  script.wrong_fold = true;
  const auto package = Package(MakeTinyModel(5));
  const auto refused = Create(&script, package);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(refused.status()),
            "the CUDA device computes other bits than the CPU: the state of probe case 0");
  // So "auto" goes on with the next, and says why.
  BackendRegistry registry = BuiltinBackends();
  registry.factories["cuda"] = [&](auto of) { return Create(&script, of); };
  registry.preference = {"cuda", "cpu"};
  const auto engine = Engine::Create(package, registry);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->backend().name(), "cpu");
  EXPECT_THAT((*engine)->passed_over(), HasSubstr("cuda: the CUDA device computes other bits"));
  script.wrong_fold = false;
  const auto on_device = Engine::Create(package, registry);
  ASSERT_TRUE(on_device.ok()) << on_device.status();
  EXPECT_EQ((*on_device)->backend().name(), "cuda");
  EXPECT_EQ((*on_device)->passed_over(), "");
}

}  // namespace
}  // namespace tim4rec
