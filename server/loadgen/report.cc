#include "server/loadgen/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tim4rec {
namespace {

using Json = nlohmann::ordered_json;

// A goal of performance.md: at least this ratio to the empty handler, or, for R3, this many events
// a second.
struct Goal {
  std::string name;
  std::optional<double> ratio;
  std::optional<double> events_per_second;
};

Goal GoalOf(const LoadOptions& options) {
  const bool one = options.events == 1 && options.rate == 0;
  switch (options.scenario) {
    case Scenario::kRecommend:
      return {"R1", 0.8, {}};
    case Scenario::kRecord:
      if (!one || options.in_flight != 64) break;
      return options.ack == v1::ACK_DURABLE ? Goal{"R2 ACK_DURABLE", 0.6, {}}
                                            : Goal{"R2 ACK_APPLIED", 0.8, {}};
    case Scenario::kStream:
      if (options.batch_users * options.events != 256) break;
      return {"R3", {}, 250'000};
    default:
      break;
  }
  return {"ratio", {}, {}};
}

const char* ScenarioName(Scenario scenario) {
  static constexpr const char* kNames[] = {"recommend", "record", "mixed", "stream", "batch"};
  return kNames[static_cast<int>(scenario)];
}

double PerSecond(const LoadResult& result, double count) {
  return result.seconds > 0 ? count / result.seconds : 0;
}

// What a goal compares: events of streams, else calls. An empty handler repeats one answer, whose
// counts stand for what was sent.
double Rate(const Report& report, const LoadResult& result) {
  return PerSecond(result, report.options.scenario == Scenario::kStream
                               ? static_cast<double>(result.tally.events)
                               : static_cast<double>(result.calls()));
}

struct Spread {
  double median, min, max;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

Spread RateSpread(const Report& report, const std::vector<LoadResult>& results) {
  std::vector<double> rates;
  for (const LoadResult& result : results) rates.push_back(Rate(report, result));
  return SpreadOf(rates);
}

Spread Ratios(const Report& report) {
  std::vector<double> ratios;
  for (size_t i = 0; i < report.target.size(); ++i) {
    const double empty = Rate(report, report.empty[i]);
    ratios.push_back(empty > 0 ? Rate(report, report.target[i]) / empty : 0);
  }
  return SpreadOf(ratios);
}

// In the order of time: A B, B A, A B, ….
std::vector<std::pair<const char*, const LoadResult*>> Runs(const Report& report) {
  std::vector<std::pair<const char*, const LoadResult*>> runs;
  for (size_t i = 0; i < report.target.size(); ++i) {
    runs.emplace_back("target", &report.target[i]);
    if (report.empty.empty()) continue;
    runs.emplace_back("empty_handler", &report.empty[i]);
    if (i % 2 == 1) std::swap(runs[runs.size() - 2], runs.back());
  }
  return runs;
}

Json LatencyJson(const Histogram& h) {
  const auto us = [](double ns) { return std::round(ns / 10) / 100; };
  const auto q = [&](double at) { return us(static_cast<double>(h.Quantile(at))); };
  return {{"count", h.count()},
          {"mean", us(h.mean())},
          {"min", us(static_cast<double>(h.min()))},
          {"p50", q(0.5)},
          {"p90", q(0.9)},
          {"p99", q(0.99)},
          {"p99.9", q(0.999)},
          {"max", us(static_cast<double>(h.max()))}};
}

Json ResultJson(const char* of, const LoadResult& result) {
  Json json = {{"of", of},
               {"seconds", result.seconds},
               {"calls", result.calls()},
               {"calls_per_second", PerSecond(result, static_cast<double>(result.calls()))},
               {"events_per_second", PerSecond(result, static_cast<double>(result.tally.events))},
               {"recommendations_per_second",
                PerSecond(result, static_cast<double>(result.tally.recommendations))},
               {"client_cpu_seconds", result.client_cpu_seconds},
               {"errors", result.tally.errors},
               {"outcomes", result.tally.outcomes},
               {"tiers", result.tally.tiers}};
  Json& latency = json["latency_us"] = Json::object();
  for (int c = 0; c < kCalls; ++c) {
    if (result.latency_ns[c].count() == 0) continue;
    latency[CallName(static_cast<Call>(c))] = LatencyJson(result.latency_ns[c]);
  }
  return json;
}

std::string ResultText(const char* of, const LoadResult& result) {
  std::string text = absl::StrFormat("%-13s %9.0f calls/s", of,
                                     PerSecond(result, static_cast<double>(result.calls())));
  if (result.tally.events > 0) {
    absl::StrAppendFormat(&text, "  %9.0f events/s",
                          PerSecond(result, static_cast<double>(result.tally.events)));
  }
  for (int c = 0; c < kCalls; ++c) {
    const Histogram& h = result.latency_ns[c];
    if (h.count() == 0) continue;
    const auto us = [&](double q) { return 1e-3 * static_cast<double>(h.Quantile(q)); };
    absl::StrAppendFormat(&text, "  %s us: p50 %.0f  p90 %.0f  p99 %.0f  p99.9 %.0f  max %.0f",
                          CallName(static_cast<Call>(c)), us(0.5), us(0.9), us(0.99), us(0.999),
                          1e-3 * static_cast<double>(h.max()));
  }
  for (const auto& [code, count] : result.tally.errors) {
    absl::StrAppend(&text, "  ", code, " ", count);
  }
  if (!result.tally.errors.empty()) absl::StrAppend(&text, "  (", result.tally.first_error, ")");
  return text + "\n";
}

}  // namespace

bool Report::ok() const {
  const auto good = [](const LoadResult& result) { return result.tally.errors.empty(); };
  return histories.errors.empty() && !target.empty() &&
         std::all_of(target.begin(), target.end(), good) &&
         std::all_of(empty.begin(), empty.end(), good);
}

std::string Report::ToText() const {
  std::string text;
  for (const auto& [code, count] : histories.errors) {
    absl::StrAppend(&text, "histories: ", code, " ", count, " (", histories.first_error, ")\n");
  }
  for (const auto& [of, result] : Runs(*this)) text += ResultText(of, *result);
  if (empty.empty() || target.empty()) return text;
  const Goal goal = GoalOf(options);
  const Spread ratios = Ratios(*this);
  absl::StrAppendFormat(&text, "%s: %.2f (%.2f to %.2f) of the empty handler's throughput",
                        goal.name, ratios.median, ratios.min, ratios.max);
  if (goal.ratio) absl::StrAppendFormat(&text, ", goal %.1f", *goal.ratio);
  if (goal.events_per_second) {
    absl::StrAppendFormat(&text, "; %.0f events/s, goal %.0f", RateSpread(*this, target).median,
                          *goal.events_per_second);
  }
  return text + "\n";
}

std::string Report::ToJson() const {
  Json json = {{"scenario", ScenarioName(options.scenario)},
               {"target", address},
               {"options",
                {{"users", options.users},
                 {"history", options.history},
                 {"events", options.events},
                 {"batch_users", options.batch_users},
                 {"k", options.k},
                 {"ack", v1::Ack_Name(options.ack)},
                 {"seed", options.seed},
                 {"rate", options.rate},
                 {"in_flight", options.in_flight},
                 {"duration", options.seconds},
                 {"threads", options.threads}}}};
  if (!histories.errors.empty()) json["history_errors"] = histories.errors;
  if (!empty.empty() && !target.empty()) {
    const Goal goal = GoalOf(options);
    const Spread ratios = Ratios(*this);
    Json& result = json[goal.name] = Json::object();
    if (goal.ratio) result["goal"] = *goal.ratio;
    if (goal.events_per_second) result["goal_events_per_second"] = *goal.events_per_second;
    result["median"] = ratios.median;
    result["min"] = ratios.min;
    result["max"] = ratios.max;
    result["ours"] = RateSpread(*this, target).median;
    result["ceiling"] = RateSpread(*this, empty).median;
  }
  Json& runs = json["runs"] = Json::array();
  for (const auto& [of, result] : Runs(*this)) runs.push_back(ResultJson(of, *result));
  return json.dump(2) + "\n";
}

}  // namespace tim4rec
