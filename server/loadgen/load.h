// One load on one target: threads, schedule, result.
#ifndef TIM4REC_SERVER_LOADGEN_LOAD_H_
#define TIM4REC_SERVER_LOADGEN_LOAD_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/loadgen/caller.h"
#include "server/loadgen/workload.h"

namespace tim4rec {

struct LoadResult {
  double seconds = 0;             // from the start to the last answer
  double client_cpu_seconds = 0;  // of this process
  std::array<Histogram, kCalls> latency_ns;
  Tally tally;

  int64_t calls() const;  // well answered
};

// What a client shows and trusts; PEM texts.
struct ClientSecurity {
  std::string ca;           // signs the server's certificate; empty: clear text
  std::string certificate;  // of the client, and its key, for mutual TLS
  std::string key;
  std::string token;  // empty: none
};

// A server, with a connection per thread.
class Target {
 public:
  // UNAVAILABLE if it cannot be connected within 10 seconds.
  static absl::StatusOr<std::unique_ptr<Target>> Connect(const std::string& address, int threads,
                                                         const ClientSecurity& security = {});

  const Connection& connection(int thread) const { return connections_[thread]; }

 private:
  std::vector<Connection> connections_;
};

// The load of all threads. Its users go on where the last run left them.
class Load {
 public:
  // `items` as for Workload. INVALID_ARGUMENT naming each option that cannot be.
  static absl::StatusOr<std::unique_ptr<Load>> Create(const LoadOptions& options,
                                                      const std::vector<std::string>* items);

  // Writes every user's history.
  LoadResult WriteHistories(const Target& target);

  // `options.seconds` of load, then waits for what is outstanding.
  LoadResult Run(const Target& target);

  // A few requests, one of each kind that the scenario has; their answers to `samples` by Call.
  LoadResult Sample(const Target& target, std::array<grpc::ByteBuffer, kCalls>* samples);

 private:
  explicit Load(const LoadOptions& options) : options_(options) {}

  enum class What { kHistories, kRun, kSample };
  LoadResult RunThreads(const Target& target, What what,
                        std::array<grpc::ByteBuffer, kCalls>* samples);
  void RunThread(int thread, const Target& target, What what, Clock::time_point start,
                 CallerResult* result, std::array<grpc::ByteBuffer, kCalls>* samples);

  const LoadOptions options_;
  std::vector<std::unique_ptr<Workload>> workloads_;  // by thread
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_LOAD_H_
