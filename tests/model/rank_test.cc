// Ranking through the table of codes is the exact ranking by float32 scores, on every instruction
// set: the same items and score bits as scoring every item.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "model/kernels/kernel_set.h"
#include "model/kernels/math.h"

namespace tim4rec::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

enum class Shape { kUniform, kFewValues, kHeavyTail, kSortedByNorm, kDuplicates, kTiny, kHuge };

constexpr Shape kShapes[] = {Shape::kUniform,      Shape::kFewValues,  Shape::kHeavyTail,
                             Shape::kSortedByNorm, Shape::kDuplicates, Shape::kTiny,
                             Shape::kHuge};

float Uniform(std::mt19937_64& random) { return static_cast<float>(random() % 20001) / 1e4f - 1; }

std::vector<float> RandomRows(int32_t items, int32_t d, Shape shape, std::mt19937_64& random) {
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
    if (shape == Shape::kDuplicates && item > 0 && random() % 4 != 0) {
      const float* other = rows.data() + random() % static_cast<size_t>(item) * d;
      std::copy(other, other + d, row);
    }
  }
  return rows;
}

struct Lines {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  explicit Lines(int64_t bytes) : lines(static_cast<size_t>(bytes / 64 + 1)) {}
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(lines.data());
  }
  std::vector<Line> lines;
};

// The embedding and its table.
class Items {
 public:
  Items(int32_t items, int32_t d, std::vector<float> rows)
      : rows_(std::move(rows)), codes_(RankCodes(items, d)), scales_(4 * RankScales(items)) {
    table_ = QuantizeItems(rows_.data(), items, d, codes_.as<uint8_t>(), scales_.as<float>());
    packed_.resize(static_cast<size_t>(PackedItemFloats(items, d)));
    PackItems(rows_.data(), items, d, packed_.data());
  }

  const RankTable& table() const { return table_; }

  std::vector<std::vector<Scored>> Rank(const KernelSet& set,
                                        const std::vector<TopKQuery>& queries) const {
    std::vector<std::vector<Scored>> results;
    std::vector<Scored*> best;
    for (const TopKQuery& query : queries) results.emplace_back(static_cast<size_t>(query.k));
    for (auto& result : results) best.push_back(result.data());
    std::vector<int32_t> found(queries.size());
    const auto count = static_cast<int64_t>(queries.size());
    Lines scratch(4 * set.rank_scratch_floats(table_.d, count));
    set.rank(table_, queries.data(), count, best.data(), found.data(), scratch.as<float>());
    for (size_t i = 0; i < results.size(); ++i) results[i].resize(static_cast<size_t>(found[i]));
    return results;
  }

  // By scalar scores of every item.
  std::vector<Scored> RankAll(const TopKQuery& query) const {
    std::vector<Scored> best(static_cast<size_t>(query.k));
    best.resize(
        static_cast<size_t>(TopK(packed_.data(), table_.items, table_.d, query, best.data())));
    return best;
  }

 private:
  std::vector<float> rows_;
  Lines codes_, scales_;
  std::vector<float> packed_;
  RankTable table_;
};

void ExpectExact(const KernelSet& set, const Items& items, const std::vector<TopKQuery>& queries) {
  const auto results = items.Rank(set, queries);
  for (size_t q = 0; q < queries.size(); ++q) {
    const std::vector<Scored> expected = items.RankAll(queries[q]);
    ASSERT_EQ(results[q].size(), expected.size()) << "query " << q;
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(results[q][i].item, expected[i].item) << "query " << q << ", rank " << i;
      ASSERT_EQ(BitsOf(results[q][i].score), BitsOf(expected[i].score))
          << "query " << q << ", rank " << i;
    }
  }
}

std::vector<int32_t> RandomSubset(int32_t items, uint64_t one_in, std::mt19937_64& random) {
  std::vector<int32_t> subset;
  for (int32_t item = 1; item < items; ++item) {
    if (random() % one_in == 0) subset.push_back(item);
  }
  return subset;
}

// Which items may be ranked: all but few, half, or few.
std::vector<uint64_t> RandomBits(int32_t items, std::mt19937_64& random) {
  std::vector<uint64_t> bits(static_cast<size_t>(items / 64 + 1));
  const int choice = static_cast<int>(random() % 3);
  for (uint64_t& word : bits) {
    word = random();
    if (choice == 0) word |= random() | random();
    if (choice == 2) word &= random() & random() & random();
  }
  return bits;
}

// Padded as TopKQuery::boost; of about the size of scores, or far above them, or few values.
std::vector<float> RandomBoost(int32_t items, std::mt19937_64& random) {
  std::vector<float> boost(static_cast<size_t>(items + 15) / 16 * 16);
  const uint64_t choice = random() % 3;
  for (float& value : boost) {
    value = choice == 2 ? static_cast<float>(random() % 3) : Uniform(random);
    if (choice == 1) value *= 1e6f;
  }
  return boost;
}

class Rank : public ::testing::TestWithParam<const KernelSet*> {};

