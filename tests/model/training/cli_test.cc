// Runs the real program `tim4rec`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "model/weights/safetensors.h"
#include "tests/model/training/synthetic.h"
#include "tests/model/training/temporary.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

class CommandLine : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TemporaryDirectory;
    data_ = directory_->Write("data.inter", SyntheticInteractions(40, 20, 15, 3));
    model_ = directory_->path("model");
    const Outcome trained = Run("train " + data_ + " --out " + model_ + Small() + " --epochs 3");
    ASSERT_EQ(trained.code, 0) << trained.err;
    training_ = trained.err;
    figures_ = trained.out;
  }
  static void TearDownTestSuite() { delete directory_; }

  static std::string Small() {
    return " --hidden-size 16 --head-dim 8 --d-state 8 --batch-size 128 --lr 0.01"
           " --warmup-steps 5";
  }
  static Outcome Run(const std::string& arguments) {
    const std::string out = directory_->path("out"), err = directory_->path("err");
    const std::string command =
        BinaryDir() + "/bin/tim4rec " + arguments + " >" + out + " 2>" + err + " </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, directory_->Read("out"),
            directory_->Read("err")};
  }
  static std::vector<std::vector<std::string>> Rows(const std::string& text) {
    std::vector<std::vector<std::string>> rows;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream fields(line);
      rows.emplace_back();
      for (std::string field; std::getline(fields, field, '\t');) rows.back().push_back(field);
    }
    return rows;
  }

  static inline TemporaryDirectory* directory_;
  static inline std::string data_, model_, training_, figures_;
};

TEST_F(CommandLine, TrainReportsAndWritesAPackage) {
  EXPECT_THAT(training_, HasSubstr("600 interactions of 40 users with 20 items, timestamps in "
                                   "seconds"));
  EXPECT_THAT(training_, HasSubstr("epoch  3/3  loss "));
  EXPECT_THAT(training_, HasSubstr("test   NDCG@10 "));
  EXPECT_THAT(training_, Not(HasSubstr("\r")));
  // One line for programs.
  EXPECT_EQ(std::count(figures_.begin(), figures_.end(), '\n'), 1) << figures_;
  const auto figures = nlohmann::json::parse(figures_);
  const auto metrics = nlohmann::json::parse(directory_->Read("model/metrics.json"));
  EXPECT_EQ(metrics["data"]["name"], "data.inter");
  EXPECT_EQ(metrics["data"]["min_count"], 5);
  EXPECT_EQ(metrics["training"]["seed"], 1);
  EXPECT_GT(metrics["test"]["NDCG@10"], 0.2);
  EXPECT_EQ(metrics["query_features"], "gap,trend");
  const auto config = nlohmann::json::parse(directory_->Read("model/config.json"));
  EXPECT_EQ(config["time_query"], true);
  EXPECT_EQ(config["time_write"], false);
  EXPECT_EQ(config["time_decay"], false);
  EXPECT_TRUE(std::filesystem::exists(model_ + "/trend.safetensors"));
  EXPECT_EQ(metrics["training"]["init"], "log-timescales");
  EXPECT_EQ(figures["data"], "data.inter");
  EXPECT_EQ(figures["best_epoch"], metrics["training"]["best_epoch"]);
  EXPECT_EQ(figures["seconds"], metrics["training"]["seconds"]);
  for (const std::string split : {"valid", "test"}) {
    for (const std::string metric : {"NDCG@10", "HR@10"}) {
      EXPECT_EQ(figures[split + "_" + metric], metrics[split][metric]);
    }
  }
  const std::string report = directory_->Read("model/report.html");
  EXPECT_THAT(report, HasSubstr("TiM4Rec, streaming, trained on data.inter"));
  EXPECT_THAT(report, Not(HasSubstr("<section id=\"decay\">")));
  EXPECT_THAT(report, HasSubstr("epoch 3"));
}

