#include "server/service/call_metadata.h"

#include <algorithm>
#include <random>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

bool IsHex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsId(std::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != std::string_view::npos;
}

// The value of a key that is there once, else empty.
std::string_view ValueOf(const CallMetadata& metadata, const char* key) {
  const auto [first, last] = metadata.equal_range(key);
  if (first == last || std::next(first) != last) return {};
  return {first->second.data(), first->second.size()};
}

std::string NewRequestId() {
  static thread_local std::mt19937_64 random(std::random_device{}());
  return absl::StrFormat("%016x", random());
}

bool IsServersFault(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::optional<TraceParent> ParseTraceParent(std::string_view value) {
  // version "-" trace-id "-" parent-id "-" flags; a later version may go on after another "-".
  constexpr size_t kBytes = 2 + 1 + 32 + 1 + 16 + 1 + 2;
  if (value.size() < kBytes || value[2] != '-' || value[35] != '-' || value[52] != '-') return {};
  const std::string_view version = value.substr(0, 2);
  if (!IsHex(version) || version == "ff") return {};
  if (value.size() > kBytes && (version == "00" || value[kBytes] != '-')) return {};
  const TraceParent parent{value.substr(3, 32), value.substr(36, 16)};
  if (!IsId(parent.trace_id) || !IsId(parent.parent_id) || !IsHex(value.substr(53, 2))) return {};
  return parent;
}

bool IsRequestId(std::string_view value) {
  return !value.empty() && value.size() <= kMostRequestIdBytes &&
         std::all_of(value.begin(), value.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

bool WantsTiming(const CallMetadata& metadata) {
  return !metadata.empty() && ValueOf(metadata, kWantsTimingKey) == "1";
}

std::string FormatServerTiming(const StageTimes& stages, absl::Duration total) {
  const auto ms = [](absl::Duration time) { return absl::ToDoubleMilliseconds(time); };
  return absl::StrFormat(
      "queue;dur=%.3f, append;dur=%.3f, load;dur=%.3f, fold;dur=%.3f, rank;dur=%.3f, "
      "total;dur=%.3f",
      ms(stages.queue), ms(stages.append), ms(stages.load), ms(stages.fold), ms(stages.rank),
      ms(total));
}

void LogCall(Method method, const absl::Status& status, absl::Duration total,
             const CallMetadata& metadata) {
  const bool failed = IsServersFault(status.code());
  const LogLevel level = failed ? LogLevel::kWarning : LogLevel::kDebug;
  if (!IsLogged(level)) return;
  const std::string_view given = ValueOf(metadata, kRequestIdKey);
  // The text of other statuses may name what the client sent.
  std::vector<LogField> fields = {
      {"method", MethodName(method)},
      {"status", failed ? LogText(status) : absl::StatusCodeToString(status.code())},
      {"duration_us", absl::ToInt64Microseconds(total)},
      {"request_id", IsRequestId(given) ? std::string(given) : NewRequestId()}};
  if (const auto parent = ParseTraceParent(ValueOf(metadata, kTraceParentKey))) {
    fields.emplace_back("trace_id", parent->trace_id);
    fields.emplace_back("parent_id", parent->parent_id);
  }
  static LogLimit limit;
  if (failed) {
    LogSome(&limit, level, "call failed", fields);
  } else {
    Log(level, "call", fields);
  }
}

}  // namespace tim4rec
