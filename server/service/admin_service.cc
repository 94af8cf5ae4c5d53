#include "server/service/admin_service.h"

#include <condition_variable>
#include <mutex>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/service/admin_requests.h"
#include "server/service/call_metadata.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

void EncodeModel(const LoadedModel& model, const Models& models, v1::Model* encoded) {
  encoded->set_version(model.version);
  encoded->set_fingerprint(model.fingerprint());
  encoded->set_state(model.engine == nullptr            ? v1::MODEL_STATE_LOADING
                     : models.serving().get() == &model ? v1::MODEL_STATE_SERVING
                                                        : v1::MODEL_STATE_READY);
  if (model.engine != nullptr) {
    encoded->set_backend(std::string(model.engine->backend().name()));
  }
  encoded->set_item_count(static_cast<uint64_t>(model.package->catalog().size() - 1));
  encoded->set_variant(model.variant());
  encoded->set_directory(model.directory);
  encoded->set_loaded_at_ms(absl::ToUnixMillis(model.loaded_at));
}

// A job that a thread of gRPC's waits for.
class WaitedJob final : public Job {
 public:
  absl::Status SubmitAndWait(Pipeline* pipeline) {
    if (absl::Status submitted = pipeline->Submit(this); !submitted.ok()) return submitted;
    std::unique_lock lock(mutex_);
    completed_.wait(lock, [this] { return done_; });
    return status;
  }
  void Complete() override {
    std::lock_guard lock(mutex_);  // till after notify_one, as the waiting thread deletes this
    done_ = true;
    completed_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable completed_;
  bool done_ = false;
};

}  // namespace

template <typename Work>
grpc::Status AdminService::Answer(grpc::ServerContext* context, Method method, Work work) {
  const absl::Time start = absl::Now();
  const Access& access = *deps_.service.access;
  absl::Status done = access.Check(access.CredentialOf(*context), method);
  if (done.ok()) done = work();
  grpc::Status status = ToGrpcStatus(done);
  const absl::Duration total = absl::Now() - start;
  deps_.service.metrics->CountRequest(method, status.error_code(), absl::ToDoubleSeconds(total));
  LogCall(method, done, total, context->client_metadata());
  if (WantsTiming(context->client_metadata())) {
    context->AddTrailingMetadata(kServerTimingKey, FormatServerTiming({}, total));
  }
  return status;
}

grpc::Status AdminService::ListModels(grpc::ServerContext* context, const v1::ListModelsRequest*,
                                      v1::ListModelsResponse* response) {
  return Answer(context, Method::kListModels, [&] {
    const Models& models = *deps_.service.models;
    for (const ModelHandle& model : models.List()) {
      EncodeModel(*model, models, response->add_models());
    }
    return absl::OkStatus();
  });
}

grpc::Status AdminService::LoadModel(grpc::ServerContext* context,
                                     const v1::LoadModelRequest* request,
                                     v1::LoadModelResponse* response) {
  return Answer(context, Method::kLoadModel, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    auto loaded = deps_.swap->Load(request->directory(), request->name(), request->backend());
    if (!loaded.ok()) return loaded.status();
    EncodeModel(**loaded, *deps_.service.models, response->mutable_model());
    return absl::OkStatus();
  });
}

grpc::Status AdminService::PromoteModel(grpc::ServerContext* context,
                                        const v1::PromoteModelRequest* request,
                                        v1::PromoteModelResponse* response) {
  return Answer(context, Method::kPromoteModel, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    auto promoted = deps_.swap->Promote(request->version(), [&] { return context->IsCancelled(); });
    if (!promoted.ok()) return promoted.status();
    EncodeModel(*promoted->model, *deps_.service.models, response->mutable_model());
    response->set_previous_version(promoted->previous->version);
    return absl::OkStatus();
  });
}

grpc::Status AdminService::UnloadModel(grpc::ServerContext* context,
                                       const v1::UnloadModelRequest* request,
                                       v1::UnloadModelResponse*) {
  return Answer(context, Method::kUnloadModel, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    return deps_.swap->Unload(request->version());
  });
}

grpc::Status AdminService::VerifyUser(grpc::ServerContext* context,
                                      const v1::VerifyUserRequest* request,
                                      v1::VerifyUserResponse* response) {
  return Answer(context, Method::kVerifyUser, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    const auto model = deps_.service.models->Find(request->model());
    if (!model.ok()) return model.status();
    WaitedJob job;
    job.user_id = request->user_id();
    job.model = *model;
    job.verify_user.emplace();
    if (absl::Status done = job.SubmitAndWait(deps_.service.pipeline); !done.ok()) return done;
    const VerifyUserCommand& verified = *job.verify_user;
    response->set_resident_compared(verified.resident_compared);
    response->set_resident_equal(verified.resident_equal);
    response->set_checkpoint_compared(verified.checkpoint_compared);
    response->set_checkpoint_equal(verified.checkpoint_equal);
    response->set_event_count(verified.event_count);
    response->set_difference(verified.difference);
    return absl::OkStatus();
  });
}

grpc::Status AdminService::CreateBackup(grpc::ServerContext* context,
                                        const v1::CreateBackupRequest* request,
                                        v1::CreateBackupResponse* response) {
  return Answer(context, Method::kCreateBackup, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    const auto backup = deps_.create_backup(request->directory());
    if (!backup.ok()) return backup.status();
    response->set_files(backup->files);
    response->set_bytes(backup->bytes);
    return absl::OkStatus();
  });
}

grpc::Status AdminService::GetConfig(grpc::ServerContext* context, const v1::GetConfigRequest*,
                                     v1::GetConfigResponse* response) {
  return Answer(context, Method::kGetConfig, [&] {
    response->set_yaml(deps_.config_yaml());
    return absl::OkStatus();
  });
}

grpc::Status AdminService::Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                                 v1::DrainResponse*) {
  return Answer(context, Method::kDrain, [&]() -> absl::Status {
    if (absl::Status right = CheckRequest(*request); !right.ok()) return right;
    deps_.drain(request->timeout_ms() == 0 ? deps_.drain_timeout()
                                           : absl::Milliseconds(request->timeout_ms()));
    return absl::OkStatus();
  });
}

}  // namespace tim4rec
