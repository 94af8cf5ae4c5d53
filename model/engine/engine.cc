#include "model/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tim4rec {
namespace {

constexpr size_t kMaxProbeTop = 1000;

double Norm(auto values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

absl::Status Differs(size_t probe, const std::string& what) {
  return absl::FailedPreconditionError(absl::StrCat("probe case ", probe, ": ", what));
}

absl::Status CompareQuery(size_t index, const ProbeCase& probe, double bound,
                          std::span<const float> query) {
  std::vector<double> difference;
  for (size_t d = 0; d < query.size(); ++d) difference.push_back(query[d] - probe.query[d]);
  const double error = Norm(std::span(difference));
  const double allowed = bound * Norm(std::span(probe.query));
  if (error <= allowed) return absl::OkStatus();
  return Differs(index, absl::StrCat("the query vector differs from the package's by ", error,
                                     ", allowed ", allowed));
}

// Two items may stand at one rank if their float64 scores are closer than the bound on scores.
absl::Status CompareTop(size_t index, const ModelPackage& package, const ProbeCase& probe,
                        double bound, std::span<const float> boost, std::span<const ScoredItem> top,
                        size_t expected_size) {
  if (top.size() != expected_size) {
    return Differs(index,
                   absl::StrCat("ranks ", top.size(), " items, the package has ", expected_size));
  }
  const std::span<const float> table = package.tensor("item_embedding.weight").data;
  const size_t d = probe.query.size();
  const auto embedding = [&](int32_t item) {
    return table.subspan(static_cast<size_t>(item) * d, d);
  };
  const auto score = [&](int32_t item) {
    double sum = boost.empty() ? 0 : boost[item];
    for (size_t i = 0; i < d; ++i) sum += probe.query[i] * embedding(item)[i];
    return sum;
  };
  const double query_norm = Norm(std::span(probe.query));
  for (size_t rank = 0; rank < top.size(); ++rank) {
    const int32_t expected = probe.top_items[rank];
    const int32_t actual = top[rank].item;
    const double allowed =
        2 * bound * query_norm * std::max(Norm(embedding(expected)), Norm(embedding(actual)));
    if (expected != actual && !(std::abs(score(expected) - score(actual)) <= allowed)) {
      return Differs(index, absl::StrCat("rank ", rank + 1, " is item ", actual,
                                         ", the package has item ", expected));
    }
  }
  return absl::OkStatus();
}

absl::Status RunProbeCase(size_t index, const ModelPackage& package, ItemBoosts& boosts,
                          Backend& backend) {
  const ProbeCase& probe = package.probe()[index];
  const auto slot = backend.Allocate();
  if (!slot.ok()) return slot.status();
  absl::Cleanup release = [&] { backend.Release(*slot); };

  std::vector<FoldEvent> events;
  for (size_t i = 0; i < probe.items.size(); ++i) {
    events.push_back({probe.items[i], probe.timestamps_ms[i]});
  }
  const Run run = {*slot, events};
  if (absl::Status status = backend.Advance({&run, 1}); !status.ok()) return status;
  std::vector<float> query(probe.query.size());
  const QueryRequest at = {*slot, probe.as_of_ms};
  if (absl::Status status = backend.Query({&at, 1}, query); !status.ok()) return status;
  const double bound = backend.query_bound();
  if (absl::Status status = CompareQuery(index, probe, bound, query); !status.ok()) return status;
  if (probe.top_items.empty()) return absl::OkStatus();

  TopKRequest request;
  request.query = query;
  request.k = static_cast<int>(std::min(probe.top_items.size(), kMaxProbeTop));
  const ItemBoost boost = boosts.At(probe.as_of_ms);
  if (boost != nullptr) request.boost = *boost;
  std::vector<std::vector<ScoredItem>> results;
  if (absl::Status status = backend.TopK({&request, 1}, &results); !status.ok()) return status;
  return CompareTop(index, package, probe, bound, request.boost, results[0],
                    static_cast<size_t>(request.k));
}

absl::StatusOr<std::unique_ptr<Backend>> StartBackend(std::shared_ptr<const ModelPackage> package,
                                                      const BackendRegistry& registry,
                                                      const std::string& name,
                                                      std::string* passed_over) {
  if (name != "auto") {
    const auto factory = registry.factories.find(name);
    if (factory != registry.factories.end()) return factory->second(std::move(package));
    return absl::InvalidArgumentError(absl::StrCat(
        "backend \"", name, "\" is not in this program, which has auto, ",
        absl::StrJoin(registry.factories, ", ",
                      [](std::string* out, const auto& entry) { *out += entry.first; })));
  }
  std::vector<std::string> reasons;
  absl::StatusCode code = absl::StatusCode::kUnavailable;
  for (const std::string& preferred : registry.preference) {
    auto backend = registry.factories.at(preferred)(package);
    if (backend.ok()) {
      *passed_over = absl::StrJoin(reasons, "; ");
      return backend;
    }
    code = backend.status().code();
    reasons.push_back(absl::StrCat(preferred, ": ", std::string(backend.status().message())));
  }
  return absl::Status(code, absl::StrCat("no backend starts: ", absl::StrJoin(reasons, "; ")));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::shared_ptr<const ModelPackage> package,
                                                       const BackendRegistry& registry,
                                                       const std::string& backend) {
  std::string passed_over;
  auto started = StartBackend(package, registry, backend, &passed_over);
  if (!started.ok()) return started.status();
  ItemBoosts boosts(package);
  for (size_t i = 0; i < package->probe().size(); ++i) {
    if (absl::Status status = RunProbeCase(i, *package, boosts, **started); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("the ", std::string((*started)->name()),
                                       " backend does not reproduce the model package: ",
                                       std::string(status.message())));
    }
  }
  return std::unique_ptr<Engine>(
      new Engine(std::move(package), *std::move(started), std::move(passed_over)));
}

absl::Status Engine::TopK(std::span<const TopKRequest> requests,
                          std::span<const QueryRequest> queries,
                          std::vector<std::vector<ScoredItem>>* results) const {
  if (package_->trend() == nullptr) return backend_->TopK(requests, results);
  std::vector<TopKRequest> boosted(requests.begin(), requests.end());
  std::vector<ItemBoost> held;
  for (size_t i = 0; i < boosted.size(); ++i) {
    held.push_back(boosts_.At(queries[i].as_of_ms));
    boosted[i].boost = *held.back();
  }
  return backend_->TopK(boosted, results);
}

}  // namespace tim4rec
