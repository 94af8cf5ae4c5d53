#include "model/training/export.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "model/training/probe.h"
#include "model/training/query_terms.h"

namespace tim4rec {
namespace {

constexpr int64_t kLongestProbe = 512;
constexpr size_t kCandidates = 4;
constexpr int64_t kMonthMs = 30LL * 86'400'000;

// The first `length` events of a history, at most all but its last.
ProbeCase Prefix(const UserHistory& history, int64_t length) {
  length = std::clamp<int64_t>(length, 1, std::max<int64_t>(1, history.size() - 1));
  ProbeCase probe;
  probe.items.assign(history.items.begin(), history.items.begin() + length);
  probe.timestamps_ms.assign(history.timestamps_ms.begin(), history.timestamps_ms.begin() + length);
  probe.as_of_ms = history.timestamps_ms[std::min(length, history.size() - 1)];
  return probe;
}

// For each case of the probe some histories to choose from, of users next to each other in length.
std::vector<std::vector<ProbeCase>> ProbeHistories(const Dataset& data) {
  std::vector<size_t> order(data.users.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return data.users[a].size() < data.users[b].size(); });
  const auto prefixes = [&](double quantile, int64_t length) {
    const size_t last = order.size() - 1;
    const size_t middle = static_cast<size_t>(quantile * static_cast<double>(last));
    const size_t begin = std::min(middle, last - std::min<size_t>(last, kCandidates - 1));
    std::vector<ProbeCase> candidates;
    for (size_t i = begin; i <= std::min(last, begin + kCandidates - 1); ++i) {
      candidates.push_back(Prefix(data.users[order[i]], length));
    }
    return candidates;
  };
  std::vector<std::vector<ProbeCase>> probe;
  for (const int64_t length : {1, 2, 3}) probe.push_back(prefixes(0.5, length));
  for (const double quantile : {0.0, 0.5, 0.75, 0.95, 1.0}) {
    probe.push_back(prefixes(quantile, kLongestProbe));
  }
  for (ProbeCase& one : probe[1]) one.as_of_ms = one.timestamps_ms.back() + kMonthMs;
  for (ProbeCase& one : probe[5]) one.as_of_ms = one.timestamps_ms.back() + kMonthMs;
  for (ProbeCase& one : probe[6]) one.as_of_ms = one.timestamps_ms.back() - 1;
  return probe;
}

}  // namespace

PackageContents ToContents(const Dataset& data, const ModelConfig& config, TrainedTensors tensors) {
  PackageContents contents;
  contents.config = config;
  contents.items = data.items;
  if (const auto weights = tensors.extract(kTermWeights); !weights.empty()) {
    contents.trend = {weights.mapped().second.at(0), TimelineOf(data)};
  }
  contents.tensors = std::move(tensors);
  return contents;
}

absl::StatusOr<PackageContents> MakePackage(const Dataset& data, const ModelConfig& config,
                                            const TrainedTensors& tensors,
                                            const std::string& metrics_json) {
  PackageContents contents = ToContents(data, config, tensors);
  contents.metrics_json = metrics_json;
  const auto maker = ProbeMaker::Create(config, contents.tensors, contents.trend);
  if (!maker.ok()) return maker.status();
  for (const std::vector<ProbeCase>& candidates : ProbeHistories(data)) {
    auto probe = maker->MostStable(candidates);
    if (!probe.ok()) return probe.status();
    contents.probe.push_back(*std::move(probe));
  }
  return contents;
}

std::vector<RankingCase> MakeRankingCases(const Dataset& data, const ItemCatalog& catalog,
                                          Split split, bool query_time) {
  std::vector<int32_t> index(data.items.size(), 0);
  for (size_t i = 1; i < index.size(); ++i) index[i] = catalog.Find(data.items[i].id).value_or(0);
  std::vector<RankingCase> cases;
  for (const UserHistory& history : data.users) {
    if (!history.evaluated()) continue;
    const int64_t target = history.target(split);
    RankingCase ranking;
    for (int64_t i = 0; i < target; ++i) {
      const int32_t item = index[history.items[i]];
      if (item != 0) ranking.history.push_back({item, history.timestamps_ms[i]});
    }
    ranking.target = index[history.items[target]];
    ranking.as_of_ms = history.timestamps_ms[query_time ? target : target - 1];
    ranking.gap_ms = history.timestamps_ms[target] - history.timestamps_ms[target - 1];
    cases.push_back(std::move(ranking));
  }
  return cases;
}

}  // namespace tim4rec