TEST_F(CommandLine, EvaluateAgreesWithTrainAndItsDump) {
  const std::string dump = directory_->path("top.tsv");
  const Outcome outcome =
      Run("evaluate --model " + model_ + " " + data_ + " --json --dump-topk " + dump);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  const auto metrics = nlohmann::json::parse(directory_->Read("model/metrics.json"));
  EXPECT_EQ(json["NDCG@10"], metrics["test"]["NDCG@10"]);
  EXPECT_EQ(json["users"], 40);

  std::map<std::string, std::string> last;  // the file is in time order
  const auto rows = Rows(directory_->Read("data.inter"));
  for (size_t i = 1; i < rows.size(); ++i) last[rows[i][0]] = rows[i][1];
  int hits = 0;
  const auto top = Rows(directory_->Read("top.tsv"));
  ASSERT_EQ(top.size(), 40u);
  for (const auto& row : top) {
    ASSERT_EQ(row.size(), 21u);
    hits += std::count(row.begin() + 1, row.begin() + 11, last[row[0]]);
  }
  EXPECT_DOUBLE_EQ(json["HR@10"], hits / 40.0);

  for (const char* kind : {"by_history", "by_gap"}) {
    int64_t users = 0;
    double hits10 = 0;
    for (const auto& bucket : json[kind]) {
      users += bucket["users"].get<int64_t>();
      hits10 += bucket["users"].get<double>() * bucket["HR@10"].get<double>();
    }
    EXPECT_EQ(users, 40) << kind;
    EXPECT_NEAR(hits10, hits, 1e-9) << kind;
    EXPECT_EQ(json[kind], metrics["test"][kind]);
  }
  EXPECT_EQ(json["by_history"][2]["bucket"], "10-19 events");
  EXPECT_EQ(json["by_history"][2]["users"], 40);

  const Outcome valid =
      Run("evaluate --model " + model_ + " " + data_ + " --split valid --no-query-time");
  ASSERT_EQ(valid.code, 0) << valid.err;
  EXPECT_THAT(valid.out, HasSubstr("valid  NDCG@10 "));
  EXPECT_THAT(valid.out, HasSubstr("(asked at the last event's time)"));
  EXPECT_THAT(valid.out, HasSubstr("history            users   NDCG@10"));
  EXPECT_THAT(valid.out, HasSubstr("10-19 events          40  "));
  EXPECT_THAT(valid.out, HasSubstr("under 1 minute  "));
  EXPECT_THAT(valid.out, Not(HasSubstr("200+ events")));
}

TEST_F(CommandLine, FiguresOfRealDataAreThoseOfTheSharedEvaluator) {
  const std::string shared = SourceDir() + "/../shared";
  const std::string data = shared + "/data/ml-100k.inter";
  if (!std::filesystem::exists(data)) GTEST_SKIP() << "no " << data;
  const std::string model = directory_->path("real"), dump = directory_->path("real.tsv");
  const Outcome trained = Run("train " + data + " --out " + model +
                              " --hidden-size 16 --head-dim 8 --d-state 8 --epochs 1");
  ASSERT_EQ(trained.code, 0) << trained.err;

  for (const std::string split : {"valid", "test"}) {
    const Outcome ours = Run("evaluate --model " + model + " " + data + " --split " + split +
                             " --json --dump-topk " + dump);
    ASSERT_EQ(ours.code, 0) << ours.err;
    const std::string theirs = directory_->path("theirs.json");
    const std::string command = "python3 " + shared + "/tools/evaluate_topk.py " + data + " " +
                                dump + " --split " + split + " --json >" + theirs;
    ASSERT_EQ(std::system(command.c_str()), 0);
    const auto figures = nlohmann::json::parse(ours.out);
    const auto expected = nlohmann::json::parse(directory_->Read("theirs.json"));
    EXPECT_EQ(figures["users"], 943);
    EXPECT_EQ(expected["answered"], 943);
    for (const std::string metric : {"HR@10", "NDCG@10", "MRR@10", "HR@20", "NDCG@20", "MRR@20"}) {
      EXPECT_GT(expected[metric], 0);
      EXPECT_NEAR(figures[metric], expected[metric], 5.1e-6) << split << " " << metric;
    }
  }
}

