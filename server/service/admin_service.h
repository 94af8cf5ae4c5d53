// tim4rec.v1.Admin: what an operator asks of a running server.
#ifndef TIM4REC_SERVER_SERVICE_ADMIN_SERVICE_H_
#define TIM4REC_SERVER_SERVICE_ADMIN_SERVICE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/pipeline/model_swap.h"
#include "server/service/service_deps.h"
#include "store/rocksdb_store.h"
#include "tim4rec/v1/admin.grpc.pb.h"

namespace tim4rec {

// All of it outlives the service.
struct AdminDeps {
  ServiceDeps service;
  ModelSwap* swap;
  std::function<std::string()> config_yaml;  // the effective configuration; any thread
  std::function<absl::StatusOr<Backup>(const std::string& dir)> create_backup;  // any thread
  // Begins what SIGTERM begins, with that time for answers to reach slow clients; returns at once.
  // Repeatable.
  std::function<void(absl::Duration timeout)> drain;
  std::function<absl::Duration()> drain_timeout;  // the configured one; any thread
};

// Thread-safe. The calls are few and may take long, so each has a thread of gRPC's own for as long
// as it takes (the synchronous API), on a gRPC server of its own.
class AdminService final : public v1::Admin::Service {
 public:
  explicit AdminService(AdminDeps deps) : deps_(std::move(deps)) {}

  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status LoadModel(grpc::ServerContext* context, const v1::LoadModelRequest* request,
                         v1::LoadModelResponse* response) override;
  grpc::Status PromoteModel(grpc::ServerContext* context, const v1::PromoteModelRequest* request,
                            v1::PromoteModelResponse* response) override;
  grpc::Status UnloadModel(grpc::ServerContext* context, const v1::UnloadModelRequest* request,
                           v1::UnloadModelResponse* response) override;
  grpc::Status VerifyUser(grpc::ServerContext* context, const v1::VerifyUserRequest* request,
                          v1::VerifyUserResponse* response) override;
  grpc::Status CreateBackup(grpc::ServerContext* context, const v1::CreateBackupRequest* request,
                            v1::CreateBackupResponse* response) override;
  grpc::Status GetConfig(grpc::ServerContext* context, const v1::GetConfigRequest* request,
                         v1::GetConfigResponse* response) override;
  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                     v1::DrainResponse* response) override;

 private:
  // Runs one call, if its client may, counts it, logs it and times it: `work` returns an
  // absl::Status.
  template <typename Work>
  grpc::Status Answer(grpc::ServerContext* context, Method method, Work work);

  const AdminDeps deps_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_ADMIN_SERVICE_H_
