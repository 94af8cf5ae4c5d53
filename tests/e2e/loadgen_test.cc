// tim4rec-loadgen against a running server: what it counts, not how fast it was.
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"
#include "tests/paths.h"
#include "tests/server/certificates.h"

namespace tim4rec {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kSmall[] = " --users 60 --batch-users 20 --in-flight 8 --history 3 --duration 0.2 ";

class Loadgen : public ServerTest {
 protected:
  // Runs the program; returns its exit code.
  int Run(const std::string& address, const std::string& arguments) {
    const std::string command = BinaryDir() + "/bin/tim4rec-loadgen --target " + address +
                                " --json " + dir_ + "/result.json " + arguments + " >" + dir_ +
                                "/out 2>" + dir_ + "/err";
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string Text(const std::string& name) const {
    std::ifstream file(dir_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  json Result() const { return json::parse(Text("result.json")); }
  static std::string Items() { return std::string(" --model ") + kTinyModel; }

  // Over the 60 users of a seed.
  static uint64_t EventsOf(v1::Recommender::Stub& stub, int seed) {
    uint64_t events = 0;
    for (int user = 0; user < 60; ++user) {
      v1::GetUserRequest request;
      request.set_user_id("load" + std::to_string(seed) + "." + std::to_string(user));
      v1::GetUserResponse response;
      Context context;
      EXPECT_TRUE(stub.GetUser(&context, request, &response).ok());
      events += response.event_count();
    }
    return events;
  }
};

TEST_F(Loadgen, CountsWhatTheServerHolds) {
  auto server = Serve(dir_ + "/data");
  auto stub = Connect(*server);
  int seed = 0;
  for (const char* scenario : {"record --events 2", "mixed --ack durable", "stream --events 3",
                               "record --rate 200", "stream --rate 100"}) {
    ++seed;
    ASSERT_EQ(Run(server->address(),
                  "--seed " + std::to_string(seed) + kSmall + "--scenario " + scenario + Items()),
              0)
        << Text("out") << Text("err");
    const json run = Result()["runs"][0];
    EXPECT_EQ(run["errors"], json::object());
    EXPECT_GT(run["calls"], 0);
    int64_t recorded = 0;
    for (const auto& [outcome, count] : run["outcomes"].items()) {
      EXPECT_THAT(outcome, testing::AnyOf("APPLIED", "LATE_REFOLDED"));
      recorded += count.get<int64_t>();
    }
    EXPECT_EQ(EventsOf(*stub, seed), 60 * 3 + recorded) << scenario;
  }
}

TEST_F(Loadgen, WritesResultsThatFitTogether) {
  auto server = Serve(dir_ + "/data");
  ASSERT_EQ(Run(server->address(),
                kSmall + std::string("--scenario recommend --k 5 --rate 300") + Items()),
            0)
      << Text("err");
  const json result = Result();
  EXPECT_EQ(result["scenario"], "recommend");
  EXPECT_EQ(result["target"], server->address());
  EXPECT_EQ(result["options"]["k"], 5);
  EXPECT_EQ(result["options"]["rate"], 300);
  const json run = result["runs"].at(0);
  EXPECT_EQ(run["of"], "target");
  const json latency = run["latency_us"]["Recommend"];
  EXPECT_EQ(latency["count"], run["calls"]);
  EXPECT_EQ(run["tiers"]["TIER_HOT"], run["calls"]);
  EXPECT_NEAR(run["calls_per_second"].get<double>() * run["seconds"].get<double>(),
              run["calls"].get<double>(), 0.01);
  double last = 0;
  for (const char* key : {"min", "p50", "p90", "p99", "p99.9", "max"}) {
    EXPECT_GE(latency[key].get<double>(), last) << key;
    last = latency[key];
  }
  EXPECT_GT(last, 0);
}

TEST_F(Loadgen, AlternatesWithTheEmptyHandler) {
  auto server = Serve(dir_ + "/data");
  for (const auto& [arguments, goal] : {std::pair("recommend", "R1"),
                                        {"record", "R2 ACK_APPLIED"},
                                        {"record --ack durable", "R2 ACK_DURABLE"},
                                        {"stream", "R3"},
                                        {"mixed", "ratio"}}) {
    ASSERT_EQ(Run(server->address(),
                  "--duration 0.1 --users 600 --history 2 --empty-handler --rounds 2 --scenario " +
                      std::string(arguments) + Items()),
              0)
        << Text("out") << Text("err");
    const json result = Result();
    std::vector<std::string> order;
    for (const json& run : result["runs"]) {
      order.push_back(run["of"]);
      EXPECT_GT(run["calls"], 0);
    }
    EXPECT_THAT(order, ElementsAre("target", "empty_handler", "empty_handler", "target"));
    const json ratio = result[goal];
    EXPECT_GT(ratio["min"], 0) << goal;
    EXPECT_LE(ratio["min"], ratio["median"]);
    EXPECT_LE(ratio["median"], ratio["max"]);
    EXPECT_GT(ratio["ceiling"], 0);
    EXPECT_GT(ratio["ours"], 0);
    EXPECT_THAT(Text("out"), HasSubstr(std::string(goal) + ": "));
  }
}

TEST_F(Loadgen, ErrorsAreCountedAndExitWithOne) {
  auto server = Serve(dir_ + "/data");
  std::ofstream(dir_ + "/ids") << "item1\nno item of the model\n";
  EXPECT_EQ(Run(server->address(),
                "--duration 0.2 --scenario record --history 0 --items " + dir_ + "/ids"),
            1);
  const json unknown = Result()["runs"][0];
  EXPECT_GT(unknown["errors"]["UNKNOWN_ITEM"], 0);
  EXPECT_EQ(unknown["errors"]["UNKNOWN_ITEM"], unknown["outcomes"]["UNKNOWN_ITEM"]);
  EXPECT_GT(unknown["outcomes"]["APPLIED"], 0);

  EXPECT_EQ(Run(server->address(),
                "--duration 0.2 --scenario record --history 0 --events 10001" + Items()),
            1);
  const json refused = Result()["runs"][0];
  EXPECT_EQ(refused["calls"], 0);
  EXPECT_GT(refused["errors"]["INVALID_ARGUMENT"], 0);
  EXPECT_THAT(Text("out"), HasSubstr("limits.max_interactions"));

  EXPECT_EQ(
      Run(server->address(), "--duration 0.2 --scenario stream --history 0 --events 100" + Items()),
      1);
  EXPECT_EQ(Result()["runs"][0]["errors"], json({{"INVALID_ARGUMENT", 2}})) << "one per stream";
}

TEST_F(Loadgen, FaultyArgumentsExitWithTwo) {
  for (const auto& [arguments, message] : {std::pair("--scenario recommend", "--model"),
                                           {"--scenario nonsense --items x", "nonsense"},
                                           {"--scenario recommend --items absent", "absent"},
                                           {"--scenario recommend --model /nowhere", "/nowhere"}}) {
    EXPECT_EQ(Run("127.0.0.1:1", arguments), 2) << arguments;
    EXPECT_THAT(Text("err"), HasSubstr(message));
  }
  EXPECT_EQ(Run("127.0.0.1:1", "--scenario recommend --k 0" + Items()), 2);
  EXPECT_THAT(Text("err"), HasSubstr("k: 0 is not 1 to 1000"));
}

TEST_F(Loadgen, ShowsCertificateAndToken) {
  MakeCertificate(dir_ + "/ca");
  for (const char* name : {"/server", "/client"}) MakeCertificate(dir_ + name, dir_ + "/ca");
  WriteSecret(dir_ + "/tokens", "read,write load-token-0123456789\n");
  WriteSecret(dir_ + "/token", "load-token-0123456789\n");
  WriteSecret(dir_ + "/wrong", "wrong-token-0123456789");
  std::ofstream(dir_ + "/tls.yaml") << "tls: {certificate: " << dir_ << "/server.crt, key: " << dir_
                                    << "/server.key, client_ca: " << dir_
                                    << "/ca.crt}\nauth: {tokens_file: " << dir_ << "/tokens}\n";
  auto server = Serve(dir_ + "/data", {"--config", dir_ + "/tls.yaml"});
  const std::string load = kSmall + Items() + " --scenario ";
  const std::string client = " --tls-certificate " + dir_ + "/client.crt --tls-key " + dir_ +
                             "/client.key --tls-ca " + dir_;
  for (const char* scenario : {"mixed --seed 1", "stream --seed 2", "batch --seed 3"}) {
    ASSERT_EQ(Run(server->address(),
                  load + scenario + client + "/ca.crt --token-file " + dir_ + "/token"),
              0)
        << Text("out") << Text("err");
    EXPECT_GT(Result()["runs"][0]["calls"], 0);
  }
  EXPECT_EQ(Run(server->address(),
                load + "recommend" + client + "/ca.crt --token-file " + dir_ + "/wrong"),
            1);
  EXPECT_THAT(Text("out"), HasSubstr("UNAUTHENTICATED"));
  EXPECT_EQ(Run(server->address(), load + "recommend --token-file " + dir_ + "/absent"), 2);
  EXPECT_THAT(Text("err"), HasSubstr("--token-file: cannot read " + dir_ + "/absent"));
}

}  // namespace
}  // namespace tim4rec
