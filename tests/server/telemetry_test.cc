#include <algorithm>
#include <atomic>
#include <optional>
#include <string>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/telemetry/http_endpoint.h"
#include "server/telemetry/log.h"
#include "server/telemetry/metrics.h"
#include "tests/server/http_get.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(Log, WritesOneJsonLine) {
  EXPECT_EQ(FormatLog(LogLevel::kWarning, "say \"hi\"\n", {{"path", "a\\b\x01"}, {"count", 3}}),
            "{\"level\":\"warning\",\"message\":\"say \\\"hi\\\"\\n\","
            "\"path\":\"a\\\\b\\u0001\",\"count\":3}");
}

TEST(Log, NamesNoUserOfAStatus) {
  EXPECT_EQ(
      LogText(absl::UnavailableError("read the events of user 'ann\\'s \\\\' of user 'b': IO")),
      "UNAVAILABLE: read the events of user '...' of user '...': IO");
  EXPECT_EQ(LogText(absl::UnavailableError("user 'cut")), "UNAVAILABLE: user '...'");
  EXPECT_EQ(LogText(absl::DataLossError("key 0001")), "DATA_LOSS");
  EXPECT_EQ(LogText(absl::OkStatus()), "OK");
}

TEST(LogLimit, WritesTenLinesInTenSecondsAndCountsTheRest) {
  LogLimit limit;
  const absl::Time start = absl::FromUnixSeconds(1'700'000'000);
  for (int i = 0; i < LogLimit::kMost; ++i) EXPECT_EQ(limit.Admit(start + absl::Seconds(i)), 0);
  for (int i = 0; i < 7; ++i) EXPECT_EQ(limit.Admit(start + absl::Seconds(9)), std::nullopt);
  EXPECT_EQ(limit.Admit(start + LogLimit::kPeriod), 7);
  EXPECT_EQ(limit.Admit(start + LogLimit::kPeriod), 0);
  EXPECT_EQ(limit.Admit(start), 0) << "the clock was set back";
}

TEST(LogSome, SaysHowManyLinesWereLeftOut) {
  LogLimit limit;
  testing::internal::CaptureStderr();
  for (int i = 0; i < LogLimit::kMost + 5; ++i) {
    LogSome(&limit, LogLevel::kWarning, "again", {{"number", i}});
    LogSome(&limit, LogLevel::kDebug, "below the level", {});
  }
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), LogLimit::kMost);
  EXPECT_THAT(lines, HasSubstr("\"level\":\"warning\",\"message\":\"again\",\"number\":9}\n"));
}

TEST(Metrics, HasTheCountersOfAlertsFromTheStart) {
  const std::string text = Metrics().Text();
  for (const char* code :
       {"OK", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}) {
    for (int m = 0; m < kMethods; ++m) {
      EXPECT_THAT(text,
                  HasSubstr("tim4rec_requests_total{code=\"" + std::string(code) + "\",method=\"" +
                            std::string(MethodName(static_cast<Method>(m))) + "\"} 0\n"));
    }
  }
}

TEST(Metrics, SaysWhatTheProcessTakes) {
  Metrics metrics;
  const std::string text = metrics.Text();
  const auto value = [&text](const std::string& name) {
    const size_t at = text.find("\n" + name + " ");
    EXPECT_NE(at, std::string::npos) << name;
    return at == std::string::npos ? 0 : std::stod(text.substr(at + name.size() + 2));
  };
  EXPECT_GT(value("process_cpu_seconds_total"), 0);
  EXPECT_GT(value("process_resident_memory_bytes"), 1 << 20);
  EXPECT_LT(value("process_resident_memory_bytes"), 1e12);
  EXPECT_GE(value("process_open_fds"), 3);
  EXPECT_GT(value("process_max_fds"), value("process_open_fds"));
  EXPECT_NEAR(value("process_start_time_seconds"), absl::ToUnixSeconds(absl::Now()), 600);
}

TEST(Metrics, CountsRequestsByMethodAndCode) {
  Metrics metrics;
  metrics.CountRequest(Method::kRecommend, 0, 0.001);
  metrics.CountRequest(Method::kRecommend, 0, 0.001);
  metrics.CountRequest(Method::kGetUser, 3, 0.001);
  metrics.SetModel("m", "f", "streaming", "cpu");
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("tim4rec_requests_total{code=\"OK\",method=\"Recommend\"} 2"));
  EXPECT_THAT(text,
              HasSubstr("tim4rec_requests_total{code=\"INVALID_ARGUMENT\",method=\"GetUser\"} 1"));
  EXPECT_THAT(text, HasSubstr("tim4rec_request_duration_seconds_count{method=\"Recommend\"} 2"));
  EXPECT_THAT(text, HasSubstr("tim4rec_model_info{"));
}

TEST(HttpEndpoint, ServesMetricsHealthAndReadiness) {
  Metrics metrics;
  std::atomic<bool> ready = false, degraded = false;
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, [&] {
    return Readiness{ready.load(), degraded ? "one arm" : ""};
  });
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const std::string& address = (*endpoint)->address();
  EXPECT_THAT(address, StartsWith("127.0.0.1:"));
  EXPECT_NE(address, "127.0.0.1:0");
  EXPECT_THAT(HttpGet(address, "/metrics"), HasSubstr("tim4rec_resident_users 0"));
  EXPECT_THAT(HttpGet(address, "/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(address, "/readyz"), StartsWith("HTTP/1.1 503"));
  ready = true;
  EXPECT_THAT(HttpGet(address, "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(address, "/readyz"), testing::EndsWith("\r\n\r\nready\n"));
  degraded = true;
  EXPECT_THAT(HttpGet(address, "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(address, "/readyz"), HasSubstr("ready; one arm\n"));
  EXPECT_THAT(HttpGet(address, "/other"), StartsWith("HTTP/1.1 404"));
}

TEST(HttpEndpoint, RefusesAPortInUseAndAnAddressThatIsNone) {
  Metrics metrics;
  auto first = HttpEndpoint::Start("127.0.0.1:0", &metrics, [] { return Readiness{true, {}}; });
  ASSERT_TRUE(first.ok());
  auto second = HttpEndpoint::Start((*first)->address(), &metrics, [] {
    return Readiness{true, {}};
  });
  EXPECT_THAT(second.status().ToString(), HasSubstr("metrics_listen: cannot bind"));
  auto third = HttpEndpoint::Start("not-an-address:1", &metrics, [] {
    return Readiness{true, {}};
  });
  EXPECT_FALSE(third.ok());
}

}  // namespace
}  // namespace tim4rec
