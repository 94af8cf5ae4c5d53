#include "server/config/config.h"

#include <fstream>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

ServerConfig Valid() {
  ServerConfig config;
  config.model.dir = "m";
  config.store.dir = "d";
  return config;
}

TEST(ServerConfig, EmbeddedDefaultsAreTheInClassDefaults) {
  ServerConfig from_yaml;
  // Every value is changed first, so that a key missing in the file shows.
  std::map<std::string, std::string> other;
  for (const auto& [key, value] : ServerConfig().Entries()) {
    other[key] = value == "true" ? "false"
                 : value.find_first_not_of("0123456789") == std::string::npos && !value.empty()
                     ? "7"
                     : "other";
  }
  ASSERT_TRUE(SetKeys(other, "test", &from_yaml).ok());
  ASSERT_TRUE(ApplyYaml(DefaultConfigYaml(), "default.yaml", &from_yaml).ok());
  EXPECT_EQ(from_yaml.Entries(), ServerConfig().Entries());
}

TEST(ServerConfig, EveryDefaultButTheDirectoriesIsValid) {
  EXPECT_TRUE(Valid().Validate().ok());
  const std::string faults = Message(ServerConfig().Validate());
  EXPECT_THAT(faults, AllOf(HasSubstr("model.dir"), HasSubstr("store.dir")));
}

TEST(ServerConfig, ListsAllFaultsAtOnce) {
  ServerConfig config = Valid();
  config.listen = "nowhere";
  config.metrics_listen = "127.0.0.1:99999";
  config.admin_listen = "0.0.0.0:50052";
  config.pipeline.max_batch = 0;
  config.log.level = "loud";
  config.pipeline.late_policy = "ignore";
  config.model.window_encoding = "fast";
  config.store.max_events_per_user = -1;
  config.store.event_ttl_ms = -1;
  config.store.user_share = 0;
  const std::string faults = Message(config.Validate());
  EXPECT_THAT(faults, AllOf(HasSubstr("listen: \"nowhere\""), HasSubstr("127.0.0.1:99999"),
                            HasSubstr("admin_listen: \"0.0.0.0:50052\" is not of this machine"),
                            HasSubstr("pipeline.max_batch: 0 is outside 1…65536"),
                            HasSubstr("store.max_events_per_user: -1 is outside 0…"),
                            HasSubstr("store.event_ttl_ms: -1 is outside 0…"),
                            HasSubstr("store.user_share: 0 is not above 0 and at most 1"),
                            HasSubstr("late_policy: \"ignore\" is none of refold, append, reject"),
                            HasSubstr("model.window_encoding: \"fast\" is none of exact, bulk"),
                            HasSubstr("log.level: \"loud\"")));
}

TEST(ServerConfig, AShareIsANumber) {
  ServerConfig config = Valid();
  ASSERT_TRUE(SetKeys({{"store.user_share", "0.3333"}}, "", &config).ok());
  EXPECT_EQ(config.store.user_share, 0.3333);
  EXPECT_TRUE(config.Validate().ok());
  for (const char* share : {"1.01", "-0.5", "nan", "inf"}) {
    ASSERT_TRUE(SetKeys({{"store.user_share", share}}, "", &config).ok());
    EXPECT_FALSE(config.Validate().ok()) << share;
  }
  EXPECT_THAT(Message(SetKeys({{"store.user_share", "a third"}}, "", &config)),
              HasSubstr("\"a third\" is not a number"));
}

TEST(ServerConfig, OnlyTheCudaBackendEncodesInBulk) {
  ServerConfig config = Valid();
  config.model.window_encoding = "bulk";
  for (const char* backend : {"auto", "cuda"}) {
    config.model.backend = backend;
    EXPECT_TRUE(config.Validate().ok()) << backend;
  }
  for (const char* backend : {"cpu", "torch"}) {
    config.model.backend = backend;
    EXPECT_THAT(Message(config.Validate()),
                AllOf(HasSubstr("model.window_encoding: bulk is for the matrix units of the cuda"),
                      HasSubstr(std::string("model.backend is ") + backend)));
  }
}

TEST(ServerConfig, UnknownKeysAreAnErrorThatNamesAll) {
  ServerConfig config = Valid();
  const absl::Status status =
      ApplyYaml("pipeline: {max_batch: 8, max_bach: 9}\nlimit: 3\nlimits: {max_item_ids: many}",
                "my.yaml", &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("my.yaml"), HasSubstr("pipeline.max_bach: unknown"),
                    HasSubstr("limit: unknown"), HasSubstr("limits.max_item_ids: \"many\"")));
  EXPECT_EQ(config.limits.max_item_ids, Valid().limits.max_item_ids);
}

TEST(ServerConfig, FaultsOfAllLayersAndValuesComeTogether) {
  const std::string path = testing::TempDir() + "/layers.yaml";
  std::ofstream(path) << "pipeline: {max_bach: 9, max_batch: 0}\nserver: {reflection: maybe}\n"
                         "limits: {max_item_ids: [1, 2]}\n";
  const char* environment[] = {"TIM4REC_PIPELINE_WORKERS=two", nullptr};
  std::vector<std::string> ignored;
  const auto loaded = LoadConfig(
      {path, environment, {{"store.dir", "d"}, {"listen", "nowhere"}, {"nonsense", "1"}}},
      &ignored);
  EXPECT_THAT(
      Message(loaded.status()),
      AllOf(HasSubstr(path + ": server.reflection"), HasSubstr("pipeline.max_bach: unknown"),
            HasSubstr(": \"maybe\" is not true or false"),
            HasSubstr("limits.max_item_ids: expected a value"),
            HasSubstr("environment: pipeline.workers: \"two\" is not a whole number"),
            HasSubstr("flags: nonsense: unknown"), HasSubstr("model.dir: is empty"),
            HasSubstr("pipeline.max_batch: 0 is outside"), HasSubstr("\"nowhere\""),
            Not(HasSubstr("store.dir"))));
  // Of a file that says nothing, only that.
  std::ofstream(path) << "listen: [";
  EXPECT_THAT(Message(LoadConfig({path, environment, {}}, &ignored).status()),
              AllOf(HasSubstr("line 1"), Not(HasSubstr("model.dir"))));
  EXPECT_THAT(Message(LoadConfig({"/absent", environment, {}}, &ignored).status()),
              AllOf(HasSubstr("cannot read /absent"), Not(HasSubstr("model.dir"))));
}

