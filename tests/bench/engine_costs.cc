// What the engine (cpu) takes of a request, and what a second thread brings.
//
//   engine_costs MODEL [ROUNDS] [USERS]     a model package; default 7 rounds, 2000 users
//
// Every user has a history of 50 events. First one event folded for one user, and Query and TopK
// (10 of the catalogue, the user's items left out) for one user, users in random order:
// microseconds of wall time. Then one thread against two, each with users of its own, in turns:
// steps of 128 users, rankings of 16, and multiply-adds that need nothing of each other. A second
// core shared with other work gives its thread little wall time, so that beside the ratio of wall
// times stands that of thread time, which sees what the threads take from each other: caches,
// memory, locks.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "model/backends/builtin.h"
#include "model/engine/engine.h"
#include "tests/bench/ceilings.h"

namespace tim4rec {
namespace {

constexpr int64_t kHistory = 50;
constexpr int64_t kHourMs = 3'600'000;
constexpr size_t kTogether = 128;
constexpr size_t kQueries = 16;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "engine_costs: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}

template <typename T>
void Must(const absl::StatusOr<T>& result) {
  Must(result.status());
}

struct User {
  Slot slot;
  int64_t now_ms;
  std::vector<int32_t> seen;
  FoldEvent next;
};

// Users of one thread, and what it does with them.
class Part {
 public:
  Part(Backend& backend, const ModelConfig& config, int64_t users, uint64_t seed)
      : backend_(backend), items_(config.n_items), width_(config.hidden_size), random_(seed) {
    for (int64_t u = 0; u < users; ++u) {
      std::vector<FoldEvent> history;
      for (int64_t i = 0; i < kHistory; ++i) history.push_back({Item(), i * kHourMs});
      const auto slot = backend.Allocate();
      Must(slot);
      const tim4rec::Run run = {*slot, history};
      Must(backend.Advance({&run, 1}));
      User& user = users_.emplace_back(User{*slot, kHistory * kHourMs, {}, {}});
      for (const FoldEvent& event : history) user.seen.push_back(event.item);
      std::sort(user.seen.begin(), user.seen.end());
      user.seen.erase(std::unique(user.seen.begin(), user.seen.end()), user.seen.end());
    }
    std::shuffle(users_.begin(), users_.end(), random_);
  }

  // One event each of the next `count` users.
  void Step(size_t count) {
    runs_.clear();
    for (size_t i = 0; i < count; ++i) {
      User& user = NextUser();
      user.next = {Item(), user.now_ms += kHourMs};
      runs_.push_back({user.slot, {&user.next, 1}});
    }
    Must(backend_.Advance(runs_));
  }

  // The best 10 for each of the next `count` users.
  void Recommend(size_t count) {
    reads_.clear();
    queries_.resize(count * width_);
    tops_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const User& user = NextUser();
      reads_.push_back({user.slot, user.now_ms + kHourMs});
      tops_[i].query = std::span(queries_).subspan(i * width_, width_);
      tops_[i].excluded = user.seen;
    }
    Must(backend_.Query(reads_, queries_));
    Must(backend_.TopK(tops_, &results_));
  }

 private:
  int32_t Item() { return 1 + static_cast<int32_t>(random_() % static_cast<uint64_t>(items_ - 1)); }
  User& NextUser() { return users_[next_++ % users_.size()]; }

