#include "server/service/call_metadata.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const std::string kTrace = "0af7651916cd43dd8448eb211c80319c";
const std::string kSpan = "b7ad6b7169203331";
const std::string kGood = "00-" + kTrace + "-" + kSpan + "-01";

TEST(TraceParent, ReadsWhatTheSpecificationShows) {
  const auto parent = ParseTraceParent(kGood);
  ASSERT_TRUE(parent.has_value());
  EXPECT_EQ(parent->trace_id, kTrace);
  EXPECT_EQ(parent->parent_id, kSpan);
  // A later version may be longer.
  EXPECT_TRUE(ParseTraceParent("cc-" + kTrace + "-" + kSpan + "-01-what-may-come"));
  EXPECT_TRUE(ParseTraceParent("cc-" + kTrace + "-" + kSpan + "-01"));
}

TEST(TraceParent, IgnoresWhatIsMalformed) {
  for (const std::string& bad :
       {std::string(), std::string("00"), kGood + "-00", kGood + "0", kGood.substr(0, 54),
        "ff" + kGood.substr(2), "0G" + kGood.substr(2), "cc" + kGood.substr(2) + ".x",
        "00-" + std::string(32, '0') + "-" + kSpan + "-01",
        "00-" + kTrace + "-" + std::string(16, '0') + "-01",
        "00-" + kTrace.substr(1) + "A-" + kSpan + "-01", "00-" + kTrace + "_" + kSpan + "-01",
        "00-" + kTrace + "-" + kSpan + "-0x"}) {
    EXPECT_FALSE(ParseTraceParent(bad)) << bad;
  }
}

TEST(RequestId, IsShortAndVisible) {
  EXPECT_TRUE(IsRequestId("a"));
  EXPECT_TRUE(IsRequestId(std::string(kMostRequestIdBytes, 'x')));
  EXPECT_FALSE(IsRequestId(""));
  EXPECT_FALSE(IsRequestId(std::string(kMostRequestIdBytes + 1, 'x')));
  EXPECT_FALSE(IsRequestId("a b"));
  EXPECT_FALSE(IsRequestId("a\n"));
  EXPECT_FALSE(IsRequestId("\xc3\xa4"));
}

TEST(ServerTiming, IsWantedByOneValueOnly) {
  EXPECT_FALSE(WantsTiming({}));
  EXPECT_TRUE(WantsTiming({{kWantsTimingKey, "1"}}));
  EXPECT_FALSE(WantsTiming({{kWantsTimingKey, "0"}}));
  EXPECT_FALSE(WantsTiming({{kWantsTimingKey, "1"}, {kWantsTimingKey, "1"}}));
}

TEST(ServerTiming, IsInMilliseconds) {
  StageTimes stages;
  stages.queue = absl::Microseconds(41);
  stages.append = absl::Milliseconds(3);
  stages.load = absl::Microseconds(1500);
  stages.fold = absl::Nanoseconds(800);
  EXPECT_EQ(FormatServerTiming(stages, absl::Seconds(2)),
            "queue;dur=0.041, append;dur=3.000, load;dur=1.500, fold;dur=0.001, rank;dur=0.000, "
            "total;dur=2000.000");
}

std::string Logged(const absl::Status& status, const CallMetadata& metadata) {
  testing::internal::CaptureStderr();
  LogCall(Method::kRecommend, status, absl::Milliseconds(2), metadata);
  return testing::internal::GetCapturedStderr();
}

TEST(LogCall, TellsTheServersFaultsWithTheirTrace) {
  const std::string line =
      Logged(absl::UnavailableError("disk"), {{"traceparent", kGood}, {"x-request-id", "r-17"}});
  EXPECT_THAT(line, AllOf(HasSubstr("\"level\":\"warning\",\"message\":\"call failed\""),
                          HasSubstr("\"method\":\"Recommend\",\"status\":\"UNAVAILABLE: disk\""),
                          HasSubstr("\"duration_us\":2000,\"request_id\":\"r-17\""),
                          HasSubstr("\"trace_id\":\"" + kTrace + "\""),
                          HasSubstr("\"parent_id\":\"" + kSpan + "\"")));
}

TEST(LogCall, MakesARequestIdAndLeavesOutWhatIsMalformed) {
  const std::string line =
      Logged(absl::InternalError("x"), {{"traceparent", "00-nonsense"}, {"x-request-id", "a b"}});
  EXPECT_THAT(line, ContainsRegex("\"request_id\":\"[0-9a-f]{16}\"}"));
  EXPECT_THAT(line, Not(HasSubstr("trace_id")));
}

TEST(LogCall, TellsOtherCallsAtDebugOnlyAndWithoutTheirText) {
  const absl::Status status = absl::InvalidArgumentError("item_id: \"secret\"");
  EXPECT_THAT(Logged(status, {}), IsEmpty());
  EXPECT_THAT(Logged(absl::OkStatus(), {}), IsEmpty());
  SetLogLevel(LogLevel::kDebug);
  EXPECT_THAT(Logged(status, {}),
              AllOf(HasSubstr("\"level\":\"debug\",\"message\":\"call\""),
                    HasSubstr("\"status\":\"INVALID_ARGUMENT\""), Not(HasSubstr("secret"))));
  SetLogLevel(LogLevel::kInfo);
}

}  // namespace
}  // namespace tim4rec
