// Structured logs: one JSON object per line on stderr. Never user or item ids at info and above.
#ifndef TIM4REC_SERVER_TELEMETRY_LOG_H_
#define TIM4REC_SERVER_TELEMETRY_LOG_H_

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

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
bool IsLogged(LogLevel level);

// Thread-safe; a line is written whole.
void Log(LogLevel level, std::string_view message, std::span<const LogField> fields);
inline void Log(LogLevel level, std::string_view message,
                std::initializer_list<LogField> fields = {}) {
  Log(level, message, std::span(fields.begin(), fields.size()));
}

// How many lines one place may write: kMost in any kPeriod that begins with a line. Thread-safe.
class LogLimit {
 public:
  static constexpr int kMost = 10;
  static constexpr absl::Duration kPeriod = absl::Seconds(10);

  // Whether a line may be written at `now`; if so, how many could not since the one before.
  std::optional<int64_t> Admit(absl::Time now);

 private:
  std::mutex mutex_;
  absl::Time begin_ = absl::InfinitePast();
  int written_ = 0;
  int64_t left_out_ = 0;
};

// As Log, for what a request or a failing disk can cause any number of times. The line after some
// that were left out says how many, as "left_out".
void LogSome(LogLimit* limit, LogLevel level, std::string_view message,
             std::span<const LogField> fields);
inline void LogSome(LogLimit* limit, LogLevel level, std::string_view message,
                    std::initializer_list<LogField> fields = {}) {
  LogSome(limit, level, message, std::span(fields.begin(), fields.size()));
}

// A status for a log line, without user ids: those that the store quotes ("user 'x'") are left out,
// and of DATA_LOSS the whole message, since it names keys too.
std::string LogText(const absl::Status& status);

// The line that Log writes, without time and newline: for tests.
std::string FormatLog(LogLevel level, std::string_view message,
                      std::initializer_list<LogField> fields);

// Sends what gRPC and protobuf print through Log: gRPC's errors as errors, all else at debug, since
// a client can provoke it.
void RouteLibraryLogs();

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_TELEMETRY_LOG_H_