TEST_F(CommandLine, RecommendsForEveryUserInOrder) {
  const std::string history = directory_->Write(
      "history.csv",
      "userId,movieId,timestamp\nz,item3,1600000000\na,item5,1600000100\nz,item4,1600000005\n"
      "new,unheard,1600000000\n");
  const std::string base = "recommend --model " + model_ + " --history " + history;
  const std::string queries = directory_->path("queries.safetensors");
  const Outcome outcome = Run(base + " --k 7 --dump-queries " + queries);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("left out 1 interactions with items that the model does not"));
  EXPECT_THAT(outcome.err, HasSubstr("1 users have no known interaction"));
  const auto rows = Rows(outcome.out);
  ASSERT_EQ(rows.size(), 21u);
  for (int i = 0; i < 21; ++i) {
    EXPECT_EQ(rows[i][0], i < 7 ? "z" : (i < 14 ? "a" : "new"));
    if (i % 7 != 0) {
      EXPECT_GE(std::stod(rows[i - 1][2]), std::stod(rows[i][2]));
    }
    if (i < 7) {
      EXPECT_TRUE(rows[i][1] != "item3" && rows[i][1] != "item4");
    }
  }
  const auto file = MappedFile::Open(queries);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto vectors = ParseSafetensors((*file)->bytes());
  ASSERT_TRUE(vectors.ok()) << vectors.status();
  const SafeTensor& query = vectors->at("query");
  EXPECT_EQ(query.shape, (std::vector<int64_t>{3, 16}));
  EXPECT_NE(query.f32()[0], 0);
  EXPECT_EQ(query.f32()[2 * 16], 0) << "of a user without known items";

  const Outcome all = Run(base + " --k 1000 --include-seen");
  EXPECT_EQ(Rows(all.out).size(), 60u);
  // At 1600000000000 only the first event of z has happened.
  const Outcome past = Run(base + " --k 20 --as-of-ms 1600000000000");
  ASSERT_EQ(past.code, 0) << past.err;
  std::set<std::string> of_z;
  for (const auto& row : Rows(past.out)) {
    if (row[0] == "z") of_z.insert(row[1]);
  }
  EXPECT_EQ(of_z.size(), 19u);
  EXPECT_TRUE(of_z.contains("item4"));
}

TEST_F(CommandLine, TrainsEveryVariantThatIsServed) {
  for (const std::string variant :
       {"no-time", "published --max-length 10", "published --no-time --max-length 10"}) {
    const std::string out = directory_->path("variant");
    const Outcome trained =
        Run("train " + data_ + " --out " + out + Small() + " --epochs 2 --variant " + variant);
    ASSERT_EQ(trained.code, 0) << variant << ": " << trained.err;
    const auto config = nlohmann::json::parse(directory_->Read("variant/config.json"));
    const bool published = variant.starts_with("published");
    EXPECT_EQ(config["variant"], published ? "published" : "streaming");
    EXPECT_EQ(config["is_time"], variant == "published --max-length 10");
    EXPECT_EQ(config["max_item_list_length"], published ? 10 : 50);
    EXPECT_EQ(config["time_decay"], false);
    const Outcome evaluated = Run("evaluate --json --model " + out + " " + data_);
    ASSERT_EQ(evaluated.code, 0) << evaluated.err;
    const auto metrics = nlohmann::json::parse(directory_->Read("variant/metrics.json"));
    EXPECT_EQ(nlohmann::json::parse(evaluated.out)["NDCG@10"], metrics["test"]["NDCG@10"]);
    EXPECT_EQ(metrics["curve"].size(), 2u);
  }
}

TEST_F(CommandLine, SasrecGivesFiguresAndListsButNoPackage) {
  const std::string out = directory_->path("sasrec");
  const Outcome trained =
      Run("train " + data_ + " --out " + out + Small() + " --epochs 3 --variant sasrec");
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_THAT(trained.err, HasSubstr("for comparison, no engine serves it"));
  EXPECT_FALSE(std::filesystem::exists(out + "/config.json"));
  EXPECT_FALSE(std::filesystem::exists(out + "/weights.safetensors"));
  const auto metrics = nlohmann::json::parse(directory_->Read("sasrec/metrics.json"));
  EXPECT_EQ(metrics["variant"], "sasrec");
  std::map<std::string, std::string> last;
  const auto rows = Rows(directory_->Read("data.inter"));
  for (size_t i = 1; i < rows.size(); ++i) last[rows[i][0]] = rows[i][1];
  int hits = 0;
  const auto top = Rows(directory_->Read("sasrec/topk.tsv"));
  ASSERT_EQ(top.size(), 40u);
  for (const auto& row : top) {
    ASSERT_EQ(row.size(), 21u);
    hits += std::count(row.begin() + 1, row.begin() + 11, last[row[0]]);
  }
  EXPECT_DOUBLE_EQ(metrics["test"]["HR@10"], hits / 40.0);

  const Outcome over = Run("train " + data_ + " --out " + model_ + Small() + " --variant sasrec");
  EXPECT_EQ(over.code, 1);
  EXPECT_THAT(over.err, HasSubstr("no engine serves them"));
}

