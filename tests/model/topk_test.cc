#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "model/kernels/kernels.h"

namespace tim4rec::kernels {
namespace {

struct Table {
  int32_t items;
  int32_t d;
  std::vector<float> embedding;
  std::vector<float> packed;
};

// `levels` > 0 draws from few values, so that many scores tie.
Table RandomTable(int32_t items, int32_t d, int levels, std::mt19937_64& random) {
  Table table = {items, d, std::vector<float>(static_cast<size_t>(items) * d), {}};
  for (float& value : table.embedding) {
    value = levels > 0 ? static_cast<float>(random() % levels) - 1
                       : static_cast<float>(random() % 20001) / 1e4f - 1;
  }
  table.packed.resize(static_cast<size_t>(PackedItemFloats(items, d)));
  PackItems(table.embedding.data(), items, d, table.packed.data());
  return table;
}

std::vector<int32_t> RandomSubset(int32_t items, uint64_t one_in, std::mt19937_64& random) {
  std::vector<int32_t> subset;
  for (int32_t item = 1; item < items; ++item) {
    if (random() % one_in == 0) subset.push_back(item);
  }
  return subset;
}

std::vector<Scored> BruteForce(const Table& table, const TopKQuery& query) {
  std::vector<Scored> all;
  for (int32_t item = 1; item < table.items; ++item) {
    const auto in = [item](const int32_t* list, int64_t count) {
      return std::find(list, list + count, item) != list + count;
    };
    if (in(query.excluded, query.excluded_count)) continue;
    if (query.eligible != nullptr && !(query.eligible[item / 64] >> (item % 64) & 1)) continue;
    if (query.candidates_only && !in(query.candidates, query.candidate_count)) continue;
    float score = 0;
    for (int32_t i = 0; i < table.d; ++i) {
      score =
          std::fma(query.query[i], table.embedding[static_cast<size_t>(item) * table.d + i], score);
    }
    if (std::isnan(score)) score = -std::numeric_limits<float>::infinity();
    all.push_back({score, item});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Scored& a, const Scored& b) { return a.score > b.score; });
  all.resize(std::min<size_t>(all.size(), static_cast<size_t>(query.k)));
  return all;
}

void ExpectExact(const Table& table, const TopKQuery& query) {
  std::vector<Scored> best(static_cast<size_t>(query.k));
  best.resize(
      static_cast<size_t>(TopK(table.packed.data(), table.items, table.d, query, best.data())));
  const std::vector<Scored> expected = BruteForce(table, query);
  ASSERT_EQ(best.size(), expected.size());
  for (size_t i = 0; i < best.size(); ++i) {
    ASSERT_EQ(best[i].item, expected[i].item) << "rank " << i;
    ASSERT_EQ(best[i].score, expected[i].score) << "rank " << i;
  }
}

TEST(TopK, EqualsBruteForce) {
  constexpr uint64_t kSeed = 21;
  std::mt19937_64 random(kSeed);
  for (const int32_t items : {2, 15, 16, 17, 33, 511, 512, 513, 530, 2000}) {
    for (const int32_t d : {1, 7, 8, 9, 16, 64}) {
      for (const int levels : {0, 1, 3}) {
        SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", " << items << " items, D " << d
                                        << ", levels " << levels);
        const Table table = RandomTable(items, d, levels, random);
        const Table queries = RandomTable(3, d, levels, random);
        for (const int32_t k : {1, 2, 10, 100, 1000}) {
          const auto excluded = RandomSubset(items, 1 + random() % 4, random);
          const auto candidates = RandomSubset(items, 1 + random() % 4, random);
          TopKQuery query = {};
          query.query = queries.embedding.data() + d;
          query.k = k;
          ExpectExact(table, query);
          std::vector<uint64_t> eligible(static_cast<size_t>(items / 64 + 1));
          for (uint64_t& word : eligible) word = random();
          query.eligible = eligible.data();
          ExpectExact(table, query);
          query.excluded = excluded.data();
          query.excluded_count = static_cast<int64_t>(excluded.size());
          ExpectExact(table, query);
          query.candidates_only = true;
          query.candidates = candidates.data();
          query.candidate_count = static_cast<int64_t>(candidates.size());
          ExpectExact(table, query);
        }
      }
    }
  }
}

TEST(TopK, RanksScoresThatAreNotFinite) {
  std::mt19937_64 random(22);
  Table table = RandomTable(100, 4, 0, random);
  for (const int32_t item : {5, 50, 99}) table.embedding[item * 4] = 3e38f;
  PackItems(table.embedding.data(), 100, 4, table.packed.data());
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& vector : {std::vector<float>{1e10f, -1e30f, 1, 1},
                                           {-1e10f, 1, 1, 1},
                                           {inf, -inf, 0, 0},
                                           {std::nanf(""), 0, 0, 0},
                                           {0, 0, 0, 0}}) {
    for (const int32_t k : {1, 10, 200}) {
      TopKQuery query = {};
      query.query = vector.data();
      query.k = k;
      ExpectExact(table, query);
    }
  }
}

TEST(TopK, GivesNothingWhereNothingIsEligible) {
  std::mt19937_64 random(23);
  const Table table = RandomTable(4, 2, 0, random);
  const std::vector<float> vector = {1, 1};
  const std::vector<int32_t> all = {1, 2, 3};
  Scored best[5];
  TopKQuery query = {};
  query.query = vector.data();
  query.k = 5;
  query.excluded = all.data();
  query.excluded_count = 3;
  EXPECT_EQ(TopK(table.packed.data(), 4, 2, query, best), 0);
  query.excluded_count = 0;
  query.candidates_only = true;
  EXPECT_EQ(TopK(table.packed.data(), 4, 2, query, best), 0);
}

}  // namespace
}  // namespace tim4rec::kernels
