// SIGHUP: what changes while the server runs, what takes a restart, and what is refused.
#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class Reload : public ServerTest {
 protected:
  void Write(const std::string& yaml) { std::ofstream(file_) << yaml; }

  // Sends SIGHUP and waits until stderr has one more line with `text`.
  void Hup(const ServerProcess& server, const std::string& text) {
    const auto count = [&] {
      const std::string errors = server.errors();
      int n = 0;
      for (size_t at = 0; (at = errors.find(text, at)) != std::string::npos; ++at) ++n;
      return n;
    };
    const int before = count();
    server.Signal(SIGHUP);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (count() == before && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(count(), before + 1) << text << " in " << server.errors();
  }

  std::string Config(const ServerProcess& server) {
    v1::GetConfigResponse response;
    Context context;
    EXPECT_TRUE(ConnectAdmin(server)->GetConfig(&context, {}, &response).ok());
    return response.yaml();
  }

  const std::string file_ = dir_ + "/reload.yaml";
};

v1::RecommendRequest Excluding(int items) {
  v1::RecommendRequest request;
  request.set_user_id("user");
  for (int i = 0; i < items; ++i) request.add_exclude_item_ids("item" + std::to_string(i + 1));
  return request;
}

TEST_F(Reload, TakesWhatCanChangeAndNamesWhatCannot) {
  Write("limits: {max_item_ids: 5}\n");
  auto server = Serve(dir_ + "/data", {"--config", file_});
  auto stub = Connect(*server);
  v1::RecommendResponse response;
  {
    Context context;
    EXPECT_TRUE(stub->Recommend(&context, Excluding(5), &response).ok());
  }
  Write(
      "limits: {max_item_ids: 2, max_stream_batches: 3}\nserver: {drain_timeout_ms: 1234}\n"
      "pipeline: {max_batch: 7}\nmodel: {backend: torch}\n");
  Hup(*server, "which take a restart");  // said last
  EXPECT_THAT(server->errors(),
              AllOf(HasSubstr("\"changed\":\"limits.max_item_ids=2 limits.max_stream_batches=3 "
                              "server.drain_timeout_ms=1234\""),
                    HasSubstr("take a restart\",\"keys\":\"model.backend, pipeline.max_batch\"")));
  {
    Context context;
    EXPECT_THAT(ViolationsOf(stub->Recommend(&context, Excluding(5), &response)),
                ElementsAre(AllOf(HasSubstr("exclude_item_ids"), HasSubstr("at most 2"))));
  }
  EXPECT_THAT(Config(*server), AllOf(HasSubstr("max_item_ids: 2\n"), HasSubstr("max_batch: 256\n"),
                                     HasSubstr("drain_timeout_ms: 1234\n")));
  // Warnings alone: the next time it is read again is not told, but that keys take a restart is.
  Write("log: {level: warning}\npipeline: {max_batch: 8}\n");
  Hup(*server, "take a restart");
  EXPECT_THAT(Config(*server),
              AllOf(HasSubstr("level: warning\n"), HasSubstr("max_item_ids: 10000\n")));
  const std::string before = server->errors();
  Write("limits: {max_item_ids: 3}\npipeline: {max_batch: 8}\nlog: {level: warning}\n");
  Hup(*server, "take a restart");
  EXPECT_THAT(server->errors().substr(before.size()), Not(HasSubstr("read again")));
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0) << server->errors();
}

TEST_F(Reload, AFaultyFileChangesNothingAndListsAllFaults) {
  const std::string tokens = dir_ + "/tokens";
  std::ofstream(tokens) << "read,write,admin only-one-0123456789\n";
  chmod(tokens.c_str(), 0600);
  const std::string auth = "auth: {tokens_file: " + tokens + "}\n";
  Write(auth + "limits: {max_item_ids: 5}\n");
  auto server = Serve(dir_ + "/data", {"--config", file_});
  chmod(tokens.c_str(), 0644);
  Write(auth +
        "limits: {max_item_ids: 2, max_interactions: 0}\npipelin: {workers: 2}\n"
        "server: {reflection: perhaps}\n");
  Hup(*server, "configuration not taken; all stays as it was");
  EXPECT_THAT(server->errors(),
              AllOf(HasSubstr("limits.max_interactions: 0 is outside 1"),
                    HasSubstr("pipelin.workers: unknown key"), HasSubstr("is not true or false"),
                    HasSubstr("everybody may read it")));
  Write("limits: {");
  Hup(*server, "configuration not taken; all stays as it was");
  std::filesystem::remove(file_);
  Hup(*server, "cannot read " + file_);
  auto stub = Connect(*server);
  const auto recommend = [&](int excluded) {
    Context context;
    context.AddMetadata("authorization", "Bearer only-one-0123456789");
    v1::RecommendResponse response;
    return stub->Recommend(&context, Excluding(excluded), &response);
  };
  EXPECT_TRUE(recommend(5).ok());
  EXPECT_FALSE(recommend(6).ok());
  chmod(tokens.c_str(), 0600);
  Write(auth + "limits: {max_item_ids: 6}\n");
  Hup(*server, "configuration read again");
  EXPECT_TRUE(recommend(6).ok());
}

TEST_F(Reload, NoCallFailsWhileItHappens) {
  Write("limits: {max_item_ids: 100}\n");
  auto server = Serve(dir_ + "/data", {"--config", file_});
  std::atomic<bool> stop = false;
  std::atomic<int> calls = 0;
  std::thread caller([&] {
    auto stub = Connect(*server);
    for (; !stop; ++calls) {
      Context context;
      v1::RecommendResponse response;
      const grpc::Status status = stub->Recommend(&context, Excluding(20), &response);
      EXPECT_TRUE(status.ok()) << status.error_message();
    }
  });
  int most = 100;
  for (int i = 0; i < 50 || (calls <= 50 && i < 5000); ++i) {
    Write("limits: {max_item_ids: " + std::to_string(++most) + "}\n");
    Hup(*server, "configuration read again");
  }
  stop = true;
  caller.join();
  EXPECT_GT(calls, 50);
  EXPECT_THAT(Config(*server), HasSubstr("max_item_ids: " + std::to_string(most) + "\n"));
}

}  // namespace
}  // namespace tim4rec
