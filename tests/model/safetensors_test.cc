#include "model/weights/safetensors.h"
#include "tests/paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <random>

namespace tim4rec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Aligned bytes, as a mapped file's are.
struct Bytes {
  explicit Bytes(const std::string& text) : words((text.size() + 7) / 8), size(text.size()) {
    std::ranges::copy(text, reinterpret_cast<char*>(words.data()));
  }
  std::span<const std::byte> span() const { return std::as_bytes(std::span(words)).first(size); }

  std::vector<uint64_t> words;
  size_t size;
};

std::string FileOf(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string Serialize(const SafetensorsWriter& writer) {
  std::string text = writer.Header();
  for (const auto piece : writer.pieces()) {
    text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return text;
}

std::string Fault(const std::string& file) {
  const Bytes bytes(file);
  const auto parsed = ParseSafetensors(bytes.span());
  if (parsed.ok()) return "accepted";
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(parsed.status().message());
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

// Keeps the header's length a multiple of 8, so that data is aligned.
std::string Padded(std::string header) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return header;
}

TEST(Safetensors, ReadsWhatItWrote) {
  const std::vector<float> f = {1, -2.5f, 3e-40f};
  const std::vector<double> d = {0.1, 2};
  const std::vector<int64_t> i = {INT64_MIN, 7};
  SafetensorsWriter writer;
  writer.Add("a", {3, 1}, std::span<const float>(f));
  writer.Add("b \"quoted\" \xC3\xA9", {2}, std::span<const double>(d));
  writer.Add("c", {1, 2}, std::span<const int64_t>(i));
  writer.Add("empty", {0, 4}, std::span<const float>());
  const Bytes bytes(Serialize(writer));
  const auto parsed = ParseSafetensors(bytes.span());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->size(), 4u);
  EXPECT_THAT(parsed->at("a").f32(), ElementsAre(1, -2.5f, 3e-40f));
  EXPECT_THAT(parsed->at("a").shape, ElementsAre(3, 1));
  EXPECT_TRUE(parsed->at("a").f64().empty());
  EXPECT_THAT(parsed->at("b \"quoted\" \xC3\xA9").f64(), ElementsAre(0.1, 2));
  EXPECT_THAT(parsed->at("c").i64(), ElementsAre(INT64_MIN, 7));
  EXPECT_TRUE(parsed->at("empty").f32().empty());
}

TEST(Safetensors, SkipsMetadata) {
  const std::string header = Padded(
      R"({"__metadata__":{"format":"pt"},"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})");
  EXPECT_EQ(Fault(FileOf(header, "abcd")), "accepted");
}

TEST(Safetensors, NamesTheFault) {
  EXPECT_THAT(Fault(""), HasSubstr("shorter than"));
  EXPECT_THAT(Fault(std::string(8, '\xFF')), HasSubstr("header length"));
  EXPECT_THAT(Fault(FileOf("[]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(Fault(FileOf("{", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(Fault(FileOf(std::string(100'000, '['), "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(Fault(FileOf(R"({"t":1})", "")), HasSubstr("tensor t"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("BF16", "[2]", "[0,4]")), "abcd")), HasSubstr("dtype"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[-1]", "[0,4]")), "abcd")), HasSubstr("shape"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[4611686018427387904,4]", "[0,0]")), "")),
              HasSubstr("shape"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[1]", "[0,8]")), "abcd")), HasSubstr("outside"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[1]", "[4,0]")), "abcd")), HasSubstr("outside"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[2]", "[0,4]")), "abcd")), HasSubstr("span 4"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[1]", "[4,8]")), "abcdefgh")),
              HasSubstr("begins at data byte 4"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[1]", "[0,4]")), "abcdefgh")),
              HasSubstr("end at data byte 4 of 8"));
  EXPECT_THAT(Fault(FileOf(Padded(Entry("F32", "[1]", "[0,4]")) + " ", "abcd")),
              HasSubstr("not aligned"));
  EXPECT_THAT(Fault(FileOf(Padded(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                  R"("t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})"),
                           "abcd")),
              HasSubstr("twice"));
  EXPECT_THAT(Fault(FileOf(Padded(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                  R"("u":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})"),
                           "abcd")),
              HasSubstr("begins at data byte 0"));
}

TEST(Safetensors, SurvivesTruncationsAndBitFlips) {
  const std::vector<float> f(17, 1.5f);
  const std::vector<int64_t> i = {1, 2, 3};
  SafetensorsWriter writer;
  writer.Add("weight", {17}, std::span<const float>(f));
  writer.Add("index", {3}, std::span<const int64_t>(i));
  const std::string file = Serialize(writer);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_NE(Fault(file.substr(0, size)), "accepted") << size;
  }
  constexpr uint64_t kSeed = 11;
  std::mt19937_64 random(kSeed);
  const size_t header_end = writer.Header().size();
  for (int round = 0; round < 20'000; ++round) {
    std::string damaged = file;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      damaged[random() % header_end] ^= static_cast<char>(1 << (random() % 8));
    }
    const Bytes bytes(damaged);
    const auto parsed = ParseSafetensors(bytes.span());
    if (!parsed.ok()) continue;
    for (const auto& [name, tensor] : *parsed) {
      for (const std::byte b : tensor.bytes) ASSERT_LE(static_cast<int>(b), 255) << kSeed;
    }
  }
}

TEST(MappedFile, ReportsAbsentAndIrregularFiles) {
  EXPECT_EQ(MappedFile::Open("/nonexistent/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Safetensors, ReadsFilesOfThePythonEcosystem) {
  const std::string path = SourceDir() + "/../shared/golden";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is absent";
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (!entry.is_directory()) continue;
    for (const char* name : {"model.safetensors", "expected.safetensors"}) {
      auto file = MappedFile::Open((entry.path() / name).string());
      ASSERT_TRUE(file.ok()) << file.status();
      const auto parsed = ParseSafetensors((*file)->bytes());
      ASSERT_TRUE(parsed.ok()) << entry.path() << ": " << parsed.status();
      EXPECT_GT(parsed->size(), 3u);
    }
  }
}

}  // namespace
}  // namespace tim4rec
