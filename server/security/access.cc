#include "server/security/access.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

constexpr absl::string_view kScheme = "Bearer ";

Roles RolesFor(Method method) {
  switch (method) {
    case Method::kRecommend:
    case Method::kRecommendForHistory:
    case Method::kRecommendBatch:
    case Method::kGetUser:
      return kRead;
    case Method::kRecordInteractions:
    case Method::kStreamInteractions:
    case Method::kDeleteUser:
      return kWrite;
    case Method::kRecordAndRecommend:
      return kRead | kWrite;
    case Method::kListModels:
    case Method::kLoadModel:
    case Method::kPromoteModel:
    case Method::kUnloadModel:
    case Method::kVerifyUser:
    case Method::kCreateBackup:
    case Method::kGetConfig:
    case Method::kDrain:
      break;
  }
  return kAdmin;
}

}  // namespace

void Access::Replace(Tokens tokens) {
  std::lock_guard lock(mutex_);
  tokens_ = std::move(tokens);
}

bool Access::Has(const Tokens& tokens) const {
  std::lock_guard lock(mutex_);
  return tokens_ == tokens;
}

Credential Access::FromMetadata(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  const auto [begin, end] = metadata.equal_range("authorization");
  if (begin == end || std::next(begin) != end) return std::nullopt;
  const absl::string_view value(begin->second.data(), begin->second.size());
  if (!absl::StartsWithIgnoreCase(value, kScheme)) return std::nullopt;
  return DigestOf({value.data() + kScheme.size(), value.size() - kScheme.size()});
}

absl::Status Access::Check(const Credential& credential, Method method) const {
  if (!on_) return absl::OkStatus();
  const Roles needed = RolesFor(method);
  if (!credential.has_value()) {
    metrics_.refused_no_token->Increment();
    return absl::UnauthenticatedError(
        absl::StrCat("authorization: no bearer token; send the metadata \"authorization: Bearer "
                     "TOKEN\" once, with a token for ",
                     RoleNames(needed)));
  }
  Roles given;
  {
    std::lock_guard lock(mutex_);
    given = tokens_->Find(*credential);
  }
  if (given == 0) {
    metrics_.refused_unknown_token->Increment();
    return absl::UnauthenticatedError(
        absl::StrCat("authorization: the server knows no such token, or knows it no more; ask its "
                     "operator for one for ",
                     RoleNames(needed)));
  }
  if ((given & needed) != needed) {
    metrics_.refused_role->Increment();
    return absl::PermissionDeniedError(
        absl::StrCat("authorization: ", std::string(MethodName(method)), " needs a token for ",
                     RoleNames(needed), "; this one is for ", RoleNames(given)));
  }
  return absl::OkStatus();
}

}  // namespace tim4rec
