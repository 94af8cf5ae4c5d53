#include "server/service/recommender_service.h"

#include <google/protobuf/arena.h>
#include <grpcpp/grpcpp.h>

#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/service/call_metadata.h"
#include "server/service/client_key.h"
#include "server/service/interaction_stream.h"
#include "server/service/parse.h"
#include "server/service/recommendation_stream.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

// One unary call from its bytes to its bytes; `Codec` knows the messages (see RecordCodec).
// Owned by gRPC until OnDone, so once submitted or finished it is not touched again.
template <typename Codec>
class Call final : public grpc::ServerUnaryReactor, public Job {
 public:
  Call(const ServiceDeps& deps, std::atomic<int64_t>* in_flight,
       grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : deps_(deps),
        in_flight_(in_flight),
        context_(context),
        response_(response),
        start_(absl::Now()) {
    ++*in_flight_;
  }

  void Start(const grpc::ByteBuffer& request) {
    if (context_->deadline() != std::chrono::system_clock::time_point::max()) {
      deadline = absl::FromChrono(context_->deadline());
    }
    client = ClientKey(*context_, deps_.limits->now().client_metadata);
    status = deps_.access->Check(deps_.access->CredentialOf(*context_), Codec::kMethod);
    if (status.ok()) status = Decode(request);
    if (status.ok()) {
      // Once submitted it is the worker's, which may be setting `status`.
      absl::Status submitted = deps_.pipeline->Submit(this);
      if (submitted.ok()) return;
      status = std::move(submitted);
      if (absl::IsResourceExhausted(status)) SetRetryDelay(retry_after, &status);
    }
    Complete();
  }

  void Complete() override {
    grpc::Status result = ToGrpcStatus(status);
    if (result.ok()) {
      google::protobuf::Arena arena;
      auto* response = google::protobuf::Arena::CreateMessage<typename Codec::Response>(&arena);
      Codec::Encode(*this, rejections_, response);
      bool own_buffer;
      result = grpc::SerializationTraits<typename Codec::Response>::Serialize(*response, response_,
                                                                              &own_buffer);
    }
    const absl::Duration total = absl::Now() - start_;
    deps_.metrics->CountRequest(Codec::kMethod, result.error_code(), absl::ToDoubleSeconds(total));
    LogCall(Codec::kMethod, status, total, context_->client_metadata());
    if (WantsTiming(context_->client_metadata())) {
      context_->AddTrailingMetadata(kServerTimingKey, FormatServerTiming(stages, total));
    }
    Finish(std::move(result));
  }

 private:
  absl::Status Decode(const grpc::ByteBuffer& bytes) {
    google::protobuf::Arena arena;
    auto* request = google::protobuf::Arena::CreateMessage<typename Codec::Request>(&arena);
    BrokenText broken;
    absl::Status parsed = ParseRequest(bytes, request, &broken);
    if (!parsed.ok()) return parsed;
    const auto named = deps_.models->Find(Codec::Model(*request));
    model = named.ok() ? *named : deps_.models->serving();
    const DecodeContext context{.limits = &deps_.limits->now(),
                                .catalog = &model->engine->catalog(),
                                .now_ms = absl::ToUnixMillis(deps_.clock()),
                                .broken = &broken};
    Violations faults;
    Codec::Decode(*request, context, this, &rejections_, &faults);
    if (!faults.empty()) return faults.ToStatus();
    if (!named.ok()) {
      return absl::Status(named.status().code(),
                          absl::StrCat(std::string(Codec::kModelField), ": ",
                                       std::string(named.status().message())));
    }
    for (const std::string& rejection : rejections_) {
      if (!rejection.empty()) deps_.metrics->events_rejected->Increment();
    }
    return absl::OkStatus();
  }

  void OnCancel() override { cancelled.store(true, std::memory_order_relaxed); }
  void OnDone() override {
    --*in_flight_;
    delete this;
  }
  // OnCancel and OnDone do next to nothing: gRPC need not wake another thread for them.
  bool InternalInlineable() override { return true; }

  const ServiceDeps& deps_;
  std::atomic<int64_t>* const in_flight_;
  grpc::CallbackServerContext* const context_;  // until Finish
  grpc::ByteBuffer* const response_;
  const absl::Time start_;
  std::vector<std::string> rejections_;
};

// For calls that cannot name a model.
struct AnsweredByServing {
  static constexpr std::string_view kModelField = "";
  static std::string_view Model(const google::protobuf::Message&) { return ""; }
};

struct RecordCodec : AnsweredByServing {
  using Request = v1::RecordInteractionsRequest;
  using Response = v1::RecordInteractionsResponse;
  static constexpr Method kMethod = Method::kRecordInteractions;

  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>* rejections, Violations* faults) {
    CheckUserId(request.user_id(), context, faults);
    job->user_id = request.user_id();
    DecodeRecord(request, context, &job->record.emplace(), rejections, faults);
  }
  static void Encode(const Job& job, const std::vector<std::string>& rejections,
                     Response* response) {
    EncodeRecord(*job.record, rejections, response);
  }
};

struct RecommendCodec {
  using Request = v1::RecommendRequest;
  using Response = v1::RecommendResponse;
  static constexpr Method kMethod = Method::kRecommend;

