// Structured logs: one JSON object per line on stderr. Never user or item ids at info and above.
#ifndef TIM4REC_SERVER_TELEMETRY_LOG_H_
#define TIM4REC_SERVER_TELEMETRY_LOG_H_

#include <concepts>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace tim4rec {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogField {
  std::string_view key;
  std::string value;
  bool number = false;

  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, std::integral auto v)
      : key(k), value(std::to_string(v)), number(true) {}
};

// "debug", "info", "warning", "error".
std::optional<LogLevel> ParseLogLevel(std::string_view name);

// Lines below the level are dropped. Thread-safe; info at first.
void SetLogLevel(LogLevel level);

// Thread-safe; a line is written whole.
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

// A status for a log line. DATA_LOSS keeps its message to itself, since it names the user.
std::string LogText(const absl::Status& status);

// The line that Log writes, without time and newline: for tests.
std::string FormatLog(LogLevel level, std::string_view message,
                      std::initializer_list<LogField> fields);

// Sends what gRPC and protobuf print through Log: gRPC's errors as errors, all else at debug, since
// a client can provoke it.
void RouteLibraryLogs();

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_TELEMETRY_LOG_H_
