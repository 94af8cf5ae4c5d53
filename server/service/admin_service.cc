#include "server/service/admin_service.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

absl::Status NotOffered(Method method) {
  return absl::UnimplementedError(
      absl::StrCat("this server does not offer ", std::string(MethodName(method))));
}

}  // namespace

template <typename Work>
grpc::Status AdminService::Answer(Method method, Work work) {
  const absl::Time start = absl::Now();
  grpc::Status status = ToGrpcStatus(work());
  deps_.service.metrics->CountRequest(method, status.error_code(),
                                      absl::ToDoubleSeconds(absl::Now() - start));
  return status;
}

grpc::Status AdminService::ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                                      v1::ListModelsResponse* response) {
  return Answer(Method::kListModels, [&] {
    const Engine& engine = *deps_.service.engine;
    v1::Model* model = response->add_models();
    model->set_version(absl::StrCat(deps_.service.model_name, "@", engine.fingerprint()));
    model->set_fingerprint(engine.fingerprint());
    model->set_state(v1::MODEL_STATE_SERVING);
    model->set_backend(std::string(engine.backend().name()));
    model->set_item_count(static_cast<uint64_t>(engine.catalog().size() - 1));
    model->set_variant(engine.config().variant == Variant::kStreaming ? "streaming" : "published");
    model->set_directory(deps_.model_dir);
    model->set_loaded_at_ms(absl::ToUnixMillis(deps_.loaded_at));
    return absl::OkStatus();
  });
}

grpc::Status AdminService::LoadModel(grpc::ServerContext*, const v1::LoadModelRequest*,
                                     v1::LoadModelResponse*) {
  return Answer(Method::kLoadModel, [] { return NotOffered(Method::kLoadModel); });
}

grpc::Status AdminService::PromoteModel(grpc::ServerContext*, const v1::PromoteModelRequest*,
                                        v1::PromoteModelResponse*) {
  return Answer(Method::kPromoteModel, [] { return NotOffered(Method::kPromoteModel); });
}

grpc::Status AdminService::UnloadModel(grpc::ServerContext*, const v1::UnloadModelRequest*,
                                       v1::UnloadModelResponse*) {
  return Answer(Method::kUnloadModel, [] { return NotOffered(Method::kUnloadModel); });
}

grpc::Status AdminService::VerifyUser(grpc::ServerContext*, const v1::VerifyUserRequest*,
                                      v1::VerifyUserResponse*) {
  return Answer(Method::kVerifyUser, [] { return NotOffered(Method::kVerifyUser); });
}

grpc::Status AdminService::CreateBackup(grpc::ServerContext*, const v1::CreateBackupRequest*,
                                        v1::CreateBackupResponse*) {
  return Answer(Method::kCreateBackup, [] { return NotOffered(Method::kCreateBackup); });
}

grpc::Status AdminService::GetConfig(grpc::ServerContext*, const v1::GetConfigRequest*,
                                     v1::GetConfigResponse* response) {
  return Answer(Method::kGetConfig, [&] {
    response->set_yaml(deps_.config_yaml);
    return absl::OkStatus();
  });
}

grpc::Status AdminService::Drain(grpc::ServerContext*, const v1::DrainRequest* request,
                                 v1::DrainResponse*) {
  return Answer(Method::kDrain, [&] {
    Violations faults;
    if (request->timeout_ms() < 0) {
      faults.Add("timeout_ms", absl::StrCat(request->timeout_ms(), " is negative"));
      return faults.ToStatus();
    }
    deps_.drain(request->timeout_ms() == 0 ? deps_.drain_timeout
                                           : absl::Milliseconds(request->timeout_ms()));
    return absl::OkStatus();
  });
}

}  // namespace tim4rec
