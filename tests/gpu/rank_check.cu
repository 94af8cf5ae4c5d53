// Ranking on a device gives the bits of kernels::TopK: on the host device everywhere, and on a GPU
// as a program of its own, made by nvcc alone. Prints its seed (TIM4REC_TEST_SEED sets it).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/rank.h"
#include "model/kernels/math.h"
#include "tests/gpu/device_array.h"

namespace tim4rec::cuda {
namespace {

using kernels::Scored;
using kernels::TopKQuery;
using Random = std::mt19937_64;

enum class Shape {
  kUniform,
  kFewValues,
  kHeavyTail,
  kSortedByNorm,
  kDuplicates,
  kTiny,
  kHuge,
  kOneLarge,  // a value of each row outweighs the others: the bounds are wide
  kAllEqual
};
constexpr Shape kShapes[] = {Shape::kUniform,      Shape::kFewValues,  Shape::kHeavyTail,
                             Shape::kSortedByNorm, Shape::kDuplicates, Shape::kTiny,
                             Shape::kHuge,         Shape::kOneLarge,   Shape::kAllEqual};

float Uniform(Random& random) { return static_cast<float>(random() % 20001) / 1e4f - 1; }

std::vector<float> RandomRows(int32_t items, int32_t d, Shape shape, Random& random) {
  std::vector<float> rows(static_cast<size_t>(items) * d);
  for (int32_t item = 0; item < items; ++item) {
    float scale = 1;
    if (shape == Shape::kHeavyTail) scale = std::exp2(static_cast<float>(random() % 40) - 20);
    if (shape == Shape::kSortedByNorm) scale = 1e-3f * static_cast<float>(item + 1);
    if (shape == Shape::kTiny) scale = random() % 2 != 0 ? 0x1p-140f : 0x1p-70f;
    if (shape == Shape::kHuge) scale = 1e37f;
    float* row = rows.data() + static_cast<size_t>(item) * d;
    for (int32_t i = 0; i < d; ++i) {
      row[i] = shape == Shape::kFewValues ? static_cast<float>(random() % 3) - 1
                                          : scale * Uniform(random);
    }
    if (shape == Shape::kOneLarge) row[random() % static_cast<size_t>(d)] *= 300;
    const bool copied = shape == Shape::kDuplicates ? random() % 4 != 0 : shape == Shape::kAllEqual;
    if (copied && item > 0) {
      const size_t from = shape == Shape::kAllEqual ? 0 : random() % static_cast<size_t>(item);
      std::copy_n(rows.data() + from * d, d, row);
    }
  }
  return rows;
}

std::vector<int32_t> RandomSubset(int32_t items, uint64_t one_in, Random& random) {
  std::vector<int32_t> subset;
  for (int32_t item = 1; item < items; ++item) {
    if (random() % one_in == 0) subset.push_back(item);
  }
  return subset;
}

// Which items may be ranked: all but few, half, or few.
std::vector<uint64_t> RandomBits(int32_t items, Random& random) {
  std::vector<uint64_t> bits(static_cast<size_t>(items / 64 + 1));
  const int choice = static_cast<int>(random() % 3);
  for (uint64_t& word : bits) {
    word = random();
    if (choice == 0) word |= random() | random();
    if (choice == 2) word &= random() & random() & random();
  }
  return bits;
}

// Of about the size of scores, or far above them, or few values, or so large that sums are not
// finite; what follows the last item is not to be used.
std::vector<float> RandomBoost(int32_t items, Random& random) {
  std::vector<float> boost(static_cast<size_t>(RankBoostFloats(items)),
                           std::numeric_limits<float>::infinity());
  const uint64_t choice = random() % 4;
  for (int32_t item = 0; item < items; ++item) {
    float& value = boost[static_cast<size_t>(item)];
    value = choice == 2 ? static_cast<float>(random() % 3) : Uniform(random);
    if (choice == 1) value *= 1e6f;
    if (choice == 3) value *= 3e38f;
  }
  return boost;
}

// A table on the device and on the host.
class Items {
 public:
  Items(int32_t items, int32_t d, const std::vector<float>& rows)
      : packed_(static_cast<size_t>(kernels::PackedItemFloats(items, d))),
        embedding_(rows),
        memory_(static_cast<size_t>(ItemTableBytes(items, d))) {
    kernels::PackItems(rows.data(), items, d, packed_.data());
    Check(BuildItemTable(embedding_.data(), items, d, memory_.data(), nullptr, &table_));
    memory_.CheckGuards();
  }

