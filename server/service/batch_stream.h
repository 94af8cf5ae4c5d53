// What the streams of batches share: one lock, reads, writes, and the end.
#ifndef TIM4REC_SERVER_SERVICE_BATCH_STREAM_H_
#define TIM4REC_SERVER_SERVICE_BATCH_STREAM_H_

#include <google/protobuf/message.h>
#include <grpcpp/alarm.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/service/open_streams.h"
#include "server/service/service_deps.h"
#include "server/service/stream_memory.h"

namespace tim4rec {

// A stream that gRPC's flow control holds back: it reads a message when it has room for it, and
// ends when what it took is answered. It deletes itself. Every event (a message, a job's end, a
// write that is done) ends in Step, which does what can be done next.
class BatchStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                    public OpenStream {
 public:
  void Start() final;
  void Drain() final;

 protected:
  // `method` is counted; `instead`: what a client does about what a drain leaves unanswered.
  BatchStream(const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
              grpc::CallbackServerContext* context, Method method, std::string instead);

  void OnCancel() override;

  // Calls `again` after about one micro-batch, from any thread. One at a time.
  void RetryLater(std::function<void()> again);

  // Whether limits.max_stream_bytes leaves this stream's client room for more. Any thread.
  bool HasRoom() const;
  StreamMemory::Held Hold(int64_t bytes) { return memory_.Hold(client_, bytes); }

  // All below: with `mutex_` held.

  // Does what can be done next: write an answer, read a message, finish.
  virtual void Step() = 0;
  // An answer was written, or could not be: `writing_` is false, no further one has begun.
  virtual void OnWritten() {}
  // Nobody is answered any more.
  virtual void OnBroken() {}

  // Ends if the client may not, or no longer, call this.
  void CheckAccess();
  // Takes nothing further. The stream ends with the first error once what was taken is answered.
  void End(absl::Status status);
  // Ends, and answers nobody any more.
  void Break(absl::Status status);
  // Reads a message into `request_`.
  void Read();
  // Writes an answer. False if it cannot be encoded, which breaks the stream.
  bool Write(const google::protobuf::Message& answer);
  // A job of the stream has ended: the longest of each stage is told at the stream's end.
  void NoteStages(const StageTimes& stages);
  // A job of the stream failed and is answered in its place.
  void LogFailure(const absl::Status& status, absl::Duration total) const;
  // Finishes with what End was given, when nothing is under way.
  void FinishStream();

  const ServiceDeps& deps_;
  const absl::Time deadline_;
  const uint64_t client_;

  // Held over calls into gRPC, since a stream that may finish must not be touched afterwards, and
  // recursive in case that gRPC calls back at once.
  std::recursive_mutex mutex_;
  grpc::ByteBuffer request_;
  bool reading_ = false;
  bool writing_ = false;
  bool ending_ = false;
  bool broken_ = false;
  bool finished_ = false;

 private:
  void OnWriteDone(bool ok) final;
  void OnDone() final;

  OpenStreams& streams_;
  StreamMemory& memory_;
  grpc::CallbackServerContext* const context_;
  const absl::Time opened_;
  const Credential credential_;
  const Method method_;
  const std::string instead_;
  std::unique_ptr<grpc::Alarm> retry_;  // belongs to whoever retries

  // Guarded by `mutex_`.
  grpc::ByteBuffer response_;
  absl::Status end_;
  StageTimes longest_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_BATCH_STREAM_H_
