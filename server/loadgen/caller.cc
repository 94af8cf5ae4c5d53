#include "server/loadgen/caller.h"

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <deque>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

// What hangs longer than this counts as DEADLINE_EXCEEDED.
constexpr std::chrono::seconds kCallDeadline(10);

std::string CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  return code >= 0 && code <= grpc::StatusCode::UNAUTHENTICATED ? kNames[code] : absl::StrCat(code);
}

void Authorize(const std::string& authorization, grpc::ClientContext* context) {
  if (!authorization.empty()) context->AddMetadata("authorization", authorization);
}

class UnaryCaller final : public Caller {
 public:
  UnaryCaller(const Connection& connection, grpc::CompletionQueue* queue, Workload* workload,
              int64_t in_flight)
      : Caller(workload),
        authorization_(connection.authorization),
        stub_(connection.channel),
        queue_(*queue),
        in_flight_(in_flight) {}

  bool CanSend() const override { return outstanding_ < in_flight_; }

  void Send(Request request, Clock::time_point due) override {
    ++outstanding_;
    auto* one = new One{request.call, due};
    one->context.set_deadline(std::chrono::system_clock::now() + kCallDeadline);
    Authorize(authorization_, &one->context);
    one->reader =
        stub_.PrepareUnaryCall(&one->context, CallMethod(request.call), request.bytes, &queue_);
    one->reader->StartCall();
    one->reader->Finish(&one->answer, &one->status, one);
  }

  void OnEvent(void* tag, bool) override {
    const std::unique_ptr<One> one(static_cast<One*>(tag));
    if (one->status.ok()) {
      Complete(one->call, one->due);
      TakeAnswer(one->call, &one->answer);
    } else {
      --outstanding_;
      result_.tally.AddError(CodeName(one->status.error_code()), one->status.error_message());
    }
  }

  void Close() override { closed_ = true; }
  bool closed() const override { return closed_; }
  bool broken() const override { return false; }

 private:
  struct One {
    Call call;
    Clock::time_point due;
    grpc::ClientContext context = {};
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader = nullptr;
    grpc::ByteBuffer answer = {};
    grpc::Status status = {};
  };

  const std::string authorization_;
  grpc::GenericStub stub_;
  grpc::CompletionQueue& queue_;
  const int64_t in_flight_;
  bool closed_ = false;
};

class StreamCaller final : public Caller {
 public:
  StreamCaller(const Connection& connection, grpc::CompletionQueue* queue, Workload* workload,
               Call call, int64_t in_flight)
      : Caller(workload), call_(call), in_flight_(in_flight), stub_(connection.channel) {
    Authorize(connection.authorization, &context_);
    stream_ = stub_.PrepareCall(&context_, CallMethod(call), queue);
    stream_->StartCall(&start_);
  }

  bool CanSend() const override {
    return started_ && !writing_ && !broken_ && outstanding_ < in_flight_;
  }

  void Send(Request request, Clock::time_point due) override {
    writing_ = true;
    ++outstanding_;
    unanswered_.push_back({request.units, due});
    stream_->Write(request.bytes, &write_);
  }

  void OnEvent(void* tag, bool ok) override {
    if (tag == &start_) {
      started_ = ok;
      if (ok) {
        stream_->Read(&answer_, &read_);
        EndWritesIfClosing();
      } else {
        End();
      }
    } else if (tag == &write_) {
      writing_ = false;
      if (broken_) {
        End();
      } else {
        EndWritesIfClosing();
      }
    } else if (tag == &read_) {
      if (ok) {
        OnAnswer();
        stream_->Read(&answer_, &read_);
      } else {
        End();
      }
    } else if (tag == &finish_) {
      closed_ = true;
      if (!status_.ok()) {
        result_.tally.AddError(CodeName(status_.error_code()), status_.error_message());
      } else if (!unanswered_.empty()) {
        result_.tally.AddError("UNANSWERED", "the server ended a stream before all was answered");
      }
      outstanding_ = 0;
    }
  }

  void Close() override {
    closing_ = true;
    EndWritesIfClosing();
  }
  bool closed() const override { return closed_; }
  bool broken() const override { return broken_; }

 private:
  struct Unanswered {
    int64_t units;
    Clock::time_point due;
  };

  // Once the stream has started and its last write is complete, which its answer may overtake.
  void EndWritesIfClosing() {
    if (!closing_ || !started_ || writing_ || broken_) return;
    if (!std::exchange(writes_ended_, true)) stream_->WritesDone(&writes_done_);
  }

  void OnAnswer() {
    int64_t units = TakeAnswer(call_, &answer_);
    while (units > 0 && !unanswered_.empty()) {
      Unanswered& first = unanswered_.front();
      const int64_t taken = std::min(units, first.units);
      units -= taken;
      first.units -= taken;
      if (first.units > 0) break;
      Complete(call_, first.due);
      unanswered_.pop_front();
    }
  }

  // The server sends no more: asks for the status, once no write is under way.
  void End() {
    broken_ = true;
    if (writing_ || std::exchange(finishing_, true)) return;
    stream_->Finish(&status_, &finish_);
  }

  const Call call_;
  const int64_t in_flight_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  std::deque<Unanswered> unanswered_;
  grpc::ByteBuffer answer_;
  grpc::Status status_;
  bool started_ = false;
  bool writing_ = false;
  bool broken_ = false;
  bool closing_ = false;
  bool writes_ended_ = false;
  bool finishing_ = false;
  bool closed_ = false;
  // Their addresses are the tags.
  char start_ = 0, read_ = 0, write_ = 0, writes_done_ = 0, finish_ = 0;
};

}  // namespace

int64_t Caller::TakeAnswer(Call call, grpc::ByteBuffer* answer) {
  grpc::ByteBuffer& sample = samples_[static_cast<int>(call)];
  if (!sample.Valid()) sample = *answer;
  return workload_.Count(call, answer, &result_.tally);
}

void Caller::Complete(Call call, Clock::time_point due) {
  --outstanding_;
  result_.last_answer = Clock::now();
  const auto waited = std::chrono::nanoseconds(result_.last_answer - due).count();
  result_.latency_ns[static_cast<int>(call)].Add(
      static_cast<uint64_t>(std::max<int64_t>(0, waited)));
}

std::unique_ptr<Caller> MakeUnaryCaller(const Connection& connection, grpc::CompletionQueue* queue,
                                        Workload* workload, int64_t in_flight) {
  return std::make_unique<UnaryCaller>(connection, queue, workload, in_flight);
}

std::unique_ptr<Caller> MakeStreamCaller(const Connection& connection, grpc::CompletionQueue* queue,
                                         Workload* workload, Call call, int64_t in_flight) {
  return std::make_unique<StreamCaller>(connection, queue, workload, call, in_flight);
}

}  // namespace tim4rec
