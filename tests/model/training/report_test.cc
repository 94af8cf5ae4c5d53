#include "model/cli/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <string>
#include <vector>

#include "model/cli/svg_chart.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Empty if every element is closed where it was opened and every < and & is part of markup; else
// the text around the fault.
std::string FaultOf(const std::string& html) {
  std::vector<std::string> open;
  const std::string doctype = "<!DOCTYPE html>";
  if (!html.starts_with(doctype)) return "no DOCTYPE";
  for (size_t i = doctype.size(); i < html.size(); ++i) {
    const std::string around = html.substr(i, 60);
    if (html[i] == '&') {
      const size_t end = html.find(';', i);
      if (end == std::string::npos || end - i > 7) return "a bare & at: " + around;
    }
    if (html[i] == '>') return "a bare > at: " + around;
    if (html[i] != '<') continue;
    size_t end = i + 1;
    bool quoted = false;
    for (; end < html.size() && (quoted || html[end] != '>'); ++end) {
      if (html[end] == '"') quoted = !quoted;
      if (html[end] == '<') return "a < within a tag at: " + around;
    }
    if (end == html.size()) return "a tag without end at: " + around;
    const bool closing = html[i + 1] == '/';
    size_t name_end = i + 1 + closing;
    while (std::isalnum(static_cast<unsigned char>(html[name_end]))) ++name_end;
    const std::string name = html.substr(i + 1 + closing, name_end - i - 1 - closing);
    if (closing) {
      if (open.empty() || open.back() != name) return "closed but not open: " + around;
      open.pop_back();
    } else if (html[end - 1] != '/') {
      open.push_back(name);
    }
    i = end;
  }
  return open.empty() ? "" : "never closed: " + open.back();
}

class Report : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.n_items = 8;
    config_.hidden_size = 2;
    config_.num_layers = 2;
    items_.resize(8);
    for (int i = 1; i < 8; ++i) {
      items_[i].id = "id" + std::to_string(i);
      items_[i].train_events = 100 - i;
    }
    items_[1].title = "Tom & Jerry: <script>alert(\"1\")</script>";
    items_[2].title = "Amélie's \x01way";
    std::vector<float> table(16);
    for (int i = 0; i < 8; ++i) {
      table[2 * i] = std::cos(0.3f * i);
      table[2 * i + 1] = std::sin(0.3f * i);
    }
    trained_.tensors["item_embedding.weight"] = {{8, 2}, table};
    // Half-lives of an hour and of 100 days.
    const std::vector<float> memories = {std::log(3'600'000 / std::log(2.0f)),
                                         std::log(8.64e9f / std::log(2.0f))};
    trained_.tensors["ssd_layers.0.ssd.log_memory_ms"] = {{2}, memories};
    trained_.tensors["ssd_layers.1.ssd.log_memory_ms"] = {{2}, memories};
    trained_.curve = {{7, 0.01}, {6, 0.02}, {5.5, 0.018}};
    trained_.best_epoch = 2;
    std::vector<RankingCase> cases(3);
    cases[0] = {std::vector<FoldEvent>(3), 7, 0, 0};
    cases[1] = {std::vector<FoldEvent>(30), 8, 0, 59'999};
    cases[2] = {std::vector<FoldEvent>(12), 9, 0, 366LL * 86'400'000};
    test_ = MeterRanking(cases, std::vector<std::vector<ScoredItem>>(3, {{7, 2.0f}, {8, 1.0f}}));
  }

  std::string Html() {
    return ReportHtml(
        {"a <title> & more", {{"data", "x<y>.csv"}}, &config_, &items_, &trained_, &test_});
  }

  ModelConfig config_;
  std::vector<Item> items_;
  TrainResult trained_;
  RankingResult test_;
};

TEST_F(Report, IsWellFormedAndNeedsNothingFromOutside) {
  const std::string html = Html();
  EXPECT_EQ(FaultOf(html), "");
  for (const char* outside : {"http", "src=", "href", "url(", "@import", "<script", "<link"}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf,")));
}

TEST_F(Report, HasItsSections) {
  const std::string html = Html();
  for (const char* part :
       {"<section id=\"summary\">", "<section id=\"learning\">", "<section id=\"buckets\">",
        "<section id=\"decay\">", "<section id=\"neighbours\">", "kept: epoch 2",
        "Validation NDCG@10", "20-49 events", "365+ days", "(1 users)", "1.0 hours", "100.0 days",
        "1 year", "x&lt;y&gt;.csv"}) {
    EXPECT_THAT(html, HasSubstr(part));
  }
  EXPECT_THAT(html, Not(HasSubstr("200+ events"))) << "a bucket without users";
}

TEST_F(Report, EscapesTitles) {
  const std::string html = Html();
  EXPECT_THAT(html,
              HasSubstr("Tom &amp; Jerry: &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;"));
  EXPECT_THAT(html, HasSubstr("Amélie&#39;s  way"));
  // Neighbours along the circle; items without a title go by their ids.
  EXPECT_THAT(html, HasSubstr("<tr><td>id7</td><td>id6<br/>id5<br/>id4<br/>id3<br/>"));
}

TEST_F(Report, LeavesOutDecayThatTheModelDoesNotHave) {
  config_.time_decay = false;
  const std::string html = Html();
  EXPECT_EQ(FaultOf(html), "");
  EXPECT_THAT(html, Not(HasSubstr("id=\"decay\"")));
}

TEST_F(Report, StandsDegenerateRuns) {
  trained_.curve = {{5, 0}};
  trained_.best_epoch = 1;
  test_ = MeterRanking({}, {});
  EXPECT_EQ(FaultOf(Html()), "");
  EXPECT_THAT(Html(), Not(HasSubstr("nan")));
}

TEST(SvgChart, DrawsOnlyWhatIsFinite) {
  LineChart chart;
  chart.series.push_back({"a", {{1, NAN}, {2, INFINITY}}});
  EXPECT_THAT(Draw(chart), HasSubstr("points=\"\""));
  EXPECT_THAT(Draw(BarChart()), HasSubstr("</svg>"));
}

}  // namespace
}  // namespace tim4rec
