#include <atomic>
#include <string>

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
  std::atomic<bool> ready = false;
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", &metrics, [&] { return ready.load(); });
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const std::string& address = (*endpoint)->address();
  EXPECT_THAT(address, StartsWith("127.0.0.1:"));
  EXPECT_NE(address, "127.0.0.1:0");
  EXPECT_THAT(HttpGet(address, "/metrics"), HasSubstr("tim4rec_resident_users 0"));
  EXPECT_THAT(HttpGet(address, "/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(address, "/readyz"), StartsWith("HTTP/1.1 503"));
  ready = true;
  EXPECT_THAT(HttpGet(address, "/readyz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(HttpGet(address, "/other"), StartsWith("HTTP/1.1 404"));
}

TEST(HttpEndpoint, RefusesAPortInUseAndAnAddressThatIsNone) {
  Metrics metrics;
  auto first = HttpEndpoint::Start("127.0.0.1:0", &metrics, [] { return true; });
  ASSERT_TRUE(first.ok());
  auto second = HttpEndpoint::Start((*first)->address(), &metrics, [] { return true; });
  EXPECT_THAT(second.status().ToString(), HasSubstr("metrics_listen: cannot bind"));
  auto third = HttpEndpoint::Start("not-an-address:1", &metrics, [] { return true; });
  EXPECT_FALSE(third.ok());
}

}  // namespace
}  // namespace tim4rec
