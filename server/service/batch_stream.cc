#include "server/service/batch_stream.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/service/call_metadata.h"
#include "server/service/client_key.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

// How long to wait before a full queue is asked again: about one micro-batch.
constexpr std::chrono::milliseconds kRetryDelay(2);

}  // namespace

BatchStream::BatchStream(const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
                         grpc::CallbackServerContext* context, Method method, std::string instead)
    : deps_(deps),
      deadline_(absl::FromChrono(context->deadline())),
      client_(ClientKey(*context, deps.limits->now().client_metadata)),
      streams_(*streams),
      memory_(*memory),
      context_(context),
      opened_(absl::Now()),
      credential_(deps.access->CredentialOf(*context)),
      method_(method),
      instead_(std::move(instead)) {}

void BatchStream::Start() {
  std::lock_guard lock(mutex_);
  CheckAccess();
  Step();
}

void BatchStream::Drain() {
  std::lock_guard lock(mutex_);
  End(absl::UnavailableError(absl::StrCat("the server is draining; ", instead_)));
  Step();
}

void BatchStream::RetryLater(std::function<void()> again) {
  retry_ = std::make_unique<grpc::Alarm>();
  retry_->Set(std::chrono::system_clock::now() + kRetryDelay,
              [again = std::move(again)](bool) { again(); });
}

bool BatchStream::HasRoom() const {
  return memory_.HasRoom(client_, deps_.limits->now().max_stream_bytes);
}

void BatchStream::CheckAccess() {
  absl::Status allowed = deps_.access->Check(credential_, method_);
  if (!allowed.ok()) End(std::move(allowed));
}

void BatchStream::End(absl::Status status) {
  ending_ = true;
  if (end_.ok()) end_ = std::move(status);
}

void BatchStream::Break(absl::Status status) {
  broken_ = true;
  OnBroken();
  End(std::move(status));
}

void BatchStream::Read() {
  reading_ = true;
  StartRead(&request_);
}

bool BatchStream::Write(const google::protobuf::Message& answer) {
  response_.Clear();
  bool own_buffer;
  const grpc::Status encoded = grpc::SerializationTraits<google::protobuf::Message>::Serialize(
      answer, &response_, &own_buffer);
  if (!encoded.ok()) {
    Break(absl::InternalError(encoded.error_message()));
    return false;
  }
  writing_ = true;
  StartWrite(&response_);
  return true;
}

void BatchStream::NoteStages(const StageTimes& stages) {
  for (const auto part : {&StageTimes::queue, &StageTimes::append, &StageTimes::load,
                          &StageTimes::fold, &StageTimes::rank}) {
    longest_.*part = std::max(longest_.*part, stages.*part);
  }
}

void BatchStream::LogFailure(const absl::Status& status, absl::Duration total) const {
  LogCall(method_, status, total, context_->client_metadata());
}

void BatchStream::FinishStream() {
  finished_ = true;
  const grpc::Status status = ToGrpcStatus(end_);
  if (!status.ok()) deps_.metrics->CountRequest(method_, status.error_code(), 0);
  const absl::Duration total = absl::Now() - opened_;
  LogCall(method_, end_, total, context_->client_metadata());
  if (WantsTiming(context_->client_metadata())) {
    context_->AddTrailingMetadata(kServerTimingKey, FormatServerTiming(longest_, total));
  }
  Finish(status);
}

void BatchStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  writing_ = false;
  OnWritten();
  if (!ok) Break(absl::CancelledError("the client went away"));
  Step();
}

void BatchStream::OnCancel() {
  std::lock_guard lock(mutex_);
  Break(absl::CancelledError("cancelled by the client"));
  Step();
}

void BatchStream::OnDone() {
  streams_.Remove(this);
  // Whoever finished the stream may still hold it.
  { std::lock_guard lock(mutex_); }
  delete this;
}

}  // namespace tim4rec