TEST(ServerConfig, TheKeysThatChangeAtRunTimeAreMarked) {
  std::istringstream lines{std::string(DefaultConfigYaml())};
  std::set<std::string> marked;
  std::string section;
  for (std::string line; std::getline(lines, line);) {
    const std::string word = line.substr(0, line.find(':'));
    const size_t begin = word.find_first_not_of(' ');
    if (begin == std::string::npos || word[begin] == '#') continue;
    if (begin == 0) section = word;
    if (line.find("# * ") != std::string::npos) marked.insert(section + "." + word.substr(begin));
  }
  std::set<std::string> changing;
  for (const auto& [key, value] : ServerConfig().Entries()) {
    if (ChangesAtRunTime(key)) changing.insert(key);
  }
  EXPECT_EQ(marked, changing);
  EXPECT_TRUE(ChangesAtRunTime("log.level"));
  EXPECT_FALSE(ChangesAtRunTime("listen"));
}

TEST(ServerConfig, SecretsNeverTravelInClearText) {
  ServerConfig config = Valid();
  config.auth.tokens_file = "tokens";
  EXPECT_TRUE(config.Validate().ok());
  for (const char* open : {"0.0.0.0:1", "[::]:1", "127.example.org:1", "10.0.0.1:1"}) {
    config.listen = open;
    EXPECT_THAT(Message(config.Validate()), HasSubstr("auth.tokens_file: tokens would come to"));
  }
  for (const char* local : {"127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1"}) {
    config.listen = local;
    EXPECT_TRUE(config.Validate().ok()) << local;
  }
  config.listen = config.admin_listen = "0.0.0.0:1";
  config.tls.certificate = "certificate";
  EXPECT_THAT(Message(config.Validate()),
              AllOf(HasSubstr("tls.key: is empty"), HasSubstr("admin_listen: ")));
  config.tls.key = "key";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  config.auth.tokens_file = "";
  EXPECT_THAT(Message(config.Validate()), HasSubstr("admin_listen: \"0.0.0.0:1\" is not of this"));
  config.admin_listen = "127.0.0.1:1";
  config.tls = {.certificate = "", .key = "key", .client_ca = ""};
  EXPECT_THAT(Message(config.Validate()), HasSubstr("tls.certificate: is empty"));
  config.tls = {.certificate = "", .key = "", .client_ca = "ca"};
  EXPECT_THAT(Message(config.Validate()), HasSubstr("tls.client_ca: needs tls.certificate"));
}

TEST(ServerConfig, MalformedYamlNamesTheLine) {
  ServerConfig config;
  EXPECT_THAT(Message(ApplyYaml("listen: [", "my.yaml", &config)), HasSubstr("line"));
  EXPECT_THAT(Message(ApplyYaml("- a\n- b", "my.yaml", &config)), HasSubstr("expected a map"));
  EXPECT_THAT(Message(ApplyYaml("listen: [1, 2]", "my.yaml", &config)),
              HasSubstr("listen: expected a value"));
  EXPECT_TRUE(ApplyYaml("", "my.yaml", &config).ok());
}

TEST(ServerConfig, LaterLayersWin) {
  ServerConfig config;
  ASSERT_TRUE(
      ApplyYaml("pipeline: {max_batch: 1, workers: 1, queue_rows: 1}", "file", &config).ok());
  const char* environment[] = {
      "TIM4REC_PIPELINE_WORKERS=2", "TIM4REC_PIPELINE_QUEUE_ROWS=2",         "PATH=/bin",
      "TIM4REC_FORCE_ISA=scalar",   "TIM4REC_PORT_50051_TCP=tcp://10.0.0.1", nullptr};
  const auto ignored = ApplyEnvironment(environment, &config);
  ASSERT_TRUE(ignored.ok()) << ignored.status();
  EXPECT_THAT(*ignored, ElementsAre("TIM4REC_PORT_50051_TCP"));
  ASSERT_TRUE(SetKeys({{"pipeline.queue_rows", "3"}}, "flags", &config).ok());
  EXPECT_EQ(config.pipeline.max_batch, 1);
  EXPECT_EQ(config.pipeline.workers, 2);
  EXPECT_EQ(config.pipeline.queue_rows, 3);
}

TEST(ServerConfig, EnvironmentValuesThatDoNotParseAreAnError) {
  ServerConfig config;
  const char* environment[] = {"TIM4REC_PIPELINE_WORKERS=two", nullptr};
  EXPECT_THAT(Message(ApplyEnvironment(environment, &config).status()),
              HasSubstr("environment: pipeline.workers: \"two\""));
}

TEST(ServerConfig, PrintedConfigurationReadsBack) {
  ServerConfig config = Valid();
  config.pipeline.max_batch = 17;
  config.model.dir = "a dir: with #odd 'characters'";
  ServerConfig read;
  ASSERT_TRUE(ApplyYaml(config.ToYaml(), "printed", &read).ok());
  EXPECT_EQ(read.Entries(), config.Entries());
}

}  // namespace
}  // namespace tim4rec
