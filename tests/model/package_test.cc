#include "model/weights/package.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "model/weights/safetensors.h"
#include "model/weights/trend_file.h"
#include "tests/model/tiny_model.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PackageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() /
            ("package_test." + std::to_string(getpid()) + "." +
             ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string Dir() const { return (root_ / "model").string(); }

  static std::string Read(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  static void Write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }

  fs::path root_;
};

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST_F(PackageTest, ReadsWhatItWrote) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    PackageContents contents = MakeTinyModel(RandomStreamingConfig(seed), seed);
    contents.items[1].id = "tab\there\nand|pipe\\ \r";
    contents.items[1].title = "\\t \xC3\xA9";
    contents.items[1].categories = {"a|b", "c\\p"};
    contents.items[2].title = "";
    contents.items[2].categories = {};
    contents.metrics_json = R"({"ndcg": 0.05})";
    if (seed % 2 == 0) contents.trend = RandomTrend(contents.config.n_items, -9, 900, seed);
    const absl::Status written = WritePackage(Dir(), contents);
    ASSERT_TRUE(written.ok()) << written;
    const auto package = ModelPackage::Open(Dir());
    ASSERT_TRUE(package.ok()) << "seed " << seed << ": " << package.status();
    EXPECT_EQ((*package)->config().ToJson(), contents.config.ToJson());
    EXPECT_EQ((*package)->metrics_json(), contents.metrics_json);
    ASSERT_EQ((*package)->trend() != nullptr, contents.trend.has_value());
    if (contents.trend) {
      EXPECT_EQ(FormatTrend(*(*package)->trend()), FormatTrend(*contents.trend));
    }
    for (const auto& [name, tensor] : contents.tensors) {
      EXPECT_EQ((*package)->tensor(name).shape, tensor.first);
      EXPECT_THAT((*package)->tensor(name).data, ::testing::ElementsAreArray(tensor.second));
    }
    const ItemCatalog& catalog = (*package)->catalog();
    ASSERT_EQ(catalog.size(), contents.config.n_items);
    for (int32_t i = 0; i < catalog.size(); ++i) {
      EXPECT_EQ(catalog.item(i).id, contents.items[i].id);
      EXPECT_EQ(catalog.item(i).title, contents.items[i].title);
      EXPECT_EQ(catalog.item(i).categories, contents.items[i].categories);
      EXPECT_EQ(catalog.item(i).train_events, contents.items[i].train_events);
    }
    ASSERT_EQ((*package)->probe().size(), contents.probe.size());
    for (size_t i = 0; i < contents.probe.size(); ++i) {
      EXPECT_EQ((*package)->probe()[i].items, contents.probe[i].items);
      EXPECT_EQ((*package)->probe()[i].timestamps_ms, contents.probe[i].timestamps_ms);
      EXPECT_EQ((*package)->probe()[i].as_of_ms, contents.probe[i].as_of_ms);
      EXPECT_EQ((*package)->probe()[i].query, contents.probe[i].query);
      EXPECT_EQ((*package)->probe()[i].top_items, contents.probe[i].top_items);
    }
    const auto in_memory = ModelPackage::FromContents(contents);
    ASSERT_TRUE(in_memory.ok()) << in_memory.status();
    EXPECT_EQ((*in_memory)->fingerprint(), (*package)->fingerprint());
    EXPECT_EQ((*package)->fingerprint().size(), 32u);
  }
}

TEST_F(PackageTest, FingerprintCoversWhatStatesDependOn) {
  const PackageContents base = MakeTinyModel(3);
  const auto fingerprint = [](const PackageContents& contents) {
    const auto package = ModelPackage::FromContents(contents);
    EXPECT_TRUE(package.ok()) << package.status();
    return (*package)->fingerprint();
  };
  const std::string expected = fingerprint(base);
  PackageContents same = base;
  same.config.dropout_prob = 0.7;
  same.items[3].title = "other";
  same.items[3].train_events = 99;
  same.probe.clear();
  same.metrics_json = "[1]";
  same.trend = RandomTrend(61, 0, 100, 1);
  EXPECT_EQ(fingerprint(same), expected);

  PackageContents weights = base;
  weights.tensors["ssd_layers.1.ssd.D"].second[0] += 1e-6f;
  EXPECT_NE(fingerprint(weights), expected);
  PackageContents items = base;
  std::swap(items.items[1].id, items.items[2].id);
  EXPECT_NE(fingerprint(items), expected);
  PackageContents config = base;
  config.config.time.mean += 0.5;
  EXPECT_NE(fingerprint(config), expected);
}

