// Ratios of the instruction sets on exact ranking, alternated in one run:
//
//   rank_ratios [ITEMS] [ROUNDS] [MOST QUERIES]
//
// For batches of queries over a random table, D 64: milliseconds of thread time of each instruction
// set, median with smallest and largest over the rounds, the ratio to scalar code, and the bytes of
// codes read per second beside what the same run reads from memory. Results are compared.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "model/backends/cpu/huge_pages.h"
#include "model/kernels/kernel_set.h"
#include "tests/bench/ceilings.h"

namespace tim4rec::kernels {
namespace {

constexpr int32_t kD = 64;

struct alignas(64) Line {
  float floats[16];
};

std::vector<Line> Aligned(int64_t floats) {
  return std::vector<Line>(static_cast<size_t>(floats / 16 + 1));
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<float> Normal(int64_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

struct Free {
  void operator()(void* memory) const { FreeHugePages(memory); }
};

struct Bench {
  explicit Bench(int32_t items) : embedding(Normal(int64_t{items} * kD, random)) {
    packed = Aligned(PackedItemFloats(items, kD));
    PackItems(embedding.data(), items, kD, packed[0].floats);
    // As the back end holds them.
    codes.reset(AllocateHugePages(static_cast<size_t>(RankCodes(items, kD))));
    scales.reset(AllocateHugePages(4 * static_cast<size_t>(RankScales(items))));
    table = QuantizeItems(embedding.data(), items, kD, static_cast<uint8_t*>(codes.get()),
                          static_cast<float*>(scales.get()));
  }

  // Null means scalar. Milliseconds.
  double Time(const KernelSet* set, const std::vector<TopKQuery>& queries,
              std::vector<Scored>* best) {
    std::vector<Scored*> places;
    std::vector<int32_t> found(queries.size());
    const auto count = static_cast<int64_t>(queries.size());
    for (int64_t i = 0; i < count; ++i) places.push_back(best->data() + i * queries[0].k);
    std::vector<Line> scratch = Aligned(set == nullptr ? 0 : set->rank_scratch_floats(kD, count));
    const double start = ThreadSeconds();
    if (set != nullptr) {
      set->rank(table, queries.data(), count, places.data(), found.data(), scratch[0].floats);
    } else {
      for (size_t i = 0; i < queries.size(); ++i) {
        TopK(packed[0].floats, table.items, kD, queries[i], places[i]);
      }
    }
    return 1e3 * (ThreadSeconds() - start);
  }

  void Compare(int32_t count, int32_t k, int rounds) {
    const KernelSet* supported[kMaxKernelSets];
    std::vector<const KernelSet*> sets = {nullptr};
    sets.insert(sets.end(), supported, supported + SupportedKernelSets(supported));
    const std::vector<float> vectors = Normal(int64_t{count} * kD, random);
    std::vector<TopKQuery> queries(static_cast<size_t>(count));
    for (size_t i = 0; i < queries.size(); ++i) {
      queries[i].query = vectors.data() + i * kD;
      queries[i].k = k;
    }
    std::vector<std::vector<Scored>> best(
        sets.size(), std::vector<Scored>(static_cast<size_t>(count) * static_cast<size_t>(k)));
    std::vector<std::vector<double>> times(sets.size()), ratios(sets.size());
    std::vector<double> read;
    for (int round = 0; round < rounds; ++round) {
      std::vector<double> now(sets.size());
      for (size_t step = 0; step < sets.size(); ++step) {  // A B C, C B A, …
        const size_t i = round % 2 == 0 ? step : sets.size() - 1 - step;
        now[i] = Time(sets[i], queries, &best[i]);
      }
      const double start = ThreadSeconds();
      const auto bytes = static_cast<double>(ReadMemory());
      read.push_back(1e-9 * bytes / (ThreadSeconds() - start));
      for (size_t i = 0; i < sets.size(); ++i) {
        times[i].push_back(now[i]);
        ratios[i].push_back(now[0] / now[i]);
      }
    }
    for (size_t i = 0; i < sets.size(); ++i) {
      if (std::memcmp(best[i].data(), best[0].data(), best[0].size() * sizeof(Scored)) != 0) {
        std::printf("results differ\n");
        std::exit(1);
      }
      const double bytes = sets[i] == nullptr ? 4.0 * kD * table.items * count : RankBytes();
      std::printf(
          "items %d  queries %3d  top %4d  %-7s %8.2f ms (%.2f to %.2f)  %5.1f x scalar  %5.1f "
          "GB/s of %.1f\n",
          table.items, count, k, sets[i] == nullptr ? "scalar" : sets[i]->isa, Median(times[i]),
          *std::min_element(times[i].begin(), times[i].end()),
          *std::max_element(times[i].begin(), times[i].end()), Median(ratios[i]),
          1e-6 * bytes / Median(times[i]), Median(read));
    }
  }

  double RankBytes() const {
    return static_cast<double>(RankCodes(table.items, kD) + 4 * RankScales(table.items));
  }

  std::mt19937_64 random{1};
  std::vector<float> embedding;
  std::vector<Line> packed;
  std::unique_ptr<void, Free> codes, scales;
  RankTable table;
};

}  // namespace
}  // namespace tim4rec::kernels

int main(int argc, char** argv) {
  tim4rec::kernels::Bench bench(argc > 1 ? std::atoi(argv[1]) : 1'000'000);
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 7;
  const int most = argc > 3 ? std::atoi(argv[3]) : 64;
  for (const int count : {1, 16, 64, 256}) {
    if (count <= most) bench.Compare(count, 100, rounds);
  }
  bench.Compare(1, 1000, rounds);
  return 0;
}
