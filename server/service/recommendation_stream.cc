#include "server/service/recommendation_stream.h"

#include <google/protobuf/arena.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/pipeline/job_queue.h"
#include "server/service/batch_stream.h"
#include "server/service/parse.h"
#include "server/service/status.h"

namespace tim4rec {

class RecommendationStream;

namespace {

// An answer is not filled beyond this many bytes by more than one user.
constexpr size_t kAnswerBytes = 64 << 10;
// Users in the pipeline or waiting to be written: as many as a message may hold, fewer when their
// options are large, since each has a copy.
constexpr size_t kMostInFlight = kMostBatchUsers;
constexpr size_t kFewestInFlight = 16;
constexpr size_t kOptionBytes = 4 << 20;

size_t MostInFlight(const RecommendCommand& options) {
  const size_t bytes = sizeof(int32_t) * (options.excluded.size() + options.candidates.size()) +
                       sizeof(uint64_t) * options.eligible.size();
  return std::clamp(kOptionBytes / std::max<size_t>(1, bytes), kFewestInFlight, kMostInFlight);
}

struct UserJob final : Job {
  void Complete() override;

  RecommendationStream* stream = nullptr;
  absl::Time start;
  bool done = false;  // guarded by the stream
  StreamMemory::Held held;
};

// Its place, its options and its answer.
int64_t BytesOf(const UserJob& job) {
  const size_t bytes = sizeof job - sizeof(Job) + job.recommend->k * sizeof(ScoredItem);
  return SizeOf(job).bytes + static_cast<int64_t>(bytes);
}

// What is not yet submitted.
struct PendingUser {
  std::string user_id;
  std::string fault;  // of the id; empty: none
};

}  // namespace

// A message is read when all users of the one before are in the pipeline, and users go there while
// fewer than MostInFlight are there or wait to be written, and there is memory for them: gRPC's
// flow control then holds back a client that writes faster than it is answered, or does not read.
class RecommendationStream final : public BatchStream {
 public:
  RecommendationStream(const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
                       grpc::CallbackServerContext* context)
      : BatchStream(deps, streams, memory, context, Method::kRecommendBatch,
                    "ask another one for the users that it has not answered") {}

  void OnUserDone(UserJob* job) {
    std::lock_guard lock(mutex_);
    job->done = true;
    NoteStages(job->stages);
    Step();
  }

 private:
  void OnReadDone(bool ok) override;

  // All below: with `mutex_` held.

  void Step() override;
  void OnBroken() override;
  absl::Status TakeMessage();
  absl::Status TakeOptions(const v1::RecommendRequest& options, const BrokenText& broken);
  // Those of a stream that ends are forgotten.
  void SubmitUsers();
  void SubmitLater();
  void WriteAnswer();
  void CountUser(const UserJob& job) {
    const absl::Duration took = absl::Now() - job.start;
    deps_.metrics->CountRequest(Method::kRecommendBatch, static_cast<int>(job.status.code()),
                                absl::ToDoubleSeconds(took));
    if (!job.status.ok()) LogFailure(job.status, took);
  }

