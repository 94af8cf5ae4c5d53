#include "server/service/interaction_stream.h"

#include <google/protobuf/arena.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/pipeline/job_queue.h"
#include "server/service/batch_stream.h"
#include "server/service/parse.h"
#include "server/service/status.h"

namespace tim4rec {

class InteractionStream;

namespace {

struct Batch;

// The interactions of one user in a batch.
struct EntryJob final : Job {
  void Complete() override;

  InteractionStream* stream = nullptr;
  Batch* batch = nullptr;
  uint32_t user_index = 0;
  std::vector<std::string> rejections;
};

struct Batch {
  uint64_t sequence = 0;
  absl::Time start;
  std::deque<EntryJob> jobs;
  size_t submitted = 0;          // jobs handed to the pipeline, or passed over
  std::atomic<size_t> left = 1;  // jobs to be completed, and one until all are submitted
  absl::Status status;           // of the batch as a whole
  bool done = false;             // guarded by the stream
  StreamMemory::Held held;

  // Whether that was the last one.
  bool Release() { return left.fetch_sub(1, std::memory_order_acq_rel) == 1; }
};

// Its place, its interactions and what is answered for them.
int64_t BytesOf(const EntryJob& job) {
  size_t bytes = sizeof job - sizeof(Job) + job.rejections.capacity() * sizeof(std::string) +
                 job.record->events.size() * sizeof(EventOutcome);
  for (const std::string& rejection : job.rejections) bytes += rejection.size();
  return SizeOf(job).bytes + static_cast<int64_t>(bytes);
}

}  // namespace

// What is read is decoded and submitted by gRPC's threads; the worker that completes a batch writes
// its answer, or leaves that to whoever completes the batch before it. Nothing is read while a
// message waits for memory or a batch for room in a queue, or while `max_stream_batches` are
// unanswered: gRPC's flow control then holds back the client.
class InteractionStream final : public BatchStream {
 public:
  InteractionStream(const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
                    grpc::CallbackServerContext* context)
      : BatchStream(deps, streams, memory, context, Method::kStreamInteractions,
                    "send what it has not answered to another one") {}

  void OnBatchDone(Batch* batch);

 private:
  void OnReadDone(bool ok) override;
  void OnCancel() override;

  // Decodes what was read and submits it, at once or as there is memory for it.
  void TakeMessage();
  std::unique_ptr<Batch> Decode();
  // Hands the batch's jobs to the pipeline, at once or as there is room.
  void SubmitJobs(Batch* batch);

  // All below: with `mutex_` held.

  void Step() override;
  void OnWritten() override { batches_.pop_front(); }
  bool WriteAnswer(const Batch& batch);

  std::atomic<bool> cancelled_ = false;
  std::deque<std::unique_ptr<Batch>> batches_;  // not yet answered, in the order of the stream
  bool taking_ = false;                         // what was read is being decoded or submitted
};

void EntryJob::Complete() {
  if (batch->Release()) stream->OnBatchDone(batch);
}

void InteractionStream::Step() {
  if (finished_) return;
  while (!writing_ && !batches_.empty() && batches_.front()->done) {
    const Batch& batch = *batches_.front();
    if (!broken_ && batch.status.ok()) {
      if (WriteAnswer(batch)) return;
    }
    if (!batch.status.ok()) Break(batch.status);
    batches_.pop_front();
  }
  if (ending_) {
    if (taking_ || writing_ || !batches_.empty()) return;
    FinishStream();
  } else if (!reading_ && !taking_ &&
             static_cast<int64_t>(batches_.size()) < deps_.limits->now().max_stream_batches) {
    Read();
  }
}

void InteractionStream::OnReadDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    reading_ = false;
    if (ok) {
      CheckAccess();
    } else {
      End(absl::OkStatus());
    }
    if (ending_) return Step();
    taking_ = true;
  }
  TakeMessage();
}

void InteractionStream::TakeMessage() {
  if (!HasRoom() && !cancelled_.load(std::memory_order_relaxed)) {
    return RetryLater([this] { TakeMessage(); });
  }
  std::unique_ptr<Batch> decoded = Decode();
  Batch* batch = decoded.get();
  {
    std::lock_guard lock(mutex_);
    batches_.push_back(std::move(decoded));
  }
  SubmitJobs(batch);
}

