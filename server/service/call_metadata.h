// What a call's metadata says and asks for: who traces it, what it is called, where its time went.
#ifndef TIM4REC_SERVER_SERVICE_CALL_METADATA_H_
#define TIM4REC_SERVER_SERVICE_CALL_METADATA_H_

#include <grpcpp/support/string_ref.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/pipeline/job.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// As gRPC holds it; keys are lower case.
using CallMetadata = std::multimap<grpc::string_ref, grpc::string_ref>;

inline constexpr char kTraceParentKey[] = "traceparent";
inline constexpr char kRequestIdKey[] = "x-request-id";
// A call that sends "1" here gets FormatServerTiming in its trailing metadata.
inline constexpr char kWantsTimingKey[] = "x-tim4rec-server-timing";
inline constexpr char kServerTimingKey[] = "server-timing";
inline constexpr int kMostRequestIdBytes = 128;

struct TraceParent {
  std::string_view trace_id;   // 32 hex digits
  std::string_view parent_id;  // 16: the caller's span
};
// A `traceparent` of W3C Trace Context, level 1, section 3.2; nothing if it is malformed.
std::optional<TraceParent> ParseTraceParent(std::string_view value);

// 1 to 128 visible characters of ASCII.
bool IsRequestId(std::string_view value);

bool WantsTiming(const CallMetadata& metadata);

// As the W3C header Server-Timing: "queue;dur=0.040, append;dur=…, load;…, fold;…, rank;…,
// total;…", durations in milliseconds. The parts are described in StageTimes; `total` is from the
// call's arrival to its answer, decoding and encoding included.
std::string FormatServerTiming(const StageTimes& stages, absl::Duration total);

// One line for a call that ended: a warning if the fault is the server's (UNKNOWN,
// RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS; of a flood of them a few), else at debug.
// With trace and request id; what is malformed there is left out, and a request id made.
void LogCall(Method method, const absl::Status& status, absl::Duration total,
             const CallMetadata& metadata);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_CALL_METADATA_H_
