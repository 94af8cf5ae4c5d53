// Published checkpoints, imported by `tim4rec import` and served: what gRPC answers is what the
// golden vectors say.
#include <cstdlib>
#include <random>

#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"
#include "tests/model/golden_case.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

class Published : public ServerTest {
 protected:
  std::string ImportCase(const GoldenCase& golden) {
    const std::string model = dir_ + "/" + golden.name;
    const std::string command = BinaryDir() + "/bin/tim4rec import" + " --safetensors " +
                                golden.dir + "/model.safetensors --config " + golden.dir +
                                "/config.json --out " + model + " 2>/dev/null";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    return model;
  }

  std::unique_ptr<ServerProcess> ServeModel(const std::string& model) {
    auto server = std::make_unique<ServerProcess>(
        std::vector<std::string>{"--model", model, "--data", model + ".data", "--listen",
                                 "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"});
    EXPECT_TRUE(server->WaitUntilServing()) << server->errors();
    return server;
  }

  // Records one row's events, in pieces of random size with queries between them.
  static void Record(v1::Recommender::Stub& stub, const GoldenCase& golden, int64_t row,
                     std::mt19937_64* random) {
    const auto items = golden.Items(row);
    const auto times = golden.TimestampsMs(row);
    for (size_t at = 0; at < items.size();) {
      v1::RecordInteractionsRequest request;
      request.set_user_id("user" + std::to_string(row));
      const size_t end = std::min(items.size(), at + 1 + (*random)() % 90);
      for (; at < end; ++at) {
        auto* interaction = request.add_interactions();
        interaction->set_item_id(std::to_string(items[at]));
        interaction->set_timestamp_ms(times[at]);
        // Events of one timestamp are ordered by their ids.
        interaction->set_event_id(std::to_string(10'000 + at));
      }
      v1::RecordInteractionsResponse response;
      Context context;
      const grpc::Status status = stub.RecordInteractions(&context, request, &response);
      ASSERT_TRUE(status.ok()) << status.error_message();
      for (const auto& result : response.results()) {
        ASSERT_EQ(result.status(), v1::INTERACTION_STATUS_APPLIED) << result.reason();
      }
      Top(stub, row, 5, 0);
    }
  }

  static std::vector<std::string> Top(v1::Recommender::Stub& stub, int64_t row, uint32_t k,
                                      int64_t as_of_ms) {
    v1::RecommendRequest request;
    request.set_user_id("user" + std::to_string(row));
    request.set_k(k);
    request.set_as_of_ms(as_of_ms);
    request.set_exclude_seen(false);
    v1::RecommendResponse response;
    Context context;
    const grpc::Status status = stub.Recommend(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<std::string> items;
    for (const auto& scored : response.items()) items.push_back(scored.item_id());
    return items;
  }

  // For the row's events, sent newest first, instead of a user's.
  static std::vector<std::string> TopOfHistory(v1::Recommender::Stub& stub,
                                               const GoldenCase& golden, int64_t row, uint32_t k) {
    const auto items = golden.Items(row);
    const auto times = golden.TimestampsMs(row);
    v1::RecommendForHistoryRequest request;
    for (size_t at = items.size(); at-- > 0;) {
      auto* interaction = request.add_interactions();
      interaction->set_item_id(std::to_string(items[at]));
      interaction->set_timestamp_ms(times[at]);
      interaction->set_event_id(std::to_string(10'000 + at));
    }
    request.mutable_options()->set_k(k);
    request.mutable_options()->set_exclude_seen(false);
    v1::RecommendForHistoryResponse response;
    Context context;
    const grpc::Status status = stub.RecommendForHistory(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<std::string> top;
    for (const auto& scored : response.items()) top.push_back(scored.item_id());
    return top;
  }

  static std::vector<std::string> GoldenTop(const GoldenCase& golden, int64_t row) {
    std::vector<std::string> items;
    for (const int32_t item : golden.TopItems(row)) items.push_back(std::to_string(item));
    return items;
  }
};

TEST_F(Published, AnswersTheGoldenTopItems) {
  const auto dirs = GoldenCaseDirs();
  if (dirs.empty()) GTEST_SKIP() << "no golden vectors in " << GoldenRoot();
  std::mt19937_64 random(11);
  for (const std::string& dir : dirs) {
    const GoldenCase golden = LoadGoldenCase(dir);
    const std::string model = ImportCase(golden);
    auto server = ServeModel(model);
    auto stub = Connect(*server);
    for (int64_t row = 0; row < golden.batch(); ++row) {
      ASSERT_NO_FATAL_FAILURE(Record(*stub, golden, row, &random));
      EXPECT_EQ(Top(*stub, row, 20, 0), GoldenTop(golden, row)) << golden.name << " " << row;
      EXPECT_EQ(TopOfHistory(*stub, golden, row, 20), GoldenTop(golden, row)) << golden.name;
      EXPECT_EQ(Top(*stub, row, 20, golden.TimestampsMs(row).back() + 86'400'000),
                GoldenTop(golden, row))
          << "the published model does not look at the query's time";
    }
    // Again after a crash, from the log.
    server->Signal(9);
    server->Wait();
    server = ServeModel(model);
    stub = Connect(*server);
    for (int64_t row = 0; row < golden.batch(); ++row) {
      EXPECT_EQ(Top(*stub, row, 20, 0), GoldenTop(golden, row)) << golden.name << " " << row;
    }
  }
}

}  // namespace
}  // namespace tim4rec
