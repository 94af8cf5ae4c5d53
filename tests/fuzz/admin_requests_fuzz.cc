// Input: which call:u8, then the bytes of its request to tim4rec.v1.Admin as a client sends them.
// What passes the checks can be acted on, and what is faulty is said, in text that is UTF-8 and of
// a bounded length.
#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/service/admin_requests.h"
#include "server/service/codec.h"
#include "server/service/parse.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

// As a client gets it: what does not fit into HTTP/2's headers fails the call in another way.
void CheckAnswer(const absl::Status& status) {
  const grpc::Status answer = ToGrpcStatus(status);
  Require(IsValidUtf8(answer.error_message()) && answer.error_message().size() <= 2000);
  Require(answer.error_details().size() <= 4000);
}

bool IsPath(const std::string& path) {
  return !path.empty() && path.size() == strlen(path.c_str());
}

void TryLoadModel(const v1::LoadModelRequest& request) { Require(IsPath(request.directory())); }
void TryPromoteModel(const v1::PromoteModelRequest& request) {
  Require(!request.version().empty());
}
void TryUnloadModel(const v1::UnloadModelRequest& request) { Require(!request.version().empty()); }
void TryVerifyUser(const v1::VerifyUserRequest& request) {
  Require(!request.user_id().empty() && request.user_id().size() <= kMostIdBytes);
  Require(IsValidUtf8(request.user_id()));
}
void TryCreateBackup(const v1::CreateBackupRequest& request) {
  Require(IsPath(request.directory()) && request.directory().front() == '/');
}
// The end of the drain is a time.
void TryDrain(const v1::DrainRequest& request) {
  const absl::Duration timeout = absl::Milliseconds(request.timeout_ms());
  Require(timeout >= absl::ZeroDuration());
  Require(absl::UnixEpoch() + absl::Milliseconds(absl::ToInt64Milliseconds(timeout)) >=
          absl::UnixEpoch());
}

template <typename Request, typename Try>
void TryCall(const std::string& bytes, Try act) {
  Request request;
  if (!request.ParseFromString(bytes)) return;
  const absl::Status checked = CheckRequest(request);
  CheckAnswer(checked);
  if (checked.ok()) act(request);
  // Errors repeat what they do not find.
  CheckAnswer(absl::NotFoundError(request.ShortDebugString()));
}

template <typename Request>
void TryEmpty(const std::string& bytes) {
  Request request;
  if (request.ParseFromString(bytes)) Require(request.ByteSizeLong() <= bytes.size());
}

}  // namespace
}  // namespace tim4rec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tim4rec;
  // Else it prints a line for every text that is no UTF-8.
  static const auto printed = google::protobuf::SetLogHandler(nullptr);
  (void)printed;
  if (size < 1) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 8) {
    case 0:
      TryCall<v1::LoadModelRequest>(bytes, TryLoadModel);
      break;
    case 1:
      TryCall<v1::PromoteModelRequest>(bytes, TryPromoteModel);
      break;
    case 2:
      TryCall<v1::UnloadModelRequest>(bytes, TryUnloadModel);
      break;
    case 3:
      TryCall<v1::VerifyUserRequest>(bytes, TryVerifyUser);
      break;
    case 4:
      TryCall<v1::CreateBackupRequest>(bytes, TryCreateBackup);
      break;
    case 5:
      TryCall<v1::DrainRequest>(bytes, TryDrain);
      break;
    case 6:
      TryEmpty<v1::ListModelsRequest>(bytes);
      break;
    case 7:
      TryEmpty<v1::GetConfigRequest>(bytes);
      break;
  }
  return 0;
}
