#include "server/service/status.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace tim4rec {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
constexpr size_t kMostMessageBytes = 2000;
// Details travel in HTTP/2 headers too.
constexpr size_t kMostViolations = 16;
constexpr size_t kMostDescriptionBytes = 200;

template <typename Message>
void SetPayload(const Message& message, absl::Status* status) {
  status->SetPayload(kTypePrefix + Message::descriptor()->full_name(),
                     absl::Cord(message.SerializeAsString()));
}

// At most `limit` bytes, not cut within a character.
std::string Cut(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
  return std::string(text.substr(0, limit));
}

}  // namespace

void Violations::Add(std::string field, std::string description) {
  faults_.emplace_back(std::move(field), Cut(description, kMostDescriptionBytes));
}

absl::Status Violations::ToStatus() const {
  if (faults_.empty()) return absl::OkStatus();
  std::string message;
  google::rpc::BadRequest details;
  for (size_t i = 0; i < std::min(faults_.size(), kMostViolations); ++i) {
    const auto& [field, description] = faults_[i];
    absl::StrAppend(&message, i == 0 ? "" : "; ", field, ": ", description);
    auto* violation = details.add_field_violations();
    violation->set_field(field);
    violation->set_description(description);
  }
  if (faults_.size() > kMostViolations) {
    absl::StrAppend(&message, "; and ", faults_.size() - kMostViolations, " more");
  }
  absl::Status status = absl::InvalidArgumentError(message);
  SetPayload(details, &status);
  return status;
}

void SetRetryDelay(absl::Duration delay, absl::Status* status) {
  google::rpc::RetryInfo details;
  details.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  details.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay % absl::Seconds(1))));
  SetPayload(details, status);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Cut(status.message(), kMostMessageBytes);
  google::rpc::Status details;
  status.ForEachPayload([&](absl::string_view type_url, const absl::Cord& payload) {
    auto* detail = details.add_details();
    detail->set_type_url(std::string(type_url));
    detail->set_value(std::string(payload));
  });
  std::string bytes;
  if (details.details_size() > 0) {
    details.set_code(static_cast<int>(status.code()));
    details.set_message(message);
    bytes = details.SerializeAsString();
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message, bytes);
}

}  // namespace tim4rec