  const ItemTable& table() const { return table_; }

  std::vector<Scored> RankAll(const TopKQuery& query) const {
    std::vector<Scored> best(static_cast<size_t>(query.k));
    best.resize(static_cast<size_t>(
        kernels::TopK(packed_.data(), table_.items, table_.d, query, best.data())));
    return best;
  }

 private:
  std::vector<float> packed_;
  DeviceArray<float> embedding_;
  DeviceArray<uint8_t> memory_;
  ItemTable table_ = {};
};

// Queries as the host reads them, and the same on the device.
class Queries {
 public:
  void Add(const TopKQuery& query, int32_t d, int32_t items) {
    TopKQuery& on_device = device_.emplace_back(query);
    host_.push_back(query);
    on_device.query = Keep(query.query, d, &floats_);
    on_device.excluded = Keep(query.excluded, query.excluded_count, &ids_);
    on_device.candidates = Keep(query.candidates, query.candidate_count, &ids_);
    on_device.eligible = Keep(query.eligible, items / 64 + 1, &words_);
    if (query.boost == nullptr) return;
    for (size_t i = 0; i + 1 < host_.size(); ++i) {
      if (host_[i].boost == query.boost) {
        on_device.boost = device_[i].boost;
        return;
      }
    }
    on_device.boost = Keep(query.boost, RankBoostFloats(items), &floats_);
  }

  const std::vector<TopKQuery>& host() const { return host_; }
  const std::vector<TopKQuery>& device() const { return device_; }

 private:
  template <typename T>
  static const T* Keep(const T* values, int64_t count, std::vector<DeviceArray<T>>* arrays) {
    if (values == nullptr || count == 0) return nullptr;
    arrays->emplace_back(std::vector<T>(values, values + count));
    return arrays->back().data();
  }

