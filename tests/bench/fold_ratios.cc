// Ratios of the instruction sets on the fold, alternated in one run:
//
//   fold_ratios [HIDDEN_SIZE] [ROUNDS] [USERS] [ISA]
//
// For each number of users (one event each) and one long run: microseconds of thread time per event
// of each instruction set, median with smallest and largest over the rounds, the ratio to scalar
// code, and the share of what the same run's multiply-adds in registers allow.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/backends/builtin.h"
#include "model/kernels/kernel_set.h"
#include "tests/bench/ceilings.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

struct Spread {
  std::vector<double> values;

  double Quantile(double q) {
    std::sort(values.begin(), values.end());
    return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
  }
};

std::unique_ptr<Backend> CpuBackend(const char* isa, std::shared_ptr<const ModelPackage> package) {
  setenv("TIM4REC_FORCE_ISA", isa, 1);
  auto backend = BuiltinBackends().factories.at("cpu")(std::move(package));
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(backend);
}

// Two operations for each weight of a Linear and three products per value of a state.
double Operations(const ModelConfig& c) {
  const double d = c.hidden_size, e = c.inner_size(), f = c.is_ffn ? c.ffn_size() : 0;
  const double projections = 2 * e + 2 * c.d_state + c.num_heads();
  return c.num_layers * (2 * (d * projections + e * d + 2 * d * f) + 5 * e * c.d_state);
}

// Microseconds per event.
double Time(Backend& backend, const std::vector<tim4rec::Run>& runs) {
  int64_t events = 0;
  for (const tim4rec::Run& run : runs) events += static_cast<int64_t>(run.events.size());
  const auto times = std::max<int64_t>(1, 2000 / events);
  const double start = ThreadSeconds();
  for (int64_t i = 0; i < times; ++i) {
    if (!backend.Advance(runs).ok()) std::exit(1);
  }
  return 1e6 * (ThreadSeconds() - start) / static_cast<double>(times * events);
}

void Compare(const ModelConfig& config, std::shared_ptr<const ModelPackage> package, int64_t users,
             int64_t length, int rounds, const char* only = nullptr) {
  const kernels::KernelSet* sets[kernels::kMaxKernelSets];
  const int count = kernels::SupportedKernelSets(sets);
  std::vector<const char*> names = {"scalar"};
  for (int i = 0; i < count; ++i) names.push_back(sets[i]->isa);
  if (only != nullptr) names = {only};
  std::vector<std::unique_ptr<Backend>> backends;
  std::vector<std::vector<FoldEvent>> events;
  std::vector<tim4rec::Run> runs;
  std::mt19937_64 random(1);
  for (const char* name : names) backends.push_back(CpuBackend(name, package));
  for (int64_t user = 0; user < users; ++user) {
    Slot slot = 0;
    for (auto& backend : backends) slot = *backend->Allocate();
    auto& own = events.emplace_back();
    for (int64_t i = 0; i < length; ++i) {
      own.push_back({1 + static_cast<int32_t>(random() % (config.n_items - 1)),
                     static_cast<int64_t>(random() >> 30)});
    }
    runs.push_back({slot, own});
  }
  std::shuffle(runs.begin(), runs.end(), random);
  std::vector<Spread> times(names.size()), ratios(names.size()), ceilings(names.size());
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> now(names.size());
    for (size_t step = 0; step < names.size(); ++step) {  // A B C, C B A, …
      const size_t i = round % 2 == 0 ? step : names.size() - 1 - step;
      const double start = ThreadSeconds();
      const auto operations = static_cast<double>(MultiplyAddInRegisters(names[i]));
      ceilings[i].values.push_back(1e-9 * operations / (ThreadSeconds() - start));
      now[i] = Time(*backends[i], runs);
    }
    for (size_t i = 0; i < names.size(); ++i) {
      times[i].values.push_back(now[i]);
      ratios[i].values.push_back(now[0] / now[i]);
    }
  }
  for (size_t i = 0; i < names.size(); ++i) {
    const double us = times[i].Quantile(0.5);
    std::printf(
        "D %lld  users %5lld  events %4lld  %-7s %7.2f us (%.2f to %.2f)  %5.1f x scalar "
        "(%.1f to %.1f)  %6.1f GFLOP/s",
        static_cast<long long>(config.hidden_size), static_cast<long long>(users),
        static_cast<long long>(length), names[i], us, times[i].Quantile(0), times[i].Quantile(1),
        ratios[i].Quantile(0.5), ratios[i].Quantile(0), ratios[i].Quantile(1),
        1e-3 * Operations(config) / us);
    if (i > 0) {
      std::printf("  %.0f %% of %.0f", 0.1 * Operations(config) / us / ceilings[i].Quantile(0.5),
                  ceilings[i].Quantile(0.5));
    }
    std::printf("\n");
  }
}

int Main(int argc, char** argv) {
  ModelConfig config;
  config.n_items = 3000;
  config.hidden_size = argc > 1 ? std::atoll(argv[1]) : 64;
  config.time.mean = 5;
  config.time.stddev = 3;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 7;
  PackageContents contents = MakeTinyModel(config, 1);
  auto package = ModelPackage::FromContents(std::move(contents));
  if (!package.ok()) return 1;
  if (argc > 3) {
    Compare(config, *package, std::atoll(argv[3]), 1, rounds, argc > 4 ? argv[4] : nullptr);
    return 0;
  }
  for (const int64_t users : {1, 4, 24, 256, 4096}) Compare(config, *package, users, 1, rounds);
  Compare(config, *package, 1, 200, rounds);
  Compare(config, *package, 40, 50, rounds);
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main(argc, argv); }