TEST_F(PackageTest, ListsEveryTensorFaultInOneError) {
  PackageContents contents = MakeTinyModel(4);
  contents.tensors.erase("query_gate.1.bias");
  contents.tensors["extra"] = {{1}, {0}};
  contents.tensors["in_layer_norm.bias"].first = {4, 4};
  contents.tensors["in_layer_norm.weight"].second.pop_back();
  contents.tensors["ssd_layers.0.ssd.D"].second[1] = std::numeric_limits<float>::infinity();
  const absl::Status status = WritePackage(Dir(), contents);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("query_gate.1.bias [4] is missing"),
                    HasSubstr("extra [1] is not of this model"),
                    HasSubstr("in_layer_norm.bias has shape [4,4], the configuration says [16]"),
                    HasSubstr("in_layer_norm.weight has 15 values"),
                    HasSubstr("ssd_layers.0.ssd.D holds values that are not finite")));
  EXPECT_FALSE(fs::exists(Dir()));
}

TEST_F(PackageTest, RefusesBadItemsAndProbes) {
  const auto fault = [&](auto change) {
    PackageContents contents = MakeTinyModel(5);
    change(&contents);
    const absl::Status status = WritePackage(Dir(), contents);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Message(status);
  };
  EXPECT_THAT(fault([](auto* c) { c->items[2].id = c->items[1].id; }), HasSubstr("items[2].id"));
  EXPECT_THAT(fault([](auto* c) { c->items[2].id = ""; }), HasSubstr("items[2].id"));
  EXPECT_THAT(fault([](auto* c) { c->items[2].id = std::string(257, 'x'); }), HasSubstr("257"));
  EXPECT_THAT(fault([](auto* c) { c->items[2].id = "\xC0\xAF"; }), HasSubstr("UTF-8"));
  EXPECT_THAT(fault([](auto* c) { c->items[0].id = "x"; }), HasSubstr("padding"));
  EXPECT_THAT(fault([](auto* c) { c->items.pop_back(); }), HasSubstr("n_items is 61"));
  EXPECT_THAT(fault([](auto* c) { c->items[1].train_events = -1; }), HasSubstr("negative"));
  EXPECT_THAT(fault([](auto* c) { c->probe.clear(); }), HasSubstr("at least one case"));
  EXPECT_THAT(fault([](auto* c) { c->probe[1].items[0] = 61; }), HasSubstr("probe case 1"));
  EXPECT_THAT(fault([](auto* c) { c->probe[1].query.pop_back(); }), HasSubstr("hidden_size"));
  EXPECT_THAT(fault([](auto* c) { c->probe[2].timestamps_ms[3] = 0; }), HasSubstr("descend"));
  EXPECT_THAT(fault([](auto* c) { c->metrics_json = "{"; }), HasSubstr("metrics"));
  EXPECT_THAT(fault([](auto* c) { c->trend = RandomTrend(60, 0, 9, 1); }),
              HasSubstr("trend: of 60 items, but n_items is 61"));
  EXPECT_THAT(fault([](auto* c) {
                c->trend = {std::nanf(""), RandomTrend(61, 0, 9, 1).timeline};
              }),
              HasSubstr("trend: weight is not finite"));
  EXPECT_THAT(fault([](auto* c) { c->config.d_conv = 0; }), HasSubstr("d_conv"));
}

TEST_F(PackageTest, ReplacesAPackageAndKeepsOtherFiles) {
  ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(6)).ok());
  Write(fs::path(Dir()) / "notes.txt", "mine");
  const std::string before = (*ModelPackage::Open(Dir()))->fingerprint();
  ASSERT_TRUE(WritePackage(Dir() + "/", MakeTinyModel(7)).ok());
  EXPECT_NE((*ModelPackage::Open(Dir()))->fingerprint(), before);
  EXPECT_EQ(Read(fs::path(Dir()) / "notes.txt"), "mine");
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(root_)) ++entries;
  EXPECT_EQ(entries, 1) << "no sibling is left behind";
}

