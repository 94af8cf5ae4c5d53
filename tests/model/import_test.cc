// `tim4rec import` as a program, and the configuration it reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/cli/import_config.h"
#include "model/weights/package.h"
#include "model/weights/safetensors.h"
#include "tests/model/golden_case.h"
#include "tests/model/training/temporary.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kTestData = SourceDir() + "/tests/model/testdata/";

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class Import : public testing::Test {
 protected:
  struct Outcome {
    int code;
    std::string out, err;
  };

  Outcome Run(const std::string& arguments) {
    const std::string command = BinaryDir() + "/bin/tim4rec " + arguments + " >" +
                                directory_.path("stdout") + " 2>" + directory_.path("stderr") +
                                " </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, directory_.Read("stdout"),
            directory_.Read("stderr")};
  }

  // The fixture's checkpoint with a configuration that has `from` replaced by `to`.
  Outcome RunWithConfig(const std::string& from, const std::string& to) {
    std::string yaml = ReadTestData("config.yaml");
    if (!from.empty()) yaml.replace(yaml.find(from), from.size(), to);
    return Run("import --checkpoint " + kTestData + "checkpoint.pth --config " +
               directory_.Write("changed.yaml", yaml) + " --out " + directory_.path("out"));
  }

  static std::string ReadTestData(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(kTestData + name).rdbuf();
    return text.str();
  }

  std::vector<std::string> IdsOfPackage(const std::string& dir) {
    const auto package = ModelPackage::Open(dir);
    EXPECT_TRUE(package.ok()) << package.status();
    std::vector<std::string> ids;
    for (int32_t i = 1; package.ok() && i < (*package)->catalog().size(); ++i) {
      ids.push_back((*package)->catalog().item(i).id);
    }
    return ids;
  }

  const TemporaryDirectory directory_;
};

