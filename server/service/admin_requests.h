// What is wrong with the requests of tim4rec.v1.Admin by themselves: pure functions.
#ifndef TIM4REC_SERVER_SERVICE_ADMIN_REQUESTS_H_
#define TIM4REC_SERVER_SERVICE_ADMIN_REQUESTS_H_

#include "absl/status/status.h"
#include "tim4rec/v1/admin.pb.h"

namespace tim4rec {

// OK, or INVALID_ARGUMENT naming every faulty field and its limit. Texts are UTF-8 as protobuf's
// parser leaves them; a path holds no zero byte.
absl::Status CheckRequest(const v1::LoadModelRequest& request);
absl::Status CheckRequest(const v1::PromoteModelRequest& request);
absl::Status CheckRequest(const v1::UnloadModelRequest& request);
absl::Status CheckRequest(const v1::VerifyUserRequest& request);
absl::Status CheckRequest(const v1::CreateBackupRequest& request);
absl::Status CheckRequest(const v1::DrainRequest& request);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_ADMIN_REQUESTS_H_