TEST_F(PackageTest, NeverReplacesWhatIsNotAPackage) {
  fs::create_directories(Dir());
  Write(fs::path(Dir()) / "precious.txt", "data");
  EXPECT_EQ(WritePackage(Dir(), MakeTinyModel(8)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Read(fs::path(Dir()) / "precious.txt"), "data");
  const std::string file = (root_ / "file").string();
  Write(file, "data");
  EXPECT_EQ(WritePackage(file, MakeTinyModel(8)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(WritePackage("", MakeTinyModel(8)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PackageTest, ReaderBesideAWriterSeesOneOfThePackages) {
  const PackageContents a = MakeTinyModel(9), b = MakeTinyModel(10);
  ASSERT_TRUE(WritePackage(Dir(), a).ok());
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int i = 0; i < 60; ++i) EXPECT_TRUE(WritePackage(Dir(), i % 2 == 0 ? b : a).ok());
    stop = true;
  });
  while (!stop) {
    const auto package = ModelPackage::Open(Dir());
    ASSERT_TRUE(package.ok()) << package.status();
  }
  writer.join();
}

TEST_F(PackageTest, NamesWhatIsMissing) {
  EXPECT_EQ(ModelPackage::Open(Dir()).status().code(), absl::StatusCode::kNotFound);
  for (const char* name :
       {"config.json", "weights.safetensors", "items.tsv", "probe.safetensors"}) {
    fs::remove_all(Dir());
    ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(11)).ok());
    fs::remove(fs::path(Dir()) / name);
    const absl::Status status = ModelPackage::Open(Dir()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(Message(status), HasSubstr(name));
  }
  fs::remove_all(Dir());
  ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(11)).ok());
  fs::remove(fs::path(Dir()) / "metrics.json");
  EXPECT_TRUE(ModelPackage::Open(Dir()).ok());
}

