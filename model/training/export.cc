#include "model/training/export.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "model/reference/reference.h"

namespace tim4rec {
namespace {

constexpr int64_t kLongestProbe = 512;
constexpr int kProbeTop = 10;
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

std::vector<ProbeCase> ProbeHistories(const Dataset& data) {
  std::vector<size_t> order(data.users.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return data.users[a].size() < data.users[b].size(); });
  const auto user = [&](double quantile) -> const UserHistory& {
    return data.users[order[static_cast<size_t>(quantile * (order.size() - 1))]];
  };
  std::vector<ProbeCase> probe;
  for (const int64_t length : {1, 2, 3}) probe.push_back(Prefix(user(0.5), length));
  for (const double quantile : {0.0, 0.5, 0.75, 0.95, 1.0}) {
    probe.push_back(Prefix(user(quantile), kLongestProbe));
  }
  probe[1].as_of_ms = probe[1].timestamps_ms.back() + kMonthMs;
  probe[5].as_of_ms = probe[5].timestamps_ms.back() + kMonthMs;
  probe[6].as_of_ms = probe[6].timestamps_ms.back() - 1;
  return probe;
}

}  // namespace

absl::StatusOr<PackageContents> MakePackage(const Dataset& data, const ModelConfig& config,
                                            const TrainedTensors& tensors,
                                            const std::string& metrics_json) {
  const auto reference = Reference::Create(config, tensors);
  if (!reference.ok()) return reference.status();
  PackageContents contents;
  contents.config = config;
  contents.tensors = tensors;
  contents.items = data.items;
  contents.metrics_json = metrics_json;
  contents.probe = ProbeHistories(data);
  for (ProbeCase& probe : contents.probe) {
    auto query = (*reference)->Query(probe.items, probe.timestamps_ms, probe.as_of_ms);
    if (!query.ok()) return query.status();
    probe.query = *std::move(query);
    probe.top_items = (*reference)->TopItems(probe.query, kProbeTop);
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
    cases.push_back(std::move(ranking));
  }
  return cases;
}

}  // namespace tim4rec