  Backend& backend_;
  const int64_t items_;
  const size_t width_;
  std::mt19937_64 random_;
  std::vector<User> users_;
  size_t next_ = 0;
  std::vector<tim4rec::Run> runs_;
  std::vector<QueryRequest> reads_;
  std::vector<float> queries_;
  std::vector<TopKRequest> tops_;
  std::vector<std::vector<ScoredItem>> results_;
};

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Quantile(std::vector<double>* values, double q) {
  std::sort(values->begin(), values->end());
  return (*values)[static_cast<size_t>(q * static_cast<double>(values->size() - 1))];
}

void PrintCalls(const char* name, const std::function<void()>& call) {
  constexpr int kCalls = 20'000;
  std::vector<double> us;
  const double start = ThreadSeconds();
  for (int i = 0; i < kCalls; ++i) {
    const double begin = WallSeconds();
    call();
    us.push_back(1e6 * (WallSeconds() - begin));
  }
  const double mean = 1e6 * (ThreadSeconds() - start) / kCalls;
  const double p50 = Quantile(&us, 0.5), p90 = Quantile(&us, 0.9), p99 = Quantile(&us, 0.99);
  std::printf("%-28s p50 %.1f us  p90 %.1f  p99 %.1f  thread time %.1f\n", name, p50, p90, p99,
              mean);
}

struct Elapsed {
  double wall = 0;
  double cpu = 0;  // mean over the threads
};

// `work` on each of the first `threads` parts at once.
Elapsed Measure(std::vector<std::unique_ptr<Part>>& parts, size_t threads,
                const std::function<void(Part&)>& work) {
  std::vector<double> cpu(threads);
  std::barrier begin(static_cast<std::ptrdiff_t>(threads) + 1);
  std::vector<std::thread> running;
  for (size_t t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      begin.arrive_and_wait();
      const double start = ThreadSeconds();
      work(*parts[t]);
      cpu[t] = ThreadSeconds() - start;
    });
  }
  begin.arrive_and_wait();
  const double start = WallSeconds();
  for (std::thread& thread : running) thread.join();
  Elapsed elapsed{WallSeconds() - start, 0};
  for (const double seconds : cpu) elapsed.cpu += seconds / static_cast<double>(threads);
  return elapsed;
}

void CompareThreads(const char* name, int rounds, std::vector<std::unique_ptr<Part>>& parts,
                    const std::function<void(Part&)>& work) {
  std::vector<double> wall, cpu;
  for (int round = 0; round < rounds; ++round) {
    Elapsed one, two;
    if (round % 2 == 0) one = Measure(parts, 1, work);
    two = Measure(parts, 2, work);
    if (round % 2 == 1) one = Measure(parts, 1, work);
    wall.push_back(2 * one.wall / two.wall);
    cpu.push_back(2 * one.cpu / two.cpu);
  }
  const double median = Quantile(&wall, 0.5), cpu_median = Quantile(&cpu, 0.5);
  std::printf(
      "%-28s two threads: %.2f x one (%.2f to %.2f) by wall time, %.2f (%.2f to %.2f) by "
      "thread time\n",
      name, median, wall.front(), wall.back(), cpu_median, cpu.front(), cpu.back());
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: engine_costs MODEL [ROUNDS] [USERS]\n");
    return 2;
  }
  const int rounds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 7;
  const int64_t users = argc > 3 ? std::max<int64_t>(1, std::atoll(argv[3])) : 2000;
  const auto package = ModelPackage::Open(argv[1]);
  Must(package);
  const auto engine = Engine::Create(*package, BuiltinBackends(), "cpu");
  Must(engine);
  Backend& backend = (*engine)->backend();
  const ModelConfig& config = (*engine)->config();
  std::printf("%lld items, D %lld, states of %lld bytes, %s\n",
              static_cast<long long>(config.n_items - 1),
              static_cast<long long>(config.hidden_size),
              static_cast<long long>(backend.state_bytes()), std::string(backend.isa()).c_str());
  std::vector<std::unique_ptr<Part>> parts;
  for (uint64_t t = 0; t < 2; ++t) {
    parts.push_back(std::make_unique<Part>(backend, config, std::max<int64_t>(1, users / 2), t));
  }
  PrintCalls("one event of one user", [&] { parts[0]->Step(1); });
  PrintCalls("Query and TopK of one user", [&] { parts[0]->Recommend(1); });
  CompareThreads("steps of 128 users", rounds, parts, [](Part& part) {
    for (int i = 0; i < 200; ++i) part.Step(kTogether);
  });
  CompareThreads("Query and TopK of 16 users", rounds, parts, [](Part& part) {
    for (int i = 0; i < 1000; ++i) part.Recommend(kQueries);
  });
  const std::string isa(backend.isa());
  CompareThreads("FMA in registers, the limit", rounds, parts, [&isa](Part&) {
    for (int64_t done = 0; done < 20'000'000'000;) done += MultiplyAddInRegisters(isa.c_str());
  });
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main(argc, argv); }
