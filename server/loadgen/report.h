// What tim4rec-loadgen prints.
#ifndef TIM4REC_SERVER_LOADGEN_REPORT_H_
#define TIM4REC_SERVER_LOADGEN_REPORT_H_

#include <string>
#include <vector>

#include "server/loadgen/load.h"

namespace tim4rec {

// The measurements of one program run. Without an empty handler `empty` is empty; else both have
// one entry per round, of which even ones began with the target.
struct Report {
  LoadOptions options;
  std::string address;
  std::vector<LoadResult> target;
  std::vector<LoadResult> empty;
  Tally histories;

  bool ok() const;  // no error in it

  std::string ToText() const;
  // Keys: "scenario", "target", "options", "runs" (each with "of", "seconds", "calls",
  // "calls_per_second", "events_per_second", "recommendations_per_second", "client_cpu_seconds",
  // "errors", "outcomes", "tiers", "latency_us" by call), and with an empty handler the goal's name
  // with "goal", "median", "min", "max" (ratio of the calls per second, round by round), "ours" and
  // "ceiling" (median calls per second, for R3 events per second).
  std::string ToJson() const;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_REPORT_H_
