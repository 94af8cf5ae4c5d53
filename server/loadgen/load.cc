#include "server/loadgen/load.h"

#include <grpcpp/alarm.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tim4rec {
namespace {

// How long after its end an open loop still sends what was due.
constexpr std::chrono::seconds kPatience(10);
constexpr int64_t kNoLimit = INT64_MAX;

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// What is to be sent on one connection.
struct Plan {
  Clock::time_point start, end;  // of what becomes due
  int64_t requests = kNoLimit;   // at most
  double rate = 0;               // per second; 0: as soon as there is room
  uint64_t seed = 0;
};

// Drives a caller: the thread that runs it takes the answers and, in a closed loop, sends; in an
// open loop a second thread sends at the times of the schedule.
class Driver {
 public:
  Driver(const Plan& plan, grpc::CompletionQueue* queue, Caller* caller,
         std::function<Request()> next)
      : plan_(plan), queue_(*queue), caller_(*caller), next_(std::move(next)) {}

  void Run() {
    std::thread sender;
    if (plan_.rate > 0) {
      sender = std::thread([this] { SendOnSchedule(); });
    } else {
      std::lock_guard lock(mutex_);
      SendAll();
    }
    void* tag;
    bool ok;
    // An alarm must not go before its event is taken: its timer may be at work on it.
    while (!(caller_.closed() && (plan_.rate == 0 || woken_)) && queue_.Next(&tag, &ok)) {
      std::lock_guard lock(mutex_);
      if (tag == &wake_) {
        woken_ = true;
      } else {
        caller_.OnEvent(tag, ok);
      }
      if (plan_.rate == 0) SendAll();
      room_.notify_one();
      CloseIfOver();
    }
    if (sender.joinable()) sender.join();
  }

 private:
  void SendAll() {
    while (sent_ < plan_.requests && caller_.CanSend()) {
      const auto now = Clock::now();
      if (now >= plan_.end) break;
      caller_.Send(next_(), now);
      ++sent_;
    }
    over_ = sent_ == plan_.requests || caller_.broken() || Clock::now() >= plan_.end;
    CloseIfOver();
  }

  void CloseIfOver() {
    if (over_ && caller_.outstanding() == 0 && !std::exchange(closing_, true)) caller_.Close();
  }

  void SendOnSchedule() {
    prctl(PR_SET_TIMERSLACK, 1000);  // ns
    std::mt19937_64 random(plan_.seed);
    std::exponential_distribution<double> gap(plan_.rate);
    int64_t unsent = 0;
    for (auto due = plan_.start; (due += Seconds(gap(random))) < plan_.end;) {
      std::this_thread::sleep_until(due);
      std::unique_lock lock(mutex_);
      const bool room = room_.wait_until(lock, plan_.end + kPatience,
                                         [this] { return caller_.CanSend() || caller_.broken(); });
      if (caller_.broken()) break;
      if (room) {
        caller_.Send(next_(), due);
      } else {
        ++unsent;
      }
    }
    std::lock_guard lock(mutex_);
    if (unsent > 0) {
      caller_.result().tally.AddError("NOT_SENT", "no room for what was due", unsent);
    }
    over_ = true;
    wakeup_.Set(&queue_, std::chrono::system_clock::now(), &wake_);
  }

  const Plan plan_;
  grpc::CompletionQueue& queue_;
  Caller& caller_;
  const std::function<Request()> next_;
  std::mutex mutex_;  // guards what follows, and the caller
  std::condition_variable room_;
  int64_t sent_ = 0;
  bool over_ = false;
  bool closing_ = false;
  bool woken_ = false;  // the alarm's event was taken; belongs to Run
  grpc::Alarm wakeup_;
  char wake_ = 0;  // its address is the alarm's tag
};

}  // namespace

int64_t LoadResult::calls() const {
  int64_t calls = 0;
  for (const Histogram& histogram : latency_ns) calls += static_cast<int64_t>(histogram.count());
  return calls;
}

absl::StatusOr<std::unique_ptr<Target>> Target::Connect(const std::string& address, int threads,
                                                        const ClientSecurity& security) {
  const auto credentials =
      security.ca.empty() ? grpc::InsecureChannelCredentials()
                          : grpc::SslCredentials({security.ca, security.key, security.certificate});
  const std::string authorization = security.token.empty() ? "" : "Bearer " + security.token;
  auto target = std::make_unique<Target>();
  for (int i = 0; i < threads; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    target->connections_.push_back(
        {grpc::CreateCustomChannel(address, credentials, arguments), authorization});
  }
  const auto give_up = std::chrono::system_clock::now() + std::chrono::seconds(10);
  for (const Connection& connection : target->connections_) {
    if (!connection.channel->WaitForConnected(give_up)) {
      return absl::UnavailableError(absl::StrCat(
          address, security.ca.empty() ? ": no server answers there"
                                       : ": no server answers there, or it and this client do not "
                                         "trust one another's certificates"));
    }
  }
  return target;
}

