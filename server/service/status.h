// The one place where our statuses become gRPC's.
#ifndef TIM4REC_SERVER_SERVICE_STATUS_H_
#define TIM4REC_SERVER_SERVICE_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace tim4rec {

// Collects the faults of a request.
class Violations {
 public:
  // `field`: its path in the request. `description`: what is wrong, and the limit.
  // Cut after 200 bytes, since it may repeat what the client sent.
  void Add(std::string field, std::string description);
  bool empty() const { return faults_.empty(); }

  // OK if empty; else INVALID_ARGUMENT with all faults in the message and a google.rpc.BadRequest
  // as payload.
  absl::Status ToStatus() const;

 private:
  std::vector<std::pair<std::string, std::string>> faults_;
};

// Adds a google.rpc.RetryInfo as payload.
void SetRetryDelay(absl::Duration delay, absl::Status* status);

// The same code and message; payloads become the details of a google.rpc.Status. Messages longer
// than 2000 bytes are cut, since they travel in HTTP/2 headers.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_STATUS_H_
