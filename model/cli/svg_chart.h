// Charts as inline SVG, for one HTML file without anything from outside. Text is escaped here.
#ifndef TIM4REC_MODEL_CLI_SVG_CHART_H_
#define TIM4REC_MODEL_CLI_SVG_CHART_H_

#include <string>
#include <utility>
#include <vector>

namespace tim4rec {

// & < > " and ' as entities; control characters, which no HTML may have, as spaces.
std::string EscapeHtml(const std::string& text);

// The colour of series `i` of `count`.
std::string SeriesColor(size_t i, size_t count);

struct LineChart {
  struct Series {
    std::string name;                               // shown when the pointer rests on the line
    std::vector<std::pair<double, double>> points;  // x ascending
  };
  std::string title;
  std::string x_label;
  std::vector<Series> series;
  bool log_x = false;  // then x > 0
  // Marks on the x axis with their texts; none: round numbers.
  std::vector<std::pair<double, std::string>> x_ticks;
  // Range of y; equal: that of the points.
  double y_low = 0, y_high = 0;
  int decimals = 2;   // of the marks on the y axis
  double mark_x = 0;  // a vertical line with `mark`, if that is not empty
  std::string mark;
};

// An <svg> element; points that are not finite are left out.
std::string Draw(const LineChart& chart);

struct BarChart {
  struct Bar {
    std::string label;
    double value = 0;  // not negative
    std::string note;  // behind the value
  };
  std::string title;
  std::vector<Bar> bars;  // drawn from top to bottom
  int decimals = 4;       // of the values
  double line = 0;        // a vertical line with `line_label`, if that is not empty
  std::string line_label;
};

std::string Draw(const BarChart& chart);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_SVG_CHART_H_