TEST_F(Import, MakesAPackageOfACheckpoint) {
  const std::string base = "import --checkpoint " + kTestData + "checkpoint.pth --config " +
                           kTestData + "config.yaml --out ";
  const std::string out = directory_.path("plain");
  const Outcome plain = Run(base + out);
  ASSERT_EQ(plain.code, 0) << plain.err;
  EXPECT_THAT(plain.err, AllOf(HasSubstr("11 items, 2 layers of width 8, time over windows of 5"),
                               HasSubstr("backend reproduces its 6 probe histories")));
  EXPECT_EQ(IdsOfPackage(out).front(), "1");
  EXPECT_EQ(IdsOfPackage(out).back(), "11");
  // Over a trained package: its report would be of another model.
  const std::string stale = directory_.Write("plain/report.html", "of another model");
  ASSERT_EQ(Run(base + out).code, 0);
  EXPECT_FALSE(std::filesystem::exists(stale));
  EXPECT_TRUE(std::filesystem::exists(out + "/config.json"));

  const Outcome dataset =
      Run(base + directory_.path("dataset") + " --dataset " + kTestData + "dataset.pth");
  ASSERT_EQ(dataset.code, 0) << dataset.err;
  EXPECT_THAT(IdsOfPackage(directory_.path("dataset")),
              ElementsAre("B001", "B002", "B003", "B004", "B005", "B006", "B007", "B008", "B009",
                          "größe 7", "物品"));

  const std::string list =
      directory_.Write("items.txt", "[PAD]\na\nb\nc\nd\ne\nf\ng\nh\ni\nj\nthe last\r\n");
  ASSERT_EQ(Run(base + directory_.path("list") + " --items " + list).code, 0);
  EXPECT_EQ(IdsOfPackage(directory_.path("list")).back(), "the last");

  std::string interactions = "user_id,item_id,timestamp\n";
  for (int i = 0; i < 22; ++i) {
    interactions +=
        "u,film" + std::to_string(i % 11) + "," + std::to_string(1'000'000'000 + i) + "\n";
  }
  const std::string csv = directory_.Write("ratings.csv", interactions);
  const Outcome outcome = Run(base + directory_.path("csv") + " --interactions " + csv);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(IdsOfPackage(directory_.path("csv")).front(), "film0");
  EXPECT_EQ((*ModelPackage::Open(directory_.path("csv")))->catalog().item(1).train_events, 2);
}

TEST_F(Import, NamesWhatDoesNotFit) {
  const Outcome shapes = RunWithConfig("hidden_size: 8", "hidden_size: 16");
  EXPECT_EQ(shapes.code, 1);
  EXPECT_THAT(shapes.err, AllOf(HasSubstr("item_embedding.weight has shape [12,8], the "
                                          "configuration says [12,16]"),
                                HasSubstr("ssd_layers.1.ffn.fc2.weight has shape [8,32]")));
  const Outcome layers = RunWithConfig("num_layers: 2", "num_layers: 3");
  EXPECT_THAT(layers.err, AllOf(HasSubstr("ssd_layers.2.ssd.A_log [2] is missing"),
                                HasSubstr("ssd_layers.2.ffn.fc1.weight [32,8] is missing")));
  EXPECT_THAT(RunWithConfig("is_time: True", "is_time: False").err,
              HasSubstr("layer_norm_time.weight [5] is not of this model"));
  EXPECT_THAT(RunWithConfig("norm_eps: 1e-5\n", "").err,
              HasSubstr("changed.yaml: norm_eps is missing"));
  EXPECT_FALSE(std::ifstream(directory_.path("out") + "/config.json").good());

  const std::string base = "import --checkpoint " + kTestData + "checkpoint.pth --config " +
                           kTestData + "config.yaml --out " + directory_.path("out");
  EXPECT_THAT(Run(base + " --items " + directory_.Write("few.txt", "a\nb\n")).err,
              HasSubstr("gives 2 item ids, the model has 11"));
  EXPECT_THAT(
      Run(base + " --items " + directory_.Write("twice.txt", "a\nb\na\nd\ne\nf\ng\nh\ni\nj\nk\n"))
          .err,
      HasSubstr("\"a\""));
  EXPECT_THAT(Run(base + " --items " + kTestData + "absent").err, HasSubstr("absent"));
  EXPECT_EQ(Run(base + " --items a --dataset b").code, 2);
  EXPECT_EQ(Run("import --config a --out b").code, 2);
  EXPECT_THAT(Run("import --safetensors " + kTestData + "checkpoint.pth --config " + kTestData +
                  "config.yaml --out " + directory_.path("out"))
                  .err,
              HasSubstr("checkpoint.pth: header length"));
}

TEST_F(Import, RefusesAHostileCheckpointWithoutRunningIt) {
  // What pickle.dumps gives for an object whose __reduce__ is os.system("touch FILE"), as a zip
  // entry archive/data.pkl.
  const std::string mark = directory_.path("hacked");
  const std::string script =
      "import pickle, os, zipfile, sys\n"
      "class Hostile:\n"
      "  def __reduce__(self):\n"
      "    return os.system, ('touch " +
      mark +
      "',)\n"
      "with zipfile.ZipFile(sys.argv[1], 'w') as z:\n"
      "  z.writestr('archive/data.pkl', pickle.dumps({'state_dict': {}, 'config': Hostile()}))\n";
  const std::string file = directory_.path("hostile.pth");
  ASSERT_EQ(std::system(("python3 " + directory_.Write("make.py", script) + " " + file).c_str()),
            0);
  const Outcome outcome = Run("import --checkpoint " + file + " --config " + kTestData +
                              "config.yaml --out " + directory_.path("out"));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr(file), HasSubstr("it calls posix.system"),
                                 HasSubstr("nothing of it was run")));
  EXPECT_FALSE(std::ifstream(mark).good());
}

