#include "server/service/admin_requests.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "server/service/codec.h"
#include "server/service/status.h"

namespace tim4rec {
namespace {

void CheckGiven(const char* field, const std::string& value, Violations* faults) {
  if (value.empty()) faults->Add(field, "is empty");
}

// The system would take what is before a zero byte for the whole path.
void CheckPath(const std::string& path, Violations* faults) {
  if (path.find('\0') != std::string::npos) faults->Add("directory", "holds a zero byte");
}

absl::Status CheckVersion(const std::string& version) {
  Violations faults;
  CheckGiven("version", version, &faults);
  return faults.ToStatus();
}

}  // namespace

absl::Status CheckRequest(const v1::LoadModelRequest& request) {
  Violations faults;
  CheckGiven("directory", request.directory(), &faults);
  CheckPath(request.directory(), &faults);
  return faults.ToStatus();
}

absl::Status CheckRequest(const v1::PromoteModelRequest& request) {
  return CheckVersion(request.version());
}

absl::Status CheckRequest(const v1::UnloadModelRequest& request) {
  return CheckVersion(request.version());
}

absl::Status CheckRequest(const v1::VerifyUserRequest& request) {
  Violations faults;
  if (request.user_id().empty() || request.user_id().size() > kMostIdBytes) {
    faults.Add("user_id",
               absl::StrCat("has ", request.user_id().size(), " bytes (1 to ", kMostIdBytes, ")"));
  }
  return faults.ToStatus();
}

absl::Status CheckRequest(const v1::CreateBackupRequest& request) {
  Violations faults;
  if (request.directory().empty() || request.directory().front() != '/') {
    faults.Add("directory",
               absl::StrCat("\"", request.directory(), "\" is not an absolute path on the server"));
  }
  CheckPath(request.directory(), &faults);
  return faults.ToStatus();
}

absl::Status CheckRequest(const v1::DrainRequest& request) {
  Violations faults;
  if (request.timeout_ms() < 0) {
    faults.Add("timeout_ms", absl::StrCat(request.timeout_ms(), " is negative"));
  }
  return faults.ToStatus();
}

}  // namespace tim4rec