  std::vector<TopKQuery> host_, device_;
  std::vector<DeviceArray<float>> floats_;
  std::vector<DeviceArray<int32_t>> ids_;
  std::vector<DeviceArray<uint64_t>> words_;
};

// Returns how many were ranked without a guess.
int32_t ExpectExact(const Items& items, const Queries& queries, const std::string& what) {
  const auto count = static_cast<int32_t>(queries.host().size());
  int32_t most_k = 1;
  for (const TopKQuery& query : queries.host()) most_k = std::max(most_k, query.k);
  const RankMemory memory = RankMemoryFor(items.table(), count, most_k);
  std::vector<uint64_t> host(static_cast<size_t>(memory.host_bytes / 8 + 2), 0xa5a5a5a5a5a5a5a5);
  DeviceArray<uint8_t> device(static_cast<size_t>(memory.device_bytes));
  DeviceArray<Scored> best(static_cast<size_t>(count) * most_k);
  DeviceArray<int32_t> found(static_cast<size_t>(count));
  Check(Rank(items.table(), queries.device().data(), count, most_k, host.data(), device.data(),
             nullptr, best.data(), found.data()));
  const std::vector<Scored> ranked = best.Download();
  const std::vector<int32_t> numbers = found.Download();
  Expect(host.back() == 0xa5a5a5a5a5a5a5a5, what + ": wrote beyond its host memory");
  device.CheckGuards();
  int32_t exactly = 0;
  Check(Describe(cudaMemcpy(&exactly, device.data(), sizeof(exactly), cudaMemcpyDeviceToHost)));
  for (int32_t q = 0; q < count; ++q) {
    const std::vector<Scored> expected = items.RankAll(queries.host()[static_cast<size_t>(q)]);
    const std::string name = what + ", query " + std::to_string(q);
    Expect(numbers[static_cast<size_t>(q)] == static_cast<int32_t>(expected.size()),
           name + ": found " + std::to_string(numbers[static_cast<size_t>(q)]) + " instead of " +
               std::to_string(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) {
      const Scored& got = ranked[static_cast<size_t>(q) * most_k + i];
      Expect(got.item == expected[i].item &&
                 kernels::BitsOf(got.score) == kernels::BitsOf(expected[i].score),
             name + ", rank " + std::to_string(i) + ": item " + std::to_string(got.item) + " " +
                 std::to_string(got.score) + " instead of " + std::to_string(expected[i].item) +
                 " " + std::to_string(expected[i].score));
    }
  }
  return exactly;
}

// Random queries of all kinds over one table.
void CheckTable(int32_t items, int32_t d, Shape shape, int32_t most_queries, Random& random) {
  const Items table(items, d, RandomRows(items, d, shape, random));
  const auto excluded = RandomSubset(items, 1 + random() % 4, random);
  const auto candidates = RandomSubset(items, 1 + random() % 4, random);
  const auto eligible = RandomBits(items, random);
  const auto boost = RandomBoost(items, random), other_boost = RandomBoost(items, random);
  const auto count = static_cast<int32_t>(1 + random() % static_cast<uint64_t>(most_queries));
  const Shape shapes[] = {Shape::kUniform, shape, Shape::kTiny};
  const auto rows = RandomRows(count, d, shapes[random() % 3], random);
  const int32_t ks[] = {1, 2, 10, 100, 1000};
  const uint64_t most_k = 1 + random() % 5;
  Queries queries;
  for (int32_t q = 0; q < count; ++q) {
    TopKQuery query = {};
    query.query = rows.data() + static_cast<size_t>(q) * d;
    query.k = ks[random() % most_k];
    if (random() % 3 == 0) {
      query.excluded = excluded.data();
      query.excluded_count = static_cast<int64_t>(excluded.size());
    }
    if (random() % 4 == 0) {
      query.candidates_only = true;
      query.candidates = candidates.data();
      query.candidate_count = static_cast<int64_t>(candidates.size());
    }
    if (random() % 3 == 0) query.eligible = eligible.data();
    if (random() % 2 == 0) query.boost = boost.data();
    if (random() % 4 == 0) query.boost = other_boost.data();
    queries.Add(query, d, items);
  }
  ExpectExact(table, queries,
              std::to_string(items) + " items, D " + std::to_string(d) + ", shape " +
                  std::to_string(static_cast<int>(shape)));
}

void EqualsScoringEveryItem(Random& random) {
  for (const int32_t items : {2, 3, 63, 64, 65, 511, 2000, 5003}) {
    for (const int32_t d : {1, 8, 37, 64, 96, 128, 160, 256, 300}) {
      for (const Shape shape : kShapes) {
        if (!TakesLarge() && random() % 12 != 0)
          continue;  // on the host some of them, others every time
        CheckTable(items, d, shape, 19, random);
      }
    }
  }
}

void IsExactWhereScoresAreNotFinite(Random& random) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const Shape shape : kShapes) {
    if (!TakesLarge() && random() % 3 != 0) continue;
    std::vector<float> rows = RandomRows(1500, 4, shape, random);
    for (const size_t item : {5, 700, 1499}) rows[item * 4] = 3e38f;
    const Items table(1500, 4, rows);
    const std::vector<float> boost = RandomBoost(1500, random);
    const std::vector<std::vector<float>> vectors = {
        {1e10f, -1e30f, 1, 1},    {-1e10f, 1, 1, 1},
        {kInf, -kInf, 0, 0},      {std::nanf(""), 0, 0, 0},
        {1, 2, std::nanf(""), 0}, {0, 0, 0, 0},
        {1e-45f, 0, 1e-40f, 0},   {3e38f, 3e38f, 3e38f, -3e38f}};
    for (const int32_t k : {1, 10, 1000}) {
      Queries queries;
      for (size_t i = 0; i < vectors.size(); ++i) {
        TopKQuery query = {};
        query.query = vectors[i].data();
        query.k = k;
        if (i % 2 == 0) query.boost = boost.data();
        queries.Add(query, 4, 1500);
      }
      ExpectExact(table, queries, "not finite, shape " + std::to_string(static_cast<int>(shape)));
    }
  }
}

// So large that a sample is scanned first; survivors overflow where all scores tie.
void IsExactOverLargeTables(Random& random) {
  constexpr int32_t kD = 16;
  const int32_t items = TakesLarge() ? 3'000'017 : 140'003;
  for (const Shape shape : {Shape::kUniform, Shape::kSortedByNorm, Shape::kHeavyTail,
                            Shape::kFewValues, Shape::kAllEqual}) {
    const Items table(items, kD, RandomRows(items, kD, shape, random));
    const auto excluded = RandomSubset(items, TakesLarge() ? 30 : 2, random);
    const auto rows = RandomRows(6, kD, Shape::kUniform, random);
    const auto eligible = RandomBits(items, random);
    const std::vector<float> boost = RandomBoost(items, random);
    Queries queries;
    for (size_t q = 0; q < 6; ++q) {
      TopKQuery query = {};
      query.query = rows.data() + q * kD;
      query.k = q % 2 == 0 ? 100 : 1000;
      if (q == 3) query.boost = boost.data();
      if (q == 4) query.eligible = eligible.data();
      if (q == 1 || q == 4) {
        query.excluded = excluded.data();
        query.excluded_count = static_cast<int64_t>(excluded.size());
      }
      queries.Add(query, kD, items);
    }
    const std::string what =
        std::to_string(items) + " items, shape " + std::to_string(static_cast<int>(shape));
    const int32_t exactly = ExpectExact(table, queries, what);
    const bool ties = shape == Shape::kFewValues || shape == Shape::kAllEqual;
    if (shape == Shape::kAllEqual) Expect(exactly > 0, what + ": survivors did not overflow");
    if (!ties) Expect(exactly <= 1, what + ": " + std::to_string(exactly) + " guesses failed");
  }
}

// More queries than a block scans at a time, in a batch too large for shares of a buffer.
void IsExactInLargeBatches(Random& random) {
  for (const int32_t d : {64, 256}) {
    const int32_t count = TakesLarge() ? 4096 : d == 256 ? 140 : 270;
    const int32_t items = TakesLarge() ? 20'000 : 1'500;
    const Items table(items, d, RandomRows(items, d, Shape::kDuplicates, random));
    const auto rows = RandomRows(count, d, Shape::kUniform, random);
    const auto excluded = RandomSubset(items, 40, random);
    const auto candidates = RandomSubset(items, 3, random);
    Queries queries;
    for (int32_t q = 0; q < count; ++q) {
      TopKQuery query = {};
      query.query = rows.data() + static_cast<size_t>(q) * d;
      query.k = q == 7 ? 300 : 20;
      query.excluded = excluded.data();
      query.excluded_count = static_cast<int64_t>(excluded.size());
      if (q % 50 == 0) {
        query.candidates_only = true;
        query.candidates = candidates.data();
        query.candidate_count = static_cast<int64_t>(candidates.size());
      }
      queries.Add(query, d, items);
    }
    ExpectExact(table, queries, "batch of " + std::to_string(count) + ", D " + std::to_string(d));
  }
}

void RefusesWhatItCannotRank(Random& random) {
  const Items table(5, 4, RandomRows(5, 4, Shape::kUniform, random));
  TopKQuery query = {};
  query.k = 3;
  const auto refused = [&](int32_t count, int32_t most_k, const std::string& text) {
    const Fault fault =
        Rank(table.table(), &query, count, most_k, nullptr, nullptr, nullptr, nullptr, nullptr);
    Expect(fault != nullptr && fault == text, "expected the fault: " + text);
  };
  refused(0, 3, "Rank takes 1 to 4096 queries");
  refused(4097, 3, "Rank takes 1 to 4096 queries");
  refused(1, 1001, "Rank takes k from 1 to 1000");
  refused(1, 2, "Rank takes no k above most_k");
}

}  // namespace
}  // namespace tim4rec::cuda

int main() {
  using namespace tim4rec::cuda;
  if (!HasDevice()) return 77;
  return RunTests({{"EqualsScoringEveryItem", EqualsScoringEveryItem},
                   {"IsExactWhereScoresAreNotFinite", IsExactWhereScoresAreNotFinite},
                   {"IsExactOverLargeTables", IsExactOverLargeTables},
                   {"IsExactInLargeBatches", IsExactInLargeBatches},
                   {"RefusesWhatItCannotRank", RefusesWhatItCannotRank}});
}