TEST_F(CommandLine, QueryFeaturesThatNobodyServesGiveFiguresButNoPackage) {
  const std::string base = "train " + data_ + Small() + " --epochs 2 --out ";
  const std::string out = directory_->path("features");
  const Outcome trained = Run(base + out + " --init hippo --query-features gap,calendar,trend,age");
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_THAT(trained.err, HasSubstr("for comparison, no engine serves it"));
  EXPECT_FALSE(std::filesystem::exists(out + "/config.json"));
  EXPECT_EQ(Rows(directory_->Read("features/topk.tsv")).size(), 40u);
  const auto metrics = nlohmann::json::parse(directory_->Read("features/metrics.json"));
  EXPECT_EQ(metrics["query_features"], "gap,calendar,trend,age");
  EXPECT_EQ(metrics["training"]["init"], "hippo");
  EXPECT_EQ(nlohmann::json::parse(trained.out)["test_HR@10"], metrics["test"]["HR@10"]);
  // Another set of features, and another start, are other runs.
  const Outcome other = Run(base + out + " --init mamba2 --query-features trend,age --resume");
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.err,
              HasSubstr("query features (checkpoint: calendar trend age, now: trend age)"));
  EXPECT_THAT(other.err, HasSubstr("initialisation (checkpoint: hippo, now: mamba2)"));
  EXPECT_THAT(Run(base + model_ + " --query-features age").err, HasSubstr("serves them"));

  // Without any it is served, and its gate of the gap is not there.
  const Outcome none =
      Run(base + directory_->path("none-known") + " --time-decay --query-features none");
  ASSERT_EQ(none.code, 0) << none.err;
  const auto config = nlohmann::json::parse(directory_->Read("none-known/config.json"));
  EXPECT_EQ(config["time_query"], false);
  EXPECT_EQ(config["time_decay"], true);
  EXPECT_FALSE(std::filesystem::exists(directory_->path("none-known") + "/trend.safetensors"));
  EXPECT_THAT(directory_->Read("none-known/report.html"), HasSubstr("<section id=\"decay\">"));
}

TEST_F(CommandLine, ResumeGoesOn) {
  const std::string out = directory_->path("resumed");
  ASSERT_EQ(Run("train " + data_ + " --out " + out + Small() + " --epochs 3").code, 0);
  const Outcome resumed =
      Run("train " + data_ + " --out " + out + "/" + Small() + " --epochs 4 --resume");
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, Not(HasSubstr("epoch  3/4")));
  EXPECT_THAT(resumed.err, HasSubstr("epoch  4/4"));
  EXPECT_TRUE(std::filesystem::exists(out + "/config.json"));
  const Outcome absent =
      Run("train " + data_ + " --out " + directory_->path("none") + Small() + " --resume");
  EXPECT_EQ(absent.code, 1);
  EXPECT_THAT(absent.err, HasSubstr("nothing to resume"));
}

// The epochs that a log reports as done, in order.
std::vector<int> EpochsDone(const std::string& log) {
  std::vector<int> epochs;
  std::istringstream lines(log);
  int epoch;
  for (std::string line; std::getline(lines, line);) {
    if (std::sscanf(line.c_str(), "epoch %d/", &epoch) == 1) epochs.push_back(epoch);
  }
  return epochs;
}

