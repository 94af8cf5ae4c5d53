// Sends requests over one connection and measures their answers.
#ifndef TIM4REC_SERVER_LOADGEN_CALLER_H_
#define TIM4REC_SERVER_LOADGEN_CALLER_H_

#include <grpcpp/grpcpp.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "server/loadgen/histogram.h"
#include "server/loadgen/workload.h"

namespace tim4rec {

using Clock = std::chrono::steady_clock;

// To a server, and what every call shows it.
struct Connection {
  std::shared_ptr<grpc::Channel> channel;
  std::string authorization;  // metadata of that name; empty: none
};

struct CallerResult {
  // By Call: from when the request was due to its answer, errors left out.
  std::array<Histogram, kCalls> latency_ns;
  Tally tally;
  Clock::time_point last_answer;
};

// Not thread-safe: whoever drives it locks. An answer counts from the time its request was due,
// not from when there was room to send it.
class Caller {
 public:
  virtual ~Caller() = default;

  virtual bool CanSend() const = 0;
  virtual void Send(Request request, Clock::time_point due) = 0;
  // Takes an event of the queue that the caller was made with.
  virtual void OnEvent(void* tag, bool ok) = 0;
  // Begins the end; called when nothing is outstanding.
  virtual void Close() = 0;
  // Nothing will come from the queue any more.
  virtual bool closed() const = 0;
  // No further request will be answered.
  virtual bool broken() const = 0;

  int64_t outstanding() const { return outstanding_; }
  CallerResult& result() { return result_; }
  // Bytes of the last good answer of a call, empty before there is one.
  const grpc::ByteBuffer& sample(Call call) const { return samples_[static_cast<int>(call)]; }

 protected:
  explicit Caller(Workload* workload) : workload_(*workload) {}

  // Counts an answer; returns its units.
  int64_t TakeAnswer(Call call, grpc::ByteBuffer* answer);
  void Complete(Call call, Clock::time_point due);

  Workload& workload_;
  int64_t outstanding_ = 0;
  CallerResult result_;
  std::array<grpc::ByteBuffer, kCalls> samples_;
};

// Unary calls, at most `in_flight` at once.
std::unique_ptr<Caller> MakeUnaryCaller(const Connection& connection, grpc::CompletionQueue* queue,
                                        Workload* workload, int64_t in_flight);

// One stream of `call`, at most `in_flight` messages not yet answered. A stream that the server
// ends counts as one error of its status, whatever was outstanding.
std::unique_ptr<Caller> MakeStreamCaller(const Connection& connection, grpc::CompletionQueue* queue,
                                         Workload* workload, Call call, int64_t in_flight);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_CALLER_H_
