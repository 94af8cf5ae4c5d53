#include "model/training/probe.h"

#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

namespace tim4rec {
namespace {

constexpr int kProbeTop = 20;

// The same weights, each off by up to one part in 10^5.
NamedTensors Disturbed(NamedTensors tensors) {
  std::mt19937_64 random(20240916);
  for (auto& [name, tensor] : tensors) {
    for (float& value : tensor.second) {
      const double unit = static_cast<double>(random() >> 11) * 0x1p-52 - 1;
      value = static_cast<float>(value * (1 + 1e-5 * unit));
    }
  }
  return tensors;
}

double RelativeDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

absl::StatusOr<ProbeMaker> ProbeMaker::Create(const ModelConfig& config,
                                              const NamedTensors& tensors,
                                              std::optional<ItemTrend> trend) {
  ProbeMaker maker;
  auto reference = Reference::Create(config, tensors);
  if (!reference.ok()) return reference.status();
  maker.reference_ = *std::move(reference);
  auto disturbed = Reference::Create(config, Disturbed(tensors));
  if (!disturbed.ok()) return disturbed.status();
  maker.disturbed_ = *std::move(disturbed);
  maker.trend_ = std::move(trend);
  return maker;
}

absl::StatusOr<ProbeCase> ProbeMaker::MostStable(std::span<const ProbeCase> candidates) const {
  ProbeCase best;
  double least = std::numeric_limits<double>::infinity();
  for (const ProbeCase& probe : candidates) {
    auto query = reference_->Query(probe.items, probe.timestamps_ms, probe.as_of_ms);
    if (!query.ok()) return query.status();
    const auto other = disturbed_->Query(probe.items, probe.timestamps_ms, probe.as_of_ms);
    if (!other.ok()) return other.status();
    const double reaction = RelativeDifference(*other, *query);
    if (!best.items.empty() && !(reaction < least)) continue;
    least = reaction;
    best = probe;
    best.query = *std::move(query);
  }
  std::vector<float> boost;
  if (trend_) {
    boost.resize(trend_->timeline.n_items());
    trend_->Boost(best.as_of_ms, boost);
  }
  best.top_items = reference_->TopItems(best.query, kProbeTop, boost);
  return best;
}

}  // namespace tim4rec