TEST_F(CommandLine, KilledAtAnyMomentItLosesAtMostOneEpochAndNoBit) {
  const std::string train = "train " + data_ + Small() + " --epochs 30 --patience 30 --out ";
  const std::string whole = directory_->path("whole"), out = directory_->path("killed");
  ASSERT_EQ(Run(train + whole).code, 0);

  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  int done = 0;
  for (int kills = 0; kills < 5; ++kills) {
    const std::string log = directory_->Write("log", "");
    const std::string command = "exec " + BinaryDir() + "/bin/tim4rec " + train + out +
                                (kills > 0 ? " --resume" : "") + " 2>" + log + " </dev/null";
    const pid_t child = fork();
    if (child == 0) {
      execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    const size_t epochs = 1 + random() % 3;
    siginfo_t ended{};  // stays zero while it runs; WNOWAIT keeps the process id ours
    while (EpochsDone(directory_->Read("log")).size() < epochs && ended.si_pid == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ASSERT_EQ(waitid(P_PID, child, &ended, WEXITED | WNOHANG | WNOWAIT), 0);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const std::vector<int> seen = EpochsDone(directory_->Read("log"));
    ASSERT_FALSE(seen.empty()) << directory_->Read("log");
    EXPECT_GT(seen.front(), done) << "an epoch that was reported as done was lost";
    done = seen.back();
  }
  EXPECT_LT(done, 30) << "training ended before the last kill";
  ASSERT_EQ(Run(train + out + " --resume").code, 0);
  EXPECT_EQ(directory_->Read("killed/weights.safetensors"),
            directory_->Read("whole/weights.safetensors"));
}

TEST_F(CommandLine, FailuresExitWithOneAndSayWhy) {
  const auto fails = [&](const std::string& arguments, const std::string& why) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.code, 1) << arguments;
    EXPECT_THAT(outcome.err, HasSubstr(why)) << arguments;
  };
  fails("train /absent.inter --out " + directory_->path("x"), "/absent.inter: no such file");
  fails("evaluate --model /absent " + data_, "/absent");
  fails("recommend --model " + directory_->path(".") + " --history " + data_, "config.json");
  fails("train " + data_ + " --out " + data_, "is a file; expected a directory");
  fails("train " + data_ + " --out " + directory_->path("."), "holds other files");
  fails("train " + data_ + " --out /proc/model", "/proc/model.checkpoint.partial: ");
  fails("train " + data_ + " --out " + directory_->path("x") + " --head-dim 48", "head_dim");
  fails("train " + data_ + " --out " + directory_->path("x") + " --no-time",
        "the streaming model without time is --variant no-time");
  fails("train " + data_ + " --out " + directory_->path("x") + " --variant sasrec --heads 3",
        "attention heads is 3");
  fails("train " + data_ + " --out " + directory_->path("x") + " --variant published --time-decay",
        "are of --variant streaming, not published");
  fails("train " + data_ + " --out " + directory_->path("x") + " --query-features gap,mood",
        "'mood' is not one of gap, calendar, trend, age");
  fails("train " + data_ + " --out " + directory_->path("x") + " --query-features calendar",
        "calendar needs gap");
  fails("train " + data_ + " --out " + directory_->path("x") + " --variant sasrec --init hippo",
        "--init is of --variant streaming and no-time, not sasrec");
  fails("train " + data_ + " --out " + directory_->path("x") + " --min-count 1000",
        "none of the 600 interactions is left");
  fails("evaluate --model " + model_ + " " + data_ + " --dump-topk /proc/top",
        "cannot write --dump-topk /proc/top");
  const std::string bad = directory_->Write("bad.inter", "user\titem\ttime\nu\ti\tnever\n");
  fails("train " + bad + " --out " + directory_->path("x"),
        "bad.inter:2: time is 'never'; expected seconds");
  fails("train " + bad + " --out " + directory_->path("x"), "(--skip-bad-rows leaves malformed");
}

TEST_F(CommandLine, UsageErrorsExitWithTwo) {
  for (const std::string arguments :
       {"", "fly", "train", "train x --out y --epochs 0", "train x --out y --wings",
        "recommend --model m --history h --k 0", "recommend --model m --history h --k 1001",
        "evaluate --model m d --split all", "train x --out y --variant mamba"}) {
    EXPECT_EQ(Run(arguments).code, 2) << arguments;
  }
}

TEST_F(CommandLine, HelpNamesOptionsWithDefaults) {
  const Outcome help = Run("train --help");
  EXPECT_EQ(help.code, 0);
  for (const char* part : {"--epochs INT=20", "--query-features", "--resume", "--seed"}) {
    EXPECT_THAT(help.out, HasSubstr(part));
  }
  EXPECT_EQ(Run("--help").code, 0);
}

}  // namespace
}  // namespace tim4rec