  static constexpr std::string_view kModelField = "model";
  static std::string_view Model(const Request& request) { return request.model(); }
  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>*, Violations* faults) {
    CheckUserId(request.user_id(), context, faults);
    job->user_id = request.user_id();
    DecodeRecommend(request, context, &job->recommend.emplace(), faults);
  }
  static void Encode(const Job& job, const std::vector<std::string>&, Response* response) {
    EncodeRecommend(*job.recommend, *job.model, response->mutable_items(),
                    response->mutable_provenance());
  }
};

struct RecommendForHistoryCodec {
  using Request = v1::RecommendForHistoryRequest;
  using Response = v1::RecommendForHistoryResponse;
  static constexpr Method kMethod = Method::kRecommendForHistory;

  static constexpr std::string_view kModelField = "options.model";
  static std::string_view Model(const Request& request) { return request.options().model(); }
  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>*, Violations* faults) {
    DecodeHistory(request, context, &job->history.emplace(), &job->recommend.emplace(), faults);
  }
  static void Encode(const Job& job, const std::vector<std::string>&, Response* response) {
    EncodeRecommend(*job.recommend, *job.model, response->mutable_items(),
                    response->mutable_provenance());
  }
};

struct RecordAndRecommendCodec {
  using Request = v1::RecordAndRecommendRequest;
  using Response = v1::RecordAndRecommendResponse;
  static constexpr Method kMethod = Method::kRecordAndRecommend;

  static constexpr std::string_view kModelField = "recommend.model";
  static std::string_view Model(const Request& request) { return request.recommend().model(); }
  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>* rejections, Violations* faults) {
    DecodeContext record = context;
    record.path = "record.";
    CheckUserId(request.record().user_id(), record, faults);
    job->user_id = request.record().user_id();
    DecodeRecord(request.record(), record, &job->record.emplace(), rejections, faults);

    DecodeContext recommend = context;
    recommend.path = "recommend.";
    if (context.broken->contains("recommend.user_id") ||
        (!request.recommend().user_id().empty() && request.recommend().user_id() != job->user_id)) {
      faults->Add("recommend.user_id", "is neither empty nor record.user_id");
    }
    DecodeRecommend(request.recommend(), recommend, &job->recommend.emplace(), faults);
  }
  static void Encode(const Job& job, const std::vector<std::string>& rejections,
                     Response* response) {
    EncodeRecord(*job.record, rejections, response->mutable_record());
    v1::RecommendResponse* recommend = response->mutable_recommend();
    EncodeRecommend(*job.recommend, *job.model, recommend->mutable_items(),
                    recommend->mutable_provenance());
  }
};

struct GetUserCodec : AnsweredByServing {
  using Request = v1::GetUserRequest;
  using Response = v1::GetUserResponse;
  static constexpr Method kMethod = Method::kGetUser;

  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>*, Violations* faults) {
    job->user_id = request.user_id();
    DecodeGetUser(request, context, &job->get_user.emplace(), faults);
  }
  static void Encode(const Job& job, const std::vector<std::string>&, Response* response) {
    EncodeUser(*job.get_user, response);
  }
};

struct DeleteUserCodec : AnsweredByServing {
  using Request = v1::DeleteUserRequest;
  using Response = v1::DeleteUserResponse;
  static constexpr Method kMethod = Method::kDeleteUser;

  static void Decode(const Request& request, const DecodeContext& context, Job* job,
                     std::vector<std::string>*, Violations* faults) {
    CheckUserId(request.user_id(), context, faults);
    job->user_id = request.user_id();
    job->delete_user.emplace().purge = request.purge();
  }
  static void Encode(const Job& job, const std::vector<std::string>&, Response* response) {
    response->set_events_removed(job.delete_user->removed.events);
    response->set_states_removed(job.delete_user->removed.states);
  }
};

template <typename Codec>
grpc::ServerUnaryReactor* StartCall(const ServiceDeps& deps, std::atomic<int64_t>* in_flight,
                                    grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  auto* call = new Call<Codec>(deps, in_flight, context, response);
  call->Start(*request);
  return call;
}

}  // namespace

grpc::ServerUnaryReactor* RecommenderService::RecordInteractions(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return StartCall<RecordCodec>(deps_, &in_flight_, context, request, response);
}

grpc::ServerUnaryReactor* RecommenderService::Recommend(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return StartCall<RecommendCodec>(deps_, &in_flight_, context, request, response);
}

grpc::ServerUnaryReactor* RecommenderService::RecordAndRecommend(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return StartCall<RecordAndRecommendCodec>(deps_, &in_flight_, context, request, response);
}

grpc::ServerUnaryReactor* RecommenderService::RecommendForHistory(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
    grpc::ByteBuffer* response) {
  return StartCall<RecommendForHistoryCodec>(deps_, &in_flight_, context, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* RecommenderService::StreamInteractions(
    grpc::CallbackServerContext* context) {
  return OpenInteractionStream(deps_, &streams_, &memory_, context);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* RecommenderService::RecommendBatch(
    grpc::CallbackServerContext* context) {
  return OpenRecommendationStream(deps_, &streams_, &memory_, context);
}

grpc::ServerUnaryReactor* RecommenderService::GetUser(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return StartCall<GetUserCodec>(deps_, &in_flight_, context, request, response);
}

grpc::ServerUnaryReactor* RecommenderService::DeleteUser(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return StartCall<DeleteUserCodec>(deps_, &in_flight_, context, request, response);
}

}  // namespace tim4rec