  ModelHandle model_;  // of all answers; null before the first message
  RecommendCommand options_;
  std::deque<PendingUser> pending_;
  std::deque<std::unique_ptr<UserJob>> users_;  // in the order of the stream
  bool retrying_ = false;                       // a queue, or memory, was full
  bool read_all_ = false;                       // the client sends no more
};

void UserJob::Complete() { stream->OnUserDone(this); }

void RecommendationStream::Step() {
  if (finished_) return;
  SubmitUsers();
  if (broken_) {
    while (!users_.empty() && users_.front()->done) users_.pop_front();
  } else if (!writing_ && !users_.empty() && users_.front()->done) {
    WriteAnswer();
    SubmitUsers();
  }
  if (read_all_ && pending_.empty()) End(absl::OkStatus());
  if (ending_) {
    if (writing_ || retrying_ || !users_.empty()) return;
    FinishStream();
  } else if (!reading_ && !read_all_ && pending_.empty()) {
    Read();
  }
}

void RecommendationStream::OnReadDone(bool ok) {
  std::lock_guard lock(mutex_);
  reading_ = false;
  if (ok) CheckAccess();
  if (!ok) {
    read_all_ = true;
  } else if (!ending_) {
    if (absl::Status taken = TakeMessage(); !taken.ok()) End(std::move(taken));
  }
  Step();
}

absl::Status RecommendationStream::TakeMessage() {
  google::protobuf::Arena arena;
  auto* request = google::protobuf::Arena::CreateMessage<v1::RecommendBatchRequest>(&arena);
  BrokenText broken;
  absl::Status status = ParseRequest(request_, request, &broken);
  request_.Clear();
  if (!status.ok()) return status;
  if (model_ == nullptr) {
    status = TakeOptions(request->options(), broken);
    if (!status.ok()) return status;
  }
  if (request->user_ids_size() > kMostBatchUsers) {
    Violations faults;
    faults.Add("user_ids", absl::StrCat("has ", request->user_ids_size(), " ids (at most ",
                                        kMostBatchUsers, " in a message)"));
    return faults.ToStatus();
  }
  for (int i = 0; i < request->user_ids_size(); ++i) {
    PendingUser& user = pending_.emplace_back();
    user.fault = UserIdFault(*request, i, broken);
    if (user.fault.empty()) user.user_id = std::move(*request->mutable_user_ids(i));
  }
  return absl::OkStatus();
}

absl::Status RecommendationStream::TakeOptions(const v1::RecommendRequest& options,
                                               const BrokenText& broken) {
  const auto named = deps_.models->Find(options.model());
  const ModelHandle model = named.ok() ? *named : deps_.models->serving();
  const DecodeContext context{.limits = &deps_.limits->now(),
                              .catalog = &model->engine->catalog(),
                              .now_ms = absl::ToUnixMillis(deps_.clock()),
                              .broken = &broken,
                              .path = "options."};
  Violations faults;
  CheckNoUser(options, "user_ids names the users", context, &faults);
  DecodeRecommend(options, context, &options_, &faults);
  if (!faults.empty()) return faults.ToStatus();
  if (!named.ok()) {
    return absl::Status(named.status().code(),
                        absl::StrCat("options.model: ", std::string(named.status().message())));
  }
  model_ = model;
  return absl::OkStatus();
}

void RecommendationStream::SubmitUsers() {
  if (ending_) pending_.clear();
  while (!retrying_ && !pending_.empty() && users_.size() < MostInFlight(options_)) {
    if (!HasRoom()) return SubmitLater();
    PendingUser& next = pending_.front();
    auto job = std::make_unique<UserJob>();
    job->stream = this;
    job->start = absl::Now();
    job->user_id = next.user_id;
    job->model = model_;
    job->deadline = deadline_;
    job->bulk = true;
    job->client = client_;
    job->recommend = options_;
    job->held = Hold(BytesOf(*job));
    absl::Status taken = next.fault.empty()
                             ? deps_.pipeline->Submit(job.get())
                             : absl::InvalidArgumentError(absl::StrCat("user_id: ", next.fault));
    if (absl::IsResourceExhausted(taken)) return SubmitLater();
    // A job that was taken is the worker's; it completes under the lock, once it is in the list.
    if (!taken.ok()) {
      job->status = std::move(taken);
      job->done = true;
    }
    users_.push_back(std::move(job));
    pending_.pop_front();
  }
}

void RecommendationStream::SubmitLater() {
  retrying_ = true;
  RetryLater([this] {
    std::lock_guard lock(mutex_);
    retrying_ = false;
    Step();
  });
}

void RecommendationStream::WriteAnswer() {
  google::protobuf::Arena arena;
  auto* response = google::protobuf::Arena::CreateMessage<v1::RecommendBatchResponse>(&arena);
  for (size_t bytes = 0; bytes < kAnswerBytes && !users_.empty() && users_.front()->done;) {
    const UserJob& job = *users_.front();
    v1::UserRecommendation* answer = response->add_users();
    answer->set_user_id(job.user_id);
    if (job.status.ok()) {
      EncodeRecommend(*job.recommend, *job.model, answer->mutable_items(),
                      answer->mutable_provenance());
    } else {
      const grpc::Status status = ToGrpcStatus(job.status);
      answer->set_error_code(status.error_code());
      answer->set_error_message(status.error_message());
    }
    CountUser(job);
    bytes += answer->ByteSizeLong();
    users_.pop_front();
  }
  Write(*response);
}

void RecommendationStream::OnBroken() {
  for (const auto& job : users_) job->cancelled.store(true, std::memory_order_relaxed);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* OpenRecommendationStream(
    const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
    grpc::CallbackServerContext* context) {
  auto* stream = new RecommendationStream(deps, streams, memory, context);
  streams->Add(stream);
  return stream;
}

}  // namespace tim4rec
