// Latency of Recommend while states are checkpointed: a client for two running servers.
//
//   checkpoint_latency CALM_HOST:PORT WRITING_HOST:PORT [RATE] [ROUNDS] [SECONDS] [USERS] [HISTORY]
//
// The first server runs with checkpoint_interval_ms: 0, the second with a short interval. They are
// called in turns, A B B A, SECONDS each, as swap_latency calls (model: its DIR/a). Measured from
// when a call was due; every second counts but the first of a turn.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/bench/open_loop.h"

namespace tim4rec {
namespace {

constexpr auto kSecond = std::chrono::seconds(1);

struct Leg {
  std::vector<double> p50, p99, p999, worst_second;
};

void Measure(OpenLoop& load, int seconds, const char* name, Leg* legs) {
  std::this_thread::sleep_for(kSecond);  // what the other server has begun ends
  load.Forget();
  load.Start();
  std::this_thread::sleep_for(kSecond);
  const auto begin = Clock::now();
  std::this_thread::sleep_for(seconds * kSecond);
  const auto end = Clock::now();
  load.Stop();
  const std::vector<Sample> samples = load.Between(begin, end);
  std::vector<double> ms;
  for (const Sample& sample : samples) ms.push_back(sample.ms);
  const std::vector<double> by_second = P99BySecond(samples);
  legs->p50.push_back(Percentile(ms, 0.5));
  legs->p99.push_back(Percentile(ms, 0.99));
  legs->p999.push_back(Percentile(ms, 0.999));
  legs->worst_second.push_back(Percentile(by_second, 1));
  std::printf("%-8s %6.2f %6.2f %7.2f %7.2f\n", name, legs->p50.back(), legs->p99.back(),
              legs->p999.back(), legs->worst_second.back());
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  if (argc < 3 || argc > 8) {
    std::fprintf(stderr,
                 "usage: checkpoint_latency CALM_HOST:PORT WRITING_HOST:PORT [RATE] [ROUNDS] "
                 "[SECONDS] [USERS] [HISTORY]\n");
    return 2;
  }
  const auto number = [&](int i, int otherwise) {
    return i < argc ? std::max(1, std::atoi(argv[i])) : otherwise;
  };
  const double rate = number(3, 1000);
  const int rounds = number(4, 6), seconds = number(5, 5);
  const int users = number(6, 3000), history = number(7, 20);
  OpenLoop calm(argv[1], rate, users, history), writing(argv[2], rate, users, history);
  Leg calm_legs, writing_legs;
  std::printf("ms          p50    p99   p99.9  p99 of the worst second\n");
  for (int round = 0; round < rounds; ++round) {
    for (const bool second : {round % 2 != 0, round % 2 == 0}) {
      if (second) {
        Measure(writing, seconds, "writing", &writing_legs);
      } else {
        Measure(calm, seconds, "calm", &calm_legs);
      }
    }
  }
  std::vector<double> ratios;
  for (int i = 0; i < rounds; ++i) ratios.push_back(writing_legs.p99[i] / calm_legs.p99[i]);
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  for (const auto& [name, legs] : {std::pair("calm", &calm_legs), {"writing", &writing_legs}}) {
    std::printf("medians: %-8s %6.2f %6.2f %7.2f %7.2f\n", name, Median(legs->p50),
                Median(legs->p99), Median(legs->p999), Median(legs->worst_second));
  }
  std::printf("p99, writing / calm: %.2f (%.2f to %.2f)\n", Median(ratios), *least, *most);
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main(argc, argv); }