TEST_F(Import, GoldenCasesAnswerTheGoldenTopItems) {
  const auto dirs = GoldenCaseDirs();
  if (dirs.empty()) GTEST_SKIP() << "no golden vectors in " << GoldenRoot();
  for (const std::string& dir : dirs) {
    const GoldenCase golden = LoadGoldenCase(dir);
    const std::string model = directory_.path(golden.name);
    const Outcome imported = Run("import --safetensors " + dir + "/model.safetensors --config " +
                                 dir + "/config.json --out " + model);
    ASSERT_EQ(imported.code, 0) << imported.err;
    std::ostringstream csv, expected;
    csv << "user_id,item_id,timestamp\n";
    for (int64_t row = 0; row < golden.batch(); ++row) {
      const auto items = golden.Items(row);
      const auto times = golden.TimestampsMs(row);
      for (size_t i = 0; i < items.size(); ++i) {
        csv << "user" << row << ',' << items[i] << ',' << times[i] / 1000 << '\n';
      }
      for (const int32_t item : golden.TopItems(row)) {
        expected << "user" << row << '\t' << item << '\n';
      }
    }
    const std::string queries = directory_.path("queries.safetensors");
    const Outcome answered =
        Run("recommend --model " + model + " --history " + directory_.Write("h.csv", csv.str()) +
            " --k 20 --include-seen --dump-queries " + queries);
    ASSERT_EQ(answered.code, 0) << answered.err;
    std::istringstream lines(answered.out);
    std::ostringstream actual;
    for (std::string line; std::getline(lines, line);) {
      actual << line.substr(0, line.rfind('\t')) << '\n';
    }
    EXPECT_EQ(actual.str(), expected.str()) << golden.name;

    const auto file = MappedFile::Open(queries);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto dumped = ParseSafetensors((*file)->bytes());
    ASSERT_TRUE(dumped.ok()) << dumped.status();
    const SafeTensor& query = dumped->at("query");
    const auto d = static_cast<size_t>(golden.contents.config.hidden_size);
    ASSERT_EQ(query.shape, (std::vector<int64_t>{golden.batch(), static_cast<int64_t>(d)}));
    double worst = 0;
    for (int64_t row = 0; row < golden.batch(); ++row) {
      const auto values = query.f32().subspan(static_cast<size_t>(row) * d, d);
      const std::vector<double> vector(values.begin(), values.end());
      worst = std::max(worst, RelativeError(vector, golden.Query(row)));
    }
    std::printf("%-20s relative error of the dumped queries %.2e\n", golden.name.c_str(), worst);
    EXPECT_LT(worst, 5e-6) << golden.name;
  }
}

TEST(ImportConfig, NeedsTheKeysThatDecideTheModel) {
  const absl::Status status = ParsePublishedConfig("is_time: true\nd_conv: x\n", {}).status();
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("hidden_size is missing"), HasSubstr("d_conv must be an integer"),
                    HasSubstr("p2p_residual is missing"), HasSubstr("n_items is missing"),
                    HasSubstr("MAX_ITEM_LIST_LENGTH is missing")));
  EXPECT_THAT(Message(ParsePublishedConfig("[1, 2]", {}).status()), HasSubstr("mapping"));
  EXPECT_THAT(Message(ParsePublishedConfig("a: [", {}).status()), HasSubstr("not YAML"));
  EXPECT_FALSE(ParsePublishedConfig(std::string(100'000, '['), {}).ok());
}

TEST(ImportConfig, AsksForTheActivationWhereItCannotBeKnown) {
  const std::string yaml =
      "{hidden_size: 64, num_layers: 2, d_state: 32, d_conv: 4, expand: 2, head_dim: 16, "
      "is_ffn: true, is_time: false, norm_eps: 1e-12, MAX_ITEM_LIST_LENGTH: 50}";
  EXPECT_THAT(Message(ParsePublishedConfig(yaml, {.n_items = 10, .conv_activation = {}}).status()),
              HasSubstr("conv_activation is missing: with 8 heads"));
  const auto stated =
      ParsePublishedConfig(yaml, {.n_items = 10, .conv_activation = Activation::kSilu});
  ASSERT_TRUE(stated.ok()) << stated.status();
  EXPECT_EQ(stated->conv_activation, Activation::kSilu);
  EXPECT_EQ(stated->norm_eps, 1e-12);
  EXPECT_EQ(stated->n_items, 10);
  std::string four_heads = yaml;
  four_heads.replace(four_heads.find("head_dim: 16"), 12, "head_dim: 32");
  const auto implied = ParsePublishedConfig(four_heads, {.n_items = 10, .conv_activation = {}});
  ASSERT_TRUE(implied.ok()) << implied.status();
  EXPECT_EQ(implied->conv_activation, Activation::kHardswish);
  EXPECT_THAT(
      Message(
          ParsePublishedConfig("{n_items: 9}", {.n_items = 10, .conv_activation = {}}).status()),
      HasSubstr("n_items is 9, but the item embedding has 10 rows"));
}

}  // namespace
}  // namespace tim4rec
