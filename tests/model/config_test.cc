#include "model/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ModelConfig Valid() {
  ModelConfig config;
  config.n_items = 100;
  return config;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(ModelConfig, NamesEveryFaultAtOnce) {
  ModelConfig config = Valid();
  config.n_items = 1;
  config.d_conv = 1;
  config.head_dim = 33;
  config.time.stddev = 0;
  config.norm_eps = std::numeric_limits<double>::quiet_NaN();
  const absl::Status status = config.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("n_items is 1, allowed 2 to"), HasSubstr("d_conv is 1"),
                    HasSubstr("head_dim is 33, must divide expand * hidden_size = 128"),
                    HasSubstr("time.stddev is 0"), HasSubstr("norm_eps is nan")));
}

TEST(ModelConfig, AcceptsPublishedSizes) {
  ModelConfig config = Valid();
  config.variant = Variant::kPublished;
  config.norm_eps = 1e-12;
  config.hidden_size = 256;
  config.head_dim = 128;
  config.d_conv = 2;
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(ModelConfig, RefusesSizesWhoseProductsOverflow) {
  ModelConfig config = Valid();
  config.hidden_size = INT64_MAX;
  config.expand = INT64_MAX;
  config.head_dim = -1;
  EXPECT_FALSE(config.Validate().ok());
}

TEST(ModelConfig, SurvivesJson) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    ASSERT_TRUE(config.Validate().ok()) << "seed " << seed << ": " << config.Validate();
    const auto parsed = ModelConfig::FromJson(config.ToJson());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->ToJson(), config.ToJson());
    EXPECT_EQ(parsed->time.tau0_ms, config.time.tau0_ms);
    EXPECT_EQ(parsed->FingerprintText(), config.FingerprintText());
  }
}

TEST(ModelConfig, TakesDefaultsForMissingKeys) {
  const auto parsed = ModelConfig::FromJson(R"({"n_items": 7, "time": {"mean": 2}})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->hidden_size, 64);
  EXPECT_EQ(parsed->time.mean, 2);
  EXPECT_EQ(parsed->time.tau0_ms, 60'000);
}

TEST(ModelConfig, NamesUnknownKeysAndWrongTypes) {
  const auto parsed = ModelConfig::FromJson(
      R"({"n_items": 7.5, "hidden": 64, "is_ffn": 1, "variant": "fancy", "time": {"tau": 1},
          "d_state": 18446744073709551615})");
  ASSERT_FALSE(parsed.ok());
  EXPECT_THAT(
      Message(parsed.status()),
      AllOf(HasSubstr("n_items must be an integer"), HasSubstr("hidden is not a known key"),
            HasSubstr("is_ffn must be true or false"), HasSubstr("\"streaming\""),
            HasSubstr("time.tau is not a known key"), HasSubstr("d_state must be an integer")));
  EXPECT_FALSE(ModelConfig::FromJson("[]").ok());
  EXPECT_FALSE(ModelConfig::FromJson("{").ok());
  EXPECT_FALSE(ModelConfig::FromJson(R"({"n_items": 7, "time": 3})").ok());
  EXPECT_FALSE(ModelConfig::FromJson(std::string(100'000, '[')).ok());
}

TEST(ModelConfig, FingerprintTextHoldsWhatStatesDependOn) {
  ModelConfig config = Valid();
  const std::string text = config.FingerprintText();
  config.dropout_prob = 0.5;
  config.max_item_list_length = 77;  // published only
  EXPECT_EQ(config.FingerprintText(), text);
  config.time.mean = 1;
  EXPECT_NE(config.FingerprintText(), text);
}

TEST(StateLayout, HasTheDocumentedSizes) {
  const StateLayout layout = StateLayout::Of(Valid());
  EXPECT_EQ(layout.conv_offset, 4 * 32 * 32);
  EXPECT_EQ(layout.time_conv1_offset, layout.conv_offset + 3 * 192);
  EXPECT_EQ(layout.time_conv2_offset, layout.time_conv1_offset + 3 * 4);
  EXPECT_EQ(layout.layer_floats, 4096 + 576 + 24);
  EXPECT_EQ(layout.output_offset, 2 * 4696);
  EXPECT_EQ(layout.bytes, 16 + 4 * (2 * 4696 + 64));
}

TEST(StateLayout, AlignsLayersAndRecords) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const StateLayout layout = StateLayout::Of(config);
    EXPECT_EQ(layout.layer_floats % 4, 0) << "seed " << seed;
    EXPECT_EQ(layout.bytes % 16, 0) << "seed " << seed;
    const int64_t needed = config.num_heads() * config.d_state * config.head_dim +
                           (config.d_conv - 1) * (config.conv_size() +
                                                  (config.time_write ? 2 * config.num_heads() : 0));
    EXPECT_GE(layout.layer_floats, needed) << "seed " << seed;
    EXPECT_LT(layout.layer_floats, needed + 4) << "seed " << seed;
    EXPECT_GE(layout.floats, layout.output_offset + config.hidden_size) << "seed " << seed;
  }
}

}  // namespace
}  // namespace tim4rec
