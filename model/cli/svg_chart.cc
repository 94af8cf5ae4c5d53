#include "model/cli/svg_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tim4rec {
namespace {

constexpr double kWidth = 560, kHeight = 300;
constexpr double kLeft = 62, kRight = 20, kTop = 36, kBottom = 48;
constexpr double kBarHeight = 22, kBarLeft = 130, kBarRight = 150;

std::string Open(double width, double height, const std::string& title) {
  return absl::StrFormat(
      "<svg viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" role=\"img\" aria-label=\"%s\">\n"
      "<text class=\"title\" x=\"%g\" y=\"18\">%s</text>\n",
      width, height, width, height, EscapeHtml(title), 8.0, EscapeHtml(title));
}

std::string Text(double x, double y, const std::string& anchor, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
                         EscapeHtml(text));
}

std::string Line(const std::string& kind, double x1, double y1, double x2, double y2) {
  return absl::StrFormat("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                         kind, x1, y1, x2, y2);
}

// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
double RoundStep(double step) {
  const double power = std::pow(10, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::vector<double> RoundMarks(double low, double high, double least_step) {
  const double step = std::max(least_step, RoundStep((high - low) / 5));
  std::vector<double> marks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
    marks.push_back(i * step + 0.0);  // no -0
  }
  return marks;
}

// Maps values to places in the drawing.
struct Axis {
  double low, high, begin, end;
  bool log;

  double operator()(double value) const {
    const double share =
        log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return begin + share * (end - begin);
  }
};

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;

  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Never empty.
  void Widen() {
    if (!(low <= high)) low = 0, high = 1;
    if (low == high) low -= 0.5, high += 0.5;
  }
};

// The range outward to round marks.
void Round(Range* range) {
  const double step = RoundStep((range->high - range->low) / 5);
  range->low = step * std::floor(range->low / step + 1e-9);
  range->high = step * std::ceil(range->high / step - 1e-9);
}

bool Finite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

// Whether the first line is in the lower half of the chart where the mark stands.
bool PassesLow(const LineChart& chart, const Axis& y) {
  for (const auto& series : chart.series) {
    for (const auto& point : series.points) {
      if (point.first >= chart.mark_x) return y(point.second) > (kTop + kHeight - kBottom) / 2;
    }
  }
  return false;
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
    }
  }
  return escaped;
}

std::string SeriesColor(size_t i, size_t count) {
  const double share = count > 1 ? static_cast<double>(i) / static_cast<double>(count - 1) : 0;
  return absl::StrFormat("hsl(%.0f,70%%,42%%)", 215 + 180 * share);
}

std::string Draw(const LineChart& chart) {
  Range xs, ys;
  for (const auto& series : chart.series) {
    for (const auto& point : series.points) {
      if (!Finite(point)) continue;
      xs.Add(point.first);
      ys.Add(point.second);
    }
  }
  if (chart.y_low != chart.y_high) ys = {chart.y_low, chart.y_high};
  xs.Widen();
  ys.Widen();
  Round(&ys);
  const Axis x = {xs.low, xs.high, kLeft, kWidth - kRight, chart.log_x};
  const Axis y = {ys.low, ys.high, kHeight - kBottom, kTop, false};
  std::string svg = Open(kWidth, kHeight, chart.title);
  for (const double mark : RoundMarks(ys.low, ys.high, 0)) {
    svg += Line("grid", kLeft, y(mark), kWidth - kRight, y(mark));
    svg += Text(kLeft - 6, y(mark) + 4, "end", absl::StrFormat("%.*f", chart.decimals, mark));
  }
  auto ticks = chart.x_ticks;
  if (ticks.empty()) {
    for (const double mark : RoundMarks(xs.low, xs.high, 1)) {
      ticks.emplace_back(mark, absl::StrFormat("%g", mark));
    }
  }
  for (const auto& [value, label] : ticks) {
    if (value < xs.low || value > xs.high) continue;
    svg += Line("grid", x(value), kTop, x(value), kHeight - kBottom);
    svg += Text(x(value), kHeight - kBottom + 16, "middle", label);
  }
  svg += Line("axis", kLeft, kHeight - kBottom, kWidth - kRight, kHeight - kBottom);
  svg += Text((kLeft + kWidth - kRight) / 2, kHeight - 10, "middle", chart.x_label);
  if (!chart.mark.empty()) {
    const double place = x(chart.mark_x);
    const bool right_half = place > kWidth / 2;
    const double text_y = PassesLow(chart, y) ? kTop + 14 : kHeight - kBottom - 8;
    svg += Line("mark", place, kTop, place, kHeight - kBottom);
    svg += Text(place + (right_half ? -5 : 5), text_y, right_half ? "end" : "start", chart.mark);
  }
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const std::string color = SeriesColor(i, chart.series.size());
    std::string points, dots;
    size_t count = 0;
    for (const auto& point : chart.series[i].points) {
      if (!Finite(point)) continue;
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x(point.first), y(point.second));
      absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n",
                            x(point.first), y(point.second), color);
      ++count;
    }
    absl::StrAppendFormat(&svg,
                          "<polyline class=\"line\" stroke=\"%s\" points=\"%s\"><title>%s</title>"
                          "</polyline>\n",
                          color, points, EscapeHtml(chart.series[i].name));
    if (count <= 60) svg += dots;
  }
  return svg + "</svg>\n";
}

std::string Draw(const BarChart& chart) {
  double high = chart.line_label.empty() ? 0 : chart.line;
  for (const auto& bar : chart.bars) high = std::max(high, bar.value);
  if (!(high > 0)) high = 1;
  const double height = kTop + kBarHeight * static_cast<double>(chart.bars.size()) + 24;
  const Axis x = {0, high, kBarLeft, kWidth - kBarRight, false};
  std::string svg = Open(kWidth, height, chart.title);
  if (!chart.line_label.empty()) {
    svg += Line("mark", x(chart.line), kTop - 2, x(chart.line), height - 22);
    svg += Text(x(chart.line), height - 8, "middle", chart.line_label);
  }
  double top = kTop;
  for (const auto& bar : chart.bars) {
    svg += Text(kBarLeft - 8, top + 15, "end", bar.label);
    absl::StrAppendFormat(
        &svg, "<rect class=\"bar\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n",
        kBarLeft, top + 3, std::max(0.0, x(bar.value) - kBarLeft), kBarHeight - 6);
    svg += Text(x(bar.value) + 6, top + 15, "start",
                absl::StrFormat("%.*f%s%s", chart.decimals, bar.value, bar.note.empty() ? "" : "  ",
                                bar.note));
    top += kBarHeight;
  }
  return svg + "</svg>\n";
}

}  // namespace tim4rec
