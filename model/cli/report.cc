#include "model/cli/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/cli/svg_chart.h"

namespace tim4rec {
namespace {

constexpr double kMinuteMs = 60'000, kHourMs = 60 * kMinuteMs, kDayMs = 24 * kHourMs;
constexpr double kYearMs = 365 * kDayMs;
constexpr size_t kShownItems = 10, kNeighbours = 5;

constexpr char kStyle[] = R"(
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2330; background: #fff; margin: 2em auto;
  max-width: 1180px; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccd3dd; }
p { max-width: 75ch; } .note { color: #596475; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
svg { font: 12px system-ui, sans-serif; max-width: 100%; height: auto; }
svg text { fill: #3b4656; paint-order: stroke; stroke: #fff; stroke-width: 3px; } svg .title { font-weight: 600; font-size: 13px; }
svg .grid { stroke: #e4e8ee; } svg .axis { stroke: #8894a5; }
svg .mark { stroke: #b3471d; stroke-dasharray: 4 3; } svg .line { fill: none; stroke-width: 2; }
svg .bar { fill: #3572b0; }
table { border-collapse: collapse; } td, th { padding: 3px 12px 3px 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #e4e8ee; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
)";

std::string Duration(double ms) {
  if (ms < 1000) return absl::StrFormat("%.0f ms", ms);
  if (ms < kMinuteMs) return absl::StrFormat("%.1f seconds", ms / 1000);
  if (ms < kHourMs) return absl::StrFormat("%.1f minutes", ms / kMinuteMs);
  if (ms < kDayMs) return absl::StrFormat("%.1f hours", ms / kHourMs);
  if (ms < kYearMs) return absl::StrFormat("%.1f days", ms / kDayMs);
  if (ms < 1000 * kYearMs) return absl::StrFormat("%.1f years", ms / kYearMs);
  return "over 1000 years";
}

std::string Row(const std::vector<std::string>& cells, const std::string& tag = "td") {
  std::string row = "<tr>";
  for (const std::string& cell : cells) absl::StrAppend(&row, "<", tag, ">", cell, "</", tag, ">");
  return row + "</tr>\n";
}

std::string AccuracyRow(const std::string& name, const RankingMetrics& m) {
  std::vector<std::string> cells = {name, absl::StrCat(m.users)};
  for (const double value : {m.ndcg10, m.hr10, m.mrr10, m.ndcg20, m.hr20, m.mrr20}) {
    cells.push_back(absl::StrFormat("%.4f", value));
  }
  return Row(cells);
}

std::string Summary(const ReportInputs& inputs) {
  std::string html = "<section id=\"summary\">\n<h2>Summary</h2>\n<table>\n";
  for (const auto& [name, value] : inputs.facts) {
    html += Row({EscapeHtml(name), EscapeHtml(value)});
  }
  html += "</table>\n<p></p>\n<table>\n";
  html += Row({"split", "users", "NDCG@10", "HR@10", "MRR@10", "NDCG@20", "HR@20", "MRR@20"}, "th");
  html += AccuracyRow("validation", inputs.trained->valid);
  html += AccuracyRow("test", inputs.test->metrics);
  return html +
         "</table>\n<p class=\"note\">Leave one out: the target is each user's last interaction "
         "(test) or the one before it (validation); the whole catalogue is ranked, items already "
         "seen included.</p>\n</section>\n";
}

std::string Curves(const TrainResult& trained) {
  LineChart loss, accuracy;
  loss.title = "Training loss (cross-entropy over the catalogue)";
  accuracy.title = "Validation NDCG@10";
  accuracy.decimals = 3;
  loss.series.resize(1);
  accuracy.series.resize(1);
  loss.series[0].name = "loss";
  accuracy.series[0].name = "validation NDCG@10";
  for (size_t i = 0; i < trained.curve.size(); ++i) {
    const double epoch = static_cast<double>(i + 1);
    loss.series[0].points.emplace_back(epoch, trained.curve[i].loss);
    accuracy.series[0].points.emplace_back(epoch, trained.curve[i].valid_ndcg10);
  }
  loss.x_label = accuracy.x_label = "epoch";
  loss.mark_x = accuracy.mark_x = static_cast<double>(trained.best_epoch);
  accuracy.mark = absl::StrCat("kept: epoch ", trained.best_epoch);
  loss.mark = accuracy.mark;
  return absl::StrCat(
      "<section id=\"learning\">\n<h2>Learning curves</h2>\n<div class=\"charts\">\n", Draw(loss),
      Draw(accuracy), "</div>\n</section>\n");
}

BarChart Bars(const std::string& title, const std::vector<BucketMetrics>& buckets,
              double RankingMetrics::*figure, const RankingMetrics& all) {
  BarChart chart;
  chart.title = title;
  chart.line = all.*figure;
  chart.line_label = absl::StrFormat("all %.4f", chart.line);
  for (const BucketMetrics& bucket : buckets) {
    if (bucket.metrics.users == 0) continue;
    chart.bars.push_back(
        {bucket.label, bucket.metrics.*figure, absl::StrCat("(", bucket.metrics.users, " users)")});
  }
  return chart;
}

std::string Buckets(const RankingResult& test) {
  std::string html =
      "<section id=\"buckets\">\n<h2>Accuracy by kind of user (test)</h2>\n"
      "<div class=\"charts\">\n";
  html += Draw(Bars("NDCG@10 by events before the target", test.by_history, &RankingMetrics::ndcg10,
                    test.metrics));
  html += Draw(Bars("NDCG@10 by time from the last event to the target", test.by_gap,
                    &RankingMetrics::ndcg10, test.metrics));
  html += Draw(Bars("HR@10 by events before the target", test.by_history, &RankingMetrics::hr10,
                    test.metrics));
  html += Draw(Bars("HR@10 by time from the last event to the target", test.by_gap,
                    &RankingMetrics::hr10, test.metrics));
  return html +
         "</div>\n<p class=\"note\">Buckets with few users are noisy: with n users the standard "
         "error of a hit rate p is √(p(1−p)/n).</p>\n</section>\n";
}

// `memories_ms` [H]: the learned T_h of a layer.
std::string LayerDecay(int64_t layer, const std::vector<double>& memories_ms) {
  constexpr int kPoints = 121;
  LineChart chart;
  chart.title = absl::StrCat("Layer ", layer, ": share of the state left after a gap");
  chart.x_label = "gap";
  chart.log_x = true;
  chart.y_high = 1;
  chart.decimals = 1;
  chart.x_ticks = {{kMinuteMs, "1 min"},     {10 * kMinuteMs, "10 min"}, {kHourMs, "1 h"},
                   {6 * kHourMs, "6 h"},     {kDayMs, "1 day"},          {7 * kDayMs, "1 week"},
                   {30 * kDayMs, "30 days"}, {kYearMs, "1 year"}};
  std::string table = "<table>\n" + Row({"head", "half-life"}, "th");
  for (size_t head = 0; head < memories_ms.size(); ++head) {
    const double memory = memories_ms[head];
    const std::string half_life = Duration(memory * std::log(2.0));
    auto& series = chart.series.emplace_back();
    series.name = absl::StrCat("head ", head, ", half-life ", half_life);
    for (int i = 0; i < kPoints; ++i) {
      const double gap = kMinuteMs * std::pow(kYearMs / kMinuteMs, i / (kPoints - 1.0));
      series.points.emplace_back(gap, std::exp(-gap / memory));
    }
    table += Row({absl::StrFormat("<span class=\"swatch\" style=\"background:%s\"></span>%d",
                                  SeriesColor(head, memories_ms.size()), head),
                  half_life});
  }
  return absl::StrCat("<div>\n", Draw(chart), table, "</table>\n</div>\n");
}

std::string Decay(const ModelConfig& config, const TrainedTensors& tensors) {
  if (config.variant != Variant::kStreaming || !config.time_decay) return "";
  std::string html =
      "<section id=\"decay\">\n<h2>Learned decay over real time</h2>\n"
      "<p class=\"note\">What a head carries is multiplied by exp(−gap / T) before the next event "
      "is written, T learned for each head; its half-life is T · ln 2. The decay per event comes "
      "on top.</p>\n<div class=\"charts\">\n";
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto found = tensors.find(absl::StrCat("ssd_layers.", layer, ".ssd.log_memory_ms"));
    if (found == tensors.end()) continue;
    std::vector<double> memories_ms;
    for (const float log_memory : found->second.second) memories_ms.push_back(std::exp(log_memory));
    html += LayerDecay(layer, memories_ms);
  }
  return html + "</div>\n</section>\n";
}

std::string Name(const Item& item) { return EscapeHtml(item.title.empty() ? item.id : item.title); }

// Popular items, spread over the most popular tenth, so that most readers know some.
std::vector<size_t> ShownItems(const std::vector<Item>& items) {
  std::vector<size_t> order(items.size() - 1);
  std::iota(order.begin(), order.end(), 1);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return items[a].train_events > items[b].train_events;
  });
  const size_t count = std::min(order.size(), kShownItems);
  const size_t stride = std::max<size_t>(1, order.size() / 10 / kShownItems);
  std::vector<size_t> shown;
  for (size_t i = 0; i < count; ++i) shown.push_back(order[std::min(i * stride, order.size() - 1)]);
  return shown;
}

std::string Neighbours(const std::vector<Item>& items, const TrainedTensors& tensors) {
  const auto found = tensors.find("item_embedding.weight");
  if (found == tensors.end() || items.size() < 2) return "";
  const size_t width = found->second.first[1];
  const std::vector<float>& table = found->second.second;
  const auto dot = [&](size_t a, size_t b) {
    return std::inner_product(table.begin() + a * width, table.begin() + (a + 1) * width,
                              table.begin() + b * width, 0.0);
  };
  std::string html =
      "<section id=\"neighbours\">\n<h2>Nearest neighbours of popular items</h2>\n"
      "<p class=\"note\">By the cosine of the learned item vectors.</p>\n<table>\n";
  html += Row({"item", "nearest", "cosine"}, "th");
  std::vector<double> lengths(items.size());
  for (size_t i = 1; i < items.size(); ++i) lengths[i] = std::sqrt(dot(i, i)) + 1e-30;
  for (const size_t item : ShownItems(items)) {
    std::vector<std::pair<double, size_t>> near;
    for (size_t other = 1; other < items.size(); ++other) {
      if (other != item)
        near.emplace_back(-dot(item, other) / lengths[item] / lengths[other], other);
    }
    const size_t count = std::min(near.size(), kNeighbours);
    std::partial_sort(near.begin(), near.begin() + count, near.end());
    std::string names, cosines;
    for (size_t i = 0; i < count; ++i) {
      absl::StrAppend(&names, i > 0 ? "<br/>" : "", Name(items[near[i].second]));
      absl::StrAppendFormat(&cosines, "%s%.2f", i > 0 ? "<br/>" : "", -near[i].first);
    }
    html += Row({Name(items[item]), names, cosines});
  }
  return html + "</table>\n</section>\n";
}

}  // namespace

std::string ReportHtml(const ReportInputs& inputs) {
  const std::string title = EscapeHtml(inputs.title);
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>", title,
      "</title>\n<style>", kStyle, "</style>\n</head>\n<body>\n<h1>", title, "</h1>\n",
      Summary(inputs), Curves(*inputs.trained), Buckets(*inputs.test),
      Decay(*inputs.config, inputs.trained->tensors),
      Neighbours(*inputs.items, inputs.trained->tensors), "</body>\n</html>\n");
}

}  // namespace tim4rec