TEST_F(PackageTest, ReportsChangedContentAsDataLoss) {
  ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(12)).ok());
  const fs::path path = fs::path(Dir()) / "weights.safetensors";
  std::string weights = Read(path);
  weights[weights.size() - 4] ^= 1;
  Write(path, weights);
  EXPECT_EQ(ModelPackage::Open(Dir()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(PackageTest, ATrendIsThereAsWrittenOrNotServed) {
  PackageContents contents = MakeTinyModel(12);
  contents.trend = RandomTrend(61, 0, 100, 1);
  const fs::path path = fs::path(Dir()) / "trend.safetensors";
  ASSERT_TRUE(WritePackage(Dir(), contents).ok());
  std::string trend = Read(path);
  trend[trend.size() - 4] ^= 1;
  Write(path, trend);
  EXPECT_EQ(ModelPackage::Open(Dir()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(ModelPackage::Open(Dir()).status()), HasSubstr("trend.safetensors: config"));
  fs::remove(path);
  EXPECT_EQ(ModelPackage::Open(Dir()).status().code(), absl::StatusCode::kNotFound);
  // A package without one that replaces it has none.
  ASSERT_TRUE(WritePackage(Dir(), contents).ok());
  contents.trend.reset();
  ASSERT_TRUE(WritePackage(Dir(), contents).ok());
  const auto package = ModelPackage::Open(Dir());
  ASSERT_TRUE(package.ok()) << package.status();
  EXPECT_EQ((*package)->trend(), nullptr);
  EXPECT_FALSE(fs::exists(path)) << "that of the replaced package";
}

TEST(TrendFile, RefusesWhatIsMalformed) {
  const auto fault = [](std::vector<int64_t> begin, std::vector<ItemTimeline::Mark> marks) {
    const absl::Status status = ItemTimeline::Create(std::move(begin), std::move(marks)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Message(status);
  };
  EXPECT_THAT(fault({}, {}), HasSubstr("begin must ascend from 0"));
  EXPECT_THAT(fault({0, 0, 2, 1}, {{1, 1}}), HasSubstr("to the 1 marks"));
  EXPECT_THAT(fault({0, 1, 2}, {{1, 1}}), HasSubstr("to the 1 marks"));
  EXPECT_THAT(fault({0, 0, 2}, {{5, 1}, {5, 2}}), HasSubstr("day of mark 1 is 5"));
  EXPECT_THAT(fault({0, 0, 1}, {{INT64_MIN, 1}}), HasSubstr("day of mark 0"));
  EXPECT_THAT(fault({0, 0, 1}, {{1, 0}}), HasSubstr("count of mark 0 is 0"));
  EXPECT_THAT(fault({0, 0, 1}, {{1, std::nan("")}}), HasSubstr("count of mark 0 is nan"));

  constexpr uint64_t kSeed = 21;
  std::mt19937_64 random(kSeed);
  const ItemTrend trend = RandomTrend(20, -5, 5, kSeed);
  const std::string whole = FormatTrend(trend);
  // As long as the file, and aligned as a mapped one.
  std::vector<int64_t> words(whole.size() / 8 + 1);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    const size_t size = round % 4 == 0 ? random() % whole.size() : whole.size();
    std::memcpy(words.data(), whole.data(), whole.size());
    auto* bytes = reinterpret_cast<std::byte*>(words.data());
    for (uint64_t flips = random() % 4; flips > 0; --flips) {
      bytes[random() % whole.size()] ^= static_cast<std::byte>(1 << (random() % 8));
    }
    const auto read = ParseTrend({bytes, size}, 20);
    refused += read.ok() ? 0 : 1;
    if (!read.ok()) continue;
    std::vector<float> boost(20);
    read->Boost(86'400'000, boost);
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LT(refused, 3000);
}

TEST_F(PackageTest, RefusesOtherFormatVersionsAndDeepNesting) {
  ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(12)).ok());
  const fs::path path = fs::path(Dir()) / "config.json";
  auto json = nlohmann::json::parse(Read(path));
  json["format_version"] = 2;
  Write(path, json.dump());
  EXPECT_THAT(Message(ModelPackage::Open(Dir()).status()), HasSubstr("format_version is 2"));
  Write(path, R"({"format_version":1,"fingerprint":"","deep":)" + std::string(1'000'000, '[') +
                  std::string(1'000'000, ']') + "}");
  EXPECT_EQ(ModelPackage::Open(Dir()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PackageTest, SurvivesTruncationsAndBitFlips) {
  constexpr uint64_t kSeed = 13;
  ASSERT_TRUE(WritePackage(Dir(), MakeTinyModel(kSeed)).ok());
  std::mt19937_64 random(kSeed);
  for (const char* name :
       {"config.json", "weights.safetensors", "items.tsv", "probe.safetensors", "metrics.json"}) {
    const fs::path path = fs::path(Dir()) / name;
    const std::string whole = Read(path);
    for (int round = 0; round < 300; ++round) {
      std::string damaged = whole;
      if (round % 3 == 0) {
        damaged.resize(random() % whole.size());
      } else {
        // Most of the structure is at the front.
        const size_t range = round % 3 == 1 ? std::min<size_t>(whole.size(), 2000) : whole.size();
        for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
          damaged[random() % range] ^= static_cast<char>(1 << (random() % 8));
        }
      }
      Write(path, damaged);
      const auto package = ModelPackage::Open(Dir());
      if (!package.ok()) {
        EXPECT_TRUE(absl::IsInvalidArgument(package.status()) || absl::IsDataLoss(package.status()))
            << kSeed << ": " << package.status();
      }
    }
    Write(path, whole);
  }
  EXPECT_TRUE(ModelPackage::Open(Dir()).ok());
}

TEST(ItemCatalog, FindsAndRanks) {
  std::vector<Item> items(4);
  items[1].id = "a", items[1].train_events = 3;
  items[2].id = "b", items[2].train_events = 7;
  items[3].id = "c", items[3].train_events = 3;
  const auto catalog = ItemCatalog::Create(items);
  ASSERT_TRUE(catalog.ok());
  EXPECT_EQ(catalog->Find("b"), 2);
  EXPECT_EQ(catalog->Find(""), std::nullopt);
  EXPECT_EQ(catalog->Find("d"), std::nullopt);
  EXPECT_THAT(catalog->by_popularity(), ElementsAre(2, 1, 3));
}

TEST(TensorShapes, MatchTheReleasedCode) {
  const std::string root = SourceDir() + "/../shared/golden";
  if (!fs::exists(root)) GTEST_SKIP() << root << " is absent";
  for (const auto& entry : fs::directory_iterator(root)) {
    if (!entry.is_directory()) continue;
    const auto json = nlohmann::json::parse(std::ifstream(entry.path() / "config.json"));
    ModelConfig config;
    config.variant = Variant::kPublished;
    config.n_items = json["n_items"];
    config.hidden_size = json["hidden_size"];
    config.num_layers = json["num_layers"];
    config.d_state = json["d_state"];
    config.d_conv = json["d_conv"];
    config.expand = json["expand"];
    config.head_dim = json["head_dim"];
    config.is_ffn = json["is_ffn"];
    config.is_time = json["is_time"];
    config.p2p_residual = json["p2p_residual"];
    config.norm_eps = json["norm_eps"];
    config.max_item_list_length = json["MAX_ITEM_LIST_LENGTH"];
    EXPECT_TRUE(config.Validate().ok()) << config.Validate();
    auto file = MappedFile::Open((entry.path() / "model.safetensors").string());
    ASSERT_TRUE(file.ok()) << file.status();
    const auto tensors = ParseSafetensors((*file)->bytes());
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    std::map<std::string, std::vector<int64_t>> shapes;
    for (const auto& [name, tensor] : *tensors) shapes[name] = tensor.shape;
    EXPECT_EQ(TensorShapes(config), shapes) << entry.path();
  }
}

}  // namespace
}  // namespace tim4rec
