// What instruction_counts.py counts under callgrind: production paths, one after the other, each in
// a call of Counted(). D 64, two layers, 16,000 items.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/backends/builtin.h"
#include "tests/model/tiny_model.h"

// callgrind collects in here only, and writes what it has at the end.
extern "C" __attribute__((noinline)) void Counted(const std::function<bool()>& path) {
  if (!path()) std::exit(1);
}

namespace tim4rec {
namespace {

constexpr int64_t kItems = 16'000;

struct Folds {
  std::vector<std::vector<FoldEvent>> events;
  std::vector<tim4rec::Run> runs;
};

// `users` runs of `length` events, an hour apart.
std::unique_ptr<Folds> MakeFolds(Backend& backend, int users, int length) {
  auto folds = std::make_unique<Folds>();
  std::mt19937_64 random(1);
  for (int user = 0; user < users; ++user) {
    auto& own = folds->events.emplace_back();
    for (int i = 0; i < length; ++i) {
      own.push_back({1 + static_cast<int32_t>(random() % (kItems - 1)), i * int64_t{3'600'000}});
    }
  }
  for (const auto& own : folds->events) folds->runs.push_back({*backend.Allocate(), own});
  return folds;
}

void CountFold(Backend& backend, int users, int length) {
  const auto warm = MakeFolds(backend, users, length);  // first allocations
  const auto folds = MakeFolds(backend, users, length);
  if (!backend.Advance(warm->runs).ok()) std::exit(1);
  Counted([&] { return backend.Advance(folds->runs).ok(); });
}

void CountRank(Backend& backend, size_t count) {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> queries(64 * count);
  for (float& value : queries) value = normal(random);
  std::vector<TopKRequest> requests(count);
  for (size_t i = 0; i < count; ++i) requests[i].query = std::span(queries).subspan(64 * i, 64);
  std::vector<std::vector<ScoredItem>> results;
  if (!backend.TopK(requests, &results).ok()) std::exit(1);
  Counted([&] { return backend.TopK(requests, &results).ok(); });
}

int Main() {
  setenv("TIM4REC_FORCE_ISA", "avx2", 1);
  ModelConfig config;
  config.n_items = kItems;
  auto package = ModelPackage::FromContents(MakeTinyModel(config, 1));
  if (!package.ok()) return 1;
  auto backend = BuiltinBackends().factories.at("cpu")(*package);
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", std::string(backend.status().message()).c_str());
    return 1;
  }
  CountFold(**backend, 1, 1);
  CountFold(**backend, 48, 1);
  CountFold(**backend, 1, 100);
  CountRank(**backend, 1);
  CountRank(**backend, 16);
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main() { return tim4rec::Main(); }
