// Calls of a running server at a fixed rate, whether answers come or not.
#ifndef TIM4REC_TESTS_BENCH_OPEN_LOOP_H_
#define TIM4REC_TESTS_BENCH_OPEN_LOOP_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {

using Clock = std::chrono::steady_clock;

// A Recommend: when it was due, and how long after that its answer came.
struct Sample {
  Clock::time_point due;
  double ms;
};

// Ends the process, naming `what`, if the call failed.
void CheckCall(const grpc::Status& status, const char* what);

double Median(std::vector<double> values);                    // 0 of none
double Percentile(std::vector<double> values, double share);  // 0 of none
// The p99 of each second from the first sample's on, the last and incomplete one left out.
std::vector<double> P99BySecond(const std::vector<Sample>& samples);

// Three of four calls are Recommend, the others RecordInteractions of one event, each of a random
// user. Used by one thread.
class OpenLoop {
 public:
  static constexpr int kItems = 3400;  // "item1" … that are recorded

  // Gives each of `users` users `history` events.
  OpenLoop(const std::string& address, double rate, int users, int history);
  ~OpenLoop();

  void Start();
  void Stop();  // and waits for the answers
  void Forget();
  // Samples due in [begin, end), by time.
  std::vector<Sample> Between(Clock::time_point begin, Clock::time_point end);

 private:
  void Run();
  void Record();
  void Recommend(Clock::time_point due);

  const std::unique_ptr<v1::Recommender::Stub> stub_;
  const double rate_;
  const int users_;
  std::mt19937_64 random_{1};
  std::atomic<bool> done_ = false;
  std::atomic<int64_t> in_flight_ = 0;
  std::mutex mutex_;
  std::vector<Sample> samples_;
  std::thread thread_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_BENCH_OPEN_LOOP_H_
