#include "model/weights/trend_file.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/weights/safetensors.h"

namespace tim4rec {

absl::Status CheckTrend(const ItemTrend& trend, int64_t n_items) {
  if (!std::isfinite(trend.weight)) return absl::InvalidArgumentError("weight is not finite");
  if (trend.timeline.n_items() != n_items) {
    return absl::InvalidArgumentError(
        absl::StrCat("of ", trend.timeline.n_items(), " items, but n_items is ", n_items));
  }
  if (trend.timeline.begin()[1] != 0) {
    return absl::InvalidArgumentError("the padding item has events");
  }
  return absl::OkStatus();
}

std::string FormatTrend(const ItemTrend& trend) {
  std::vector<int64_t> days;
  std::vector<double> counts;
  for (const ItemTimeline::Mark& mark : trend.timeline.marks()) {
    days.push_back(mark.day);
    counts.push_back(mark.count);
  }
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  SafetensorsWriter writer;
  writer.Add("weight", {1}, std::span(&trend.weight, 1));
  writer.Add("begin", {size(trend.timeline.begin())}, trend.timeline.begin());
  writer.Add("day", {size(days)}, std::span<const int64_t>(days));
  writer.Add("count", {size(counts)}, std::span<const double>(counts));
  std::string text = writer.Header();
  for (const std::span<const std::byte> piece : writer.pieces()) {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return text;
}

absl::StatusOr<ItemTrend> ParseTrend(std::span<const std::byte> bytes, int64_t n_items) {
  auto tensors = ParseSafetensors(bytes);
  if (!tensors.ok()) return tensors.status();
  for (const char* name : {"weight", "begin", "day", "count"}) {
    if (!tensors->contains(name))
      return absl::InvalidArgumentError(absl::StrCat(name, " is missing"));
  }
  const auto weight = tensors->at("weight").f32();
  const auto begin = tensors->at("begin").i64(), days = tensors->at("day").i64();
  const auto counts = tensors->at("count").f64();
  if (tensors->size() != 4 || weight.size() != 1 || days.size() != counts.size()) {
    return absl::InvalidArgumentError(
        "expected the tensors weight [1] of F32, begin and day of I64 and count of F64, day and "
        "count of one length");
  }
  std::vector<ItemTimeline::Mark> marks;
  for (size_t i = 0; i < days.size(); ++i) marks.push_back({days[i], counts[i]});
  auto timeline = ItemTimeline::Create({begin.begin(), begin.end()}, std::move(marks));
  if (!timeline.ok()) return timeline.status();
  ItemTrend trend{weight[0], *std::move(timeline)};
  if (absl::Status status = CheckTrend(trend, n_items); !status.ok()) return status;
  return trend;
}

}  // namespace tim4rec