TEST_P(Rank, EqualsScoringEveryItem) {
  constexpr uint64_t kSeed = 31;
  std::mt19937_64 random(kSeed);
  for (const int32_t items : {2, 3, 15, 16, 17, 33, 511, 512, 513, 2000, 5003}) {
    for (const int32_t d : {1, 3, 8, 37, 64}) {
      for (const Shape shape : kShapes) {
        SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", " << items << " items, D " << d
                                        << ", shape " << static_cast<int>(shape));
        const Items table(items, d, RandomRows(items, d, shape, random));
        const auto excluded = RandomSubset(items, 1 + random() % 4, random);
        const auto candidates = RandomSubset(items, 1 + random() % 4, random);
        const auto eligible = RandomBits(items, random);
        const auto boost = RandomBoost(items, random), other_boost = RandomBoost(items, random);
        const auto count = static_cast<int32_t>(1 + random() % 19);
        const auto shapes = {Shape::kUniform, shape, Shape::kTiny};
        const auto rows =
            RandomRows(count, d, *(shapes.begin() + random() % shapes.size()), random);
        std::vector<TopKQuery> queries;
        for (int32_t q = 0; q < count; ++q) {
          TopKQuery& query = queries.emplace_back();
          query.query = rows.data() + static_cast<size_t>(q) * d;
          query.k = static_cast<int32_t>(std::vector{1, 2, 10, 100, 1000}[random() % 5]);
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
        }
        ASSERT_NO_FATAL_FAILURE(ExpectExact(*GetParam(), table, queries));
      }
    }
  }
}

TEST_P(Rank, IsExactWhereScoresAreNotFinite) {
  std::mt19937_64 random(32);
  for (const Shape shape : kShapes) {
    std::vector<float> rows = RandomRows(1500, 4, shape, random);
    for (const int32_t item : {5, 700, 1499}) rows[static_cast<size_t>(item) * 4] = 3e38f;
    const Items table(1500, 4, std::move(rows));
    const std::vector<float> boost = RandomBoost(1500, random);
    const std::vector<std::vector<float>> vectors = {
        {1e10f, -1e30f, 1, 1},    {-1e10f, 1, 1, 1},
        {kInf, -kInf, 0, 0},      {std::nanf(""), 0, 0, 0},
        {1, 2, std::nanf(""), 0}, {0, 0, 0, 0},
        {1e-45f, 0, 1e-40f, 0},   {3e38f, 3e38f, 3e38f, -3e38f}};
    for (const int32_t k : {1, 10, 1000}) {
      std::vector<TopKQuery> queries;
      for (const auto& vector : vectors) {
        TopKQuery& query = queries.emplace_back();
        query.query = vector.data();
        query.k = k;
        if (queries.size() % 2 == 0) query.boost = boost.data();
      }
      ASSERT_NO_FATAL_FAILURE(ExpectExact(*GetParam(), table, queries));
    }
  }
}

TEST_P(Rank, IsExactOverAMillionItemsWithManyExcluded) {
  constexpr int32_t kItems = 1'000'003, kD = 16;
  std::mt19937_64 random(33);
  for (const Shape shape : {Shape::kUniform, Shape::kSortedByNorm}) {
    const Items table(kItems, kD, RandomRows(kItems, kD, shape, random));
    const auto excluded = RandomSubset(kItems, 10, random);
    const auto rows = RandomRows(9, kD, Shape::kUniform, random);
    const std::vector<float> boost = RandomBoost(kItems, random);
    std::vector<TopKQuery> queries(9);
    for (size_t q = 0; q < queries.size(); ++q) {
      queries[q].query = rows.data() + q * kD;
      queries[q].k = q % 2 == 0 ? 100 : 1000;
      if (q % 4 == 0) queries[q].boost = boost.data();
      if (q % 3 == 0) {
        queries[q].excluded = excluded.data();
        queries[q].excluded_count = static_cast<int64_t>(excluded.size());
      }
    }
    ASSERT_NO_FATAL_FAILURE(ExpectExact(*GetParam(), table, queries));
  }
}

TEST(RankTable, BoundsHoldForEveryItem) {
  constexpr uint64_t kSeed = 34;
  std::mt19937_64 random(kSeed);
  for (const Shape shape : kShapes) {
    for (const int32_t d : {1, 5, 64}) {
      const std::vector<float> rows = RandomRows(300, d, shape, random);
      const Items items(300, d, rows);
      const RankTable& table = items.table();
      const int32_t groups = (d + 3) / 4;
      for (int32_t item = 0; item < 300; ++item) {
        double difference = 0, norm = 0;
        const double scale = table.scales[item];
        for (int32_t i = 0; i < d; ++i) {
          const int code = table.codes[(static_cast<size_t>(item / 16) * groups + i / 4) * 64 +
                                       item % 16 * 4 + i % 4] -
                           128;
          const double value = rows[static_cast<size_t>(item) * d + i];
          difference += std::pow(value - scale * code, 2);
          norm += code * code;
        }
        EXPECT_LE(std::sqrt(difference), table.residual * scale);
        EXPECT_LE(std::sqrt(norm), table.code_norm);
        EXPECT_LE(scale, table.largest_scale);
      }
    }
  }
}

std::vector<const KernelSet*> KernelSets() {
  const KernelSet* sets[kMaxKernelSets];
  const int count = SupportedKernelSets(sets);
  return {sets, sets + count};
}

INSTANTIATE_TEST_SUITE_P(Supported, Rank, ::testing::ValuesIn(KernelSets()),
                         [](const auto& info) { return std::string(info.param->isa); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Rank);

}  // namespace
}  // namespace tim4rec::kernels