absl::StatusOr<std::unique_ptr<Load>> Load::Create(const LoadOptions& options,
                                                   const std::vector<std::string>* items) {
  std::vector<std::string> faults;
  const auto check = [&](bool good, const char* name, int64_t value, const std::string& limit) {
    if (!good) faults.push_back(absl::StrCat(name, ": ", value, " is not ", limit));
  };
  const int64_t threads = options.threads;
  check(threads >= 1 && threads <= 256, "threads", threads, "1 to 256");
  check(options.users >= threads, "users", options.users, "at least one per thread");
  check(options.in_flight >= threads, "in-flight", options.in_flight, "at least one per thread");
  check(options.history >= 0 && options.history <= 10'000, "history", options.history,
        "0 to 10000");
  check(options.events >= 1, "events", options.events, "at least 1");
  check(options.k >= 1 && options.k <= 1000, "k", options.k, "1 to 1000");
  if (options.scenario == Scenario::kStream || options.scenario == Scenario::kBatch) {
    check(options.batch_users >= 1 &&
              options.batch_users <= options.users / std::max<int64_t>(1, threads),
          "batch-users", options.batch_users, "1 to the users of a thread");
  }
  if (!(options.rate >= 0)) faults.push_back(absl::StrCat("rate: ", options.rate, " is below 0"));
  if (!(options.seconds > 0)) {
    faults.push_back(absl::StrCat("duration: ", options.seconds, " is not above 0"));
  }
  if (items->empty()) faults.push_back("items: there is none");
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
  auto load = std::unique_ptr<Load>(new Load(options));
  for (int i = 0; i < options.threads; ++i) {
    load->workloads_.push_back(std::make_unique<Workload>(options, items, i));
  }
  return load;
}

LoadResult Load::WriteHistories(const Target& target) {
  return RunThreads(target, What::kHistories, nullptr);
}

LoadResult Load::Run(const Target& target) { return RunThreads(target, What::kRun, nullptr); }

LoadResult Load::Sample(const Target& target, std::array<grpc::ByteBuffer, kCalls>* samples) {
  return RunThreads(target, What::kSample, samples);
}

LoadResult Load::RunThreads(const Target& target, What what,
                            std::array<grpc::ByteBuffer, kCalls>* samples) {
  const int threads = what == What::kSample ? 1 : options_.threads;
  std::vector<CallerResult> results(static_cast<size_t>(threads));
  const double cpu = CpuSeconds();
  const auto start = Clock::now();
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&, i] { RunThread(i, target, what, start, &results[i], samples); });
  }
  for (std::thread& thread : running) thread.join();
  LoadResult total;
  total.client_cpu_seconds = CpuSeconds() - cpu;
  Clock::time_point last = start;
  for (const CallerResult& result : results) {
    last = std::max(last, result.last_answer);
    total.tally.Merge(result.tally);
    for (int c = 0; c < kCalls; ++c) total.latency_ns[c].Merge(result.latency_ns[c]);
  }
  total.seconds = std::chrono::duration<double>(last - start).count();
  return total;
}

void Load::RunThread(int thread, const Target& target, What what, Clock::time_point start,
                     CallerResult* result, std::array<grpc::ByteBuffer, kCalls>* samples) {
  Workload& workload = *workloads_[static_cast<size_t>(thread)];
  const int64_t in_flight = options_.in_flight / options_.threads +
                            (thread < options_.in_flight % options_.threads ? 1 : 0);
  Plan plan{.start = start, .end = Clock::time_point::max()};
  std::function<Request()> next = [&] { return workload.Next(); };
  bool stream = options_.scenario == Scenario::kStream || options_.scenario == Scenario::kBatch;
  Call call = options_.scenario == Scenario::kBatch ? Call::kBatch : Call::kStream;
  switch (what) {
    case What::kHistories:
      plan.requests = workload.HistoryLeft();
      next = [&] { return workload.NextHistory(); };
      stream = true;
      call = Call::kStream;
      break;
    case What::kRun:
      plan.end = start + Seconds(options_.seconds);
      plan.rate = options_.rate / options_.threads;
      plan.seed = options_.seed * 1000 + static_cast<uint64_t>(thread);
      break;
    case What::kSample:
      plan.requests = options_.scenario == Scenario::kMixed ? 2 : 1;
      break;
  }
  grpc::CompletionQueue queue;
  const Connection& connection = target.connection(thread);
  const std::unique_ptr<Caller> caller =
      stream ? MakeStreamCaller(connection, &queue, &workload, call, in_flight)
             : MakeUnaryCaller(connection, &queue, &workload, in_flight);
  Driver(plan, &queue, caller.get(), next).Run();
  queue.Shutdown();
  void* tag;
  bool ok;
  while (queue.Next(&tag, &ok)) {
  }
  *result = std::move(caller->result());
  if (samples == nullptr) return;
  for (int c = 0; c < kCalls; ++c) (*samples)[c] = caller->sample(static_cast<Call>(c));
}

}  // namespace tim4rec