std::unique_ptr<Batch> InteractionStream::Decode() {
  auto batch = std::make_unique<Batch>();
  batch->start = absl::Now();
  google::protobuf::Arena arena;
  auto* request = google::protobuf::Arena::CreateMessage<v1::StreamInteractionsRequest>(&arena);
  BrokenText broken;
  batch->status = ParseRequest(request_, request, &broken);
  request_.Clear();
  if (!batch->status.ok()) return batch;
  batch->sequence = request->sequence();
  const ModelHandle model = deps_.models->serving();
  DecodeContext context{.limits = &deps_.limits->now(),
                        .catalog = &model->engine->catalog(),
                        .now_ms = absl::ToUnixMillis(deps_.clock()),
                        .broken = &broken};
  Violations faults;
  Durability durability;
  DecodeBatch(*request, context, &durability, &faults);
  batch->status = faults.ToStatus();
  if (!batch->status.ok()) return batch;
  int64_t rejected = 0;
  auto bytes = static_cast<int64_t>(sizeof *batch);
  for (int u = 0; u < request->users_size(); ++u) {
    EntryJob& job = batch->jobs.emplace_back();
    job.stream = this;
    job.batch = batch.get();
    job.user_index = static_cast<uint32_t>(u);
    job.user_id = request->users(u).user_id();
    job.model = model;
    job.deadline = deadline_;
    job.bulk = true;
    job.client = client_;
    job.record.emplace().durability = durability;
    if (!broken.empty()) context.path = absl::StrCat("users[", u, "].");
    DecodeBatchEntry(request->users(u), context, &*job.record, &job.rejections);
    for (const std::string& rejection : job.rejections) rejected += !rejection.empty();
    bytes += BytesOf(job);
  }
  batch->held = Hold(bytes);
  deps_.metrics->events_rejected->Increment(static_cast<double>(rejected));
  batch->left += batch->jobs.size();
  return batch;
}

void InteractionStream::SubmitJobs(Batch* batch) {
  for (; batch->submitted < batch->jobs.size(); ++batch->submitted) {
    EntryJob& job = batch->jobs[batch->submitted];
    if (job.record->events.empty()) {
      job.Complete();
      continue;
    }
    absl::Status taken = cancelled_.load(std::memory_order_relaxed)
                             ? absl::CancelledError("cancelled by the client")
                             : deps_.pipeline->Submit(&job);
    if (taken.ok()) continue;
    if (absl::IsResourceExhausted(taken)) {
      RetryLater([this, batch] { SubmitJobs(batch); });
      return;
    }
    job.status = std::move(taken);
    job.Complete();
  }
  std::lock_guard lock(mutex_);
  taking_ = false;
  if (batch->Release()) {
    OnBatchDone(batch);
  } else {
    Step();
  }
}

void InteractionStream::OnBatchDone(Batch* batch) {
  std::lock_guard lock(mutex_);
  for (const EntryJob& job : batch->jobs) {
    batch->status.Update(job.status);
    NoteStages(job.stages);
  }
  batch->done = true;
  Step();
}

bool InteractionStream::WriteAnswer(const Batch& batch) {
  google::protobuf::Arena arena;
  auto* response = google::protobuf::Arena::CreateMessage<v1::StreamInteractionsResponse>(&arena);
  response->set_sequence(batch.sequence);
  for (const EntryJob& job : batch.jobs) {
    EncodeBatchEntry(*job.record, job.rejections, job.user_index, response);
  }
  deps_.metrics->CountRequest(Method::kStreamInteractions, grpc::StatusCode::OK,
                              absl::ToDoubleSeconds(absl::Now() - batch.start));
  return Write(*response);
}

void InteractionStream::OnCancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  for (const auto& batch : batches_) {
    for (EntryJob& job : batch->jobs) job.cancelled.store(true, std::memory_order_relaxed);
  }
  BatchStream::OnCancel();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* OpenInteractionStream(
    const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
    grpc::CallbackServerContext* context) {
  auto* stream = new InteractionStream(deps, streams, memory, context);
  streams->Add(stream);
  return stream;
}

}  // namespace tim4rec
