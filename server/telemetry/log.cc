#include "server/telemetry/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <atomic>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace tim4rec {
namespace {

std::atomic<LogLevel> minimum_level = LogLevel::kInfo;

constexpr std::string_view kNames[] = {"debug", "info", "warning", "error"};

void AppendQuoted(std::string_view text, std::string* out) {
  *out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (c == '\n') {
      *out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      *out += escape;
    } else {
      *out += c;
    }
  }
  *out += '"';
}

std::string Body(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  std::string body = "\"level\":";
  AppendQuoted(kNames[static_cast<int>(level)], &body);
  body += ",\"message\":";
  AppendQuoted(message, &body);
  for (const LogField& field : fields) {
    body += ',';
    AppendQuoted(field.key, &body);
    body += ':';
    if (field.number) {
      body += field.value;
    } else {
      AppendQuoted(field.value, &body);
    }
  }
  return body;
}

void FromGrpc(gpr_log_func_args* args) {
  Log(args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kError : LogLevel::kDebug, args->message,
      {{"source", "grpc"}});
}

void FromProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  Log(LogLevel::kDebug, message, {{"source", "protobuf"}});
}

}  // namespace

std::optional<LogLevel> ParseLogLevel(std::string_view name) {
  for (int i = 0; i < 4; ++i) {
    if (kNames[i] == name) return static_cast<LogLevel>(i);
  }
  return std::nullopt;
}

void SetLogLevel(LogLevel level) { minimum_level = level; }

std::string FormatLog(LogLevel level, std::string_view message,
                      std::initializer_list<LogField> fields) {
  return absl::StrCat("{", Body(level, message, fields), "}");
}

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (level < minimum_level.load(std::memory_order_relaxed)) return;
  const std::string line = absl::StrCat(
      "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
      "\",", Body(level, message, fields), "}\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::string LogText(const absl::Status& status) {
  return absl::IsDataLoss(status) ? "DATA_LOSS" : status.ToString();
}

void RouteLibraryLogs() {
  gpr_set_log_function(FromGrpc);
  google::protobuf::SetLogHandler(FromProtobuf);
}

}  // namespace tim4rec
