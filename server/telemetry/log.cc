#include "server/telemetry/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <span>
#include <utility>
#include <vector>

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

std::string Body(LogLevel level, std::string_view message, std::span<const LogField> fields) {
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

// The store quotes ids: user 'a\'b'.
std::string WithoutUsers(std::string_view message) {
  constexpr std::string_view kUser = "user '";
  std::string text;
  for (size_t at = 0;;) {
    const size_t user = message.find(kUser, at);
    text += message.substr(at, user - at);
    if (user == std::string_view::npos) return text;
    text += "user '...'";
    at = user + kUser.size();
    while (at < message.size() && message[at] != '\'') at += message[at] == '\\' ? 2 : 1;
    at = std::min(at + 1, message.size());
  }
}

void Write(LogLevel level, std::string_view message, std::span<const LogField> fields) {
  const std::string line = absl::StrCat(
      "{\"time\":\"", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()),
      "\",", Body(level, message, fields), "}\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void FromGrpc(gpr_log_func_args* args) {
  static LogLimit limit;
  if (args->severity == GPR_LOG_SEVERITY_ERROR) {
    LogSome(&limit, LogLevel::kError, args->message, {{"source", "grpc"}});
  } else {
    Log(LogLevel::kDebug, args->message, {{"source", "grpc"}});
  }
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

bool IsLogged(LogLevel level) { return level >= minimum_level.load(std::memory_order_relaxed); }

std::string FormatLog(LogLevel level, std::string_view message,
                      std::initializer_list<LogField> fields) {
  return absl::StrCat("{", Body(level, message, fields), "}");
}

void Log(LogLevel level, std::string_view message, std::span<const LogField> fields) {
  if (IsLogged(level)) Write(level, message, fields);
}

std::optional<int64_t> LogLimit::Admit(absl::Time now) {
  std::lock_guard lock(mutex_);
  if (now - begin_ >= kPeriod || now < begin_) {  // the clock may have been set back
    begin_ = now;
    written_ = 0;
  }
  if (written_ == kMost) {
    ++left_out_;
    return std::nullopt;
  }
  ++written_;
  return std::exchange(left_out_, 0);
}

void LogSome(LogLimit* limit, LogLevel level, std::string_view message,
             std::span<const LogField> fields) {
  if (!IsLogged(level)) return;
  const std::optional<int64_t> left_out = limit->Admit(absl::Now());
  if (!left_out) return;
  std::vector<LogField> all(fields.begin(), fields.end());
  if (*left_out > 0) all.emplace_back("left_out", *left_out);
  Write(level, message, all);
}

std::string LogText(const absl::Status& status) {
  const std::string code = absl::StatusCodeToString(status.code());
  if (status.ok() || absl::IsDataLoss(status)) return code;
  return absl::StrCat(code, ": ", WithoutUsers({status.message().data(), status.message().size()}));
}

void RouteLibraryLogs() {
  gpr_set_log_function(FromGrpc);
  google::protobuf::SetLogHandler(FromProtobuf);
}

}  // namespace tim4rec
