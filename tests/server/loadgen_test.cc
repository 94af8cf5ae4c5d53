// The parts of tim4rec-loadgen; tests/e2e/loadgen_test.cc runs the program.
#include "server/loadgen/load.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "server/loadgen/histogram.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(Histogram, QuantilesAreWithinABucketOfTheSortedValues) {
  constexpr uint64_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random(kSeed);
  std::vector<uint64_t> values;
  Histogram halves[2];
  for (int i = 0; i < 20'000; ++i) {
    values.push_back(random() >> (random() % 64));
    halves[i % 2].Add(values.back());
  }
  Histogram histogram;
  for (const Histogram& half : halves) histogram.Merge(half);
  std::sort(values.begin(), values.end());
  EXPECT_EQ(histogram.count(), values.size());
  EXPECT_EQ(histogram.min(), values.front());
  EXPECT_EQ(histogram.max(), values.back());
  for (const double q : {0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const auto rank = std::max<size_t>(1, static_cast<size_t>(std::ceil(q * 20'000.0)));
    const uint64_t exact = values[rank - 1];
    EXPECT_GE(histogram.Quantile(q), exact) << q;
    EXPECT_LE(histogram.Quantile(q) - exact, exact / 128) << q;
  }
  EXPECT_EQ(Histogram().Quantile(0.5), 0);
}

TEST(Workload, UsersOfThreadsAreDistinctAndTheirTimesRise) {
  LoadOptions options;
  options.scenario = Scenario::kRecord;
  options.users = 7;
  options.threads = 3;
  options.events = 2;
  const std::vector<std::string> items = {"a", "b"};
  std::set<std::string> users;
  for (int thread = 0; thread < options.threads; ++thread) {
    Workload workload(options, &items, thread);
    std::map<std::string, int64_t> last;
    for (int i = 0; i < 20; ++i) {
      Request request = workload.Next();
      v1::RecordInteractionsRequest record;
      ASSERT_TRUE(grpc::SerializationTraits<v1::RecordInteractionsRequest>::Deserialize(
                      &request.bytes, &record)
                      .ok());
      ASSERT_EQ(record.interactions_size(), 2);
      for (const auto& interaction : record.interactions()) {
        EXPECT_GT(interaction.timestamp_ms(), last[record.user_id()]);
        last[record.user_id()] = interaction.timestamp_ms();
      }
    }
    for (const auto& [user, time] : last) EXPECT_TRUE(users.insert(user).second) << user;
  }
  EXPECT_EQ(users.size(), 7);
}

// Holds its first answer back for a while, and fails every tenth call.
class StallingService final : public v1::Recommender::CallbackService {
 public:
  grpc::ServerUnaryReactor* Recommend(grpc::CallbackServerContext* context,
                                      const v1::RecommendRequest*,
                                      v1::RecommendResponse* response) override {
    const int number = calls_++;
    if (number == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    response->add_items()->set_item_id("a");
    auto* reactor = context->DefaultReactor();
    reactor->Finish(number % 10 == 9 ? grpc::Status(grpc::StatusCode::ABORTED, "the tenth")
                                     : grpc::Status::OK);
    return reactor;
  }

  std::atomic<int> calls_ = 0;
};

class OpenLoop : public testing::Test {
 protected:
  OpenLoop() {
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    target_ = *Target::Connect("127.0.0.1:" + std::to_string(port), 1);
  }

  StallingService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Target> target_;
};

TEST_F(OpenLoop, WhatWaitsForAStalledServerCountsFromWhenItWasDue) {
  LoadOptions options;
  options.threads = 1;
  options.in_flight = 1;
  options.rate = 200;
  options.seconds = 0.5;
  const std::vector<std::string> items = {"a"};
  auto load = Load::Create(options, &items);
  ASSERT_TRUE(load.ok()) << load.status();
  const LoadResult result = (*load)->Run(*target_);
  const Histogram& latency = result.latency_ns[static_cast<int>(Call::kRecommend)];
  const int64_t failed = service_.calls_ / 10;
  EXPECT_EQ(result.calls(), service_.calls_ - failed);
  EXPECT_EQ(result.tally.errors.at("ABORTED"), failed);
  EXPECT_EQ(result.tally.first_error, "the tenth");
  EXPECT_GE(result.calls(), 50);
  // About 60 became due while the first was held; only one of them was on its way.
  EXPECT_GE(latency.max(), 300'000'000u);
  EXPECT_GE(latency.Quantile(1 - 20.0 / static_cast<double>(result.calls())), 50'000'000u);
}

TEST(Load, NamesEveryFaultyOption) {
  LoadOptions options;
  options.scenario = Scenario::kStream;
  options.users = 100;
  options.k = 1001;
  options.rate = -1;
  const std::vector<std::string> items;
  const auto load = Load::Create(options, &items);
  ASSERT_FALSE(load.ok());
  EXPECT_THAT(std::string(load.status().message()),
              AllOf(HasSubstr("k: 1001 is not 1 to 1000"), HasSubstr("batch-users: 256"),
                    HasSubstr("rate: -1"), HasSubstr("items: there is none")));
}

}  // namespace
}  // namespace tim4rec
