#include "tests/model/golden_case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "model/cli/import_config.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

namespace fs = std::filesystem;

template <typename T>
T Need(absl::StatusOr<T> value, const std::string& what) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s: %s\n", what.c_str(), value.status().ToString().c_str());
    std::abort();
  }
  return *std::move(value);
}

template <typename T>
std::span<const T> Row(std::span<const T> values, int64_t row, int64_t width) {
  return values.subspan(static_cast<size_t>(row * width), static_cast<size_t>(width));
}

}  // namespace

std::string GoldenRoot() { return SourceDir() + "/../shared/golden"; }

std::vector<std::string> GoldenCaseDirs() {
  std::vector<std::string> dirs;
  if (!fs::exists(GoldenRoot())) return dirs;
  for (const auto& entry : fs::directory_iterator(GoldenRoot())) {
    if (fs::exists(entry.path() / "expected.safetensors")) dirs.push_back(entry.path().string());
  }
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}

GoldenCase LoadGoldenCase(const std::string& dir) {
  GoldenCase golden;
  golden.dir = dir;
  golden.name = fs::path(dir).filename().string();
  std::ostringstream yaml;
  yaml << std::ifstream(dir + "/config.json").rdbuf();
  golden.contents.config = Need(ParsePublishedConfig(yaml.str(), {}), dir);
  const auto weights = Need(MappedFile::Open(dir + "/model.safetensors"), dir);
  for (const auto& [name, tensor] : Need(ParseSafetensors(weights->bytes()), dir)) {
    golden.contents.tensors[name] = {tensor.shape, {tensor.f32().begin(), tensor.f32().end()}};
  }
  golden.contents.items.resize(static_cast<size_t>(golden.contents.config.n_items));
  for (size_t i = 1; i < golden.contents.items.size(); ++i) {
    golden.contents.items[i].id = std::to_string(i);
  }
  golden.file = Need(MappedFile::Open(dir + "/expected.safetensors"), dir);
  golden.expected = Need(ParseSafetensors(golden.file->bytes()), dir);
  return golden;
}

std::vector<int32_t> GoldenCase::Items(int64_t row) const {
  const auto items = Row(expected.at("item_seq").i64(), row, window());
  const auto length = expected.at("item_seq_len").i64()[static_cast<size_t>(row)];
  return {items.begin(), items.begin() + length};
}

std::vector<int64_t> GoldenCase::TimestampsMs(int64_t row) const {
  const auto seconds = Row(expected.at("timestamps").i64(), row, window());
  const auto length = expected.at("item_seq_len").i64()[static_cast<size_t>(row)];
  std::vector<int64_t> result(seconds.begin(), seconds.begin() + length);
  for (int64_t& value : result) value *= 1000;
  return result;
}

std::span<const double> GoldenCase::Query(int64_t row) const {
  return Row(expected.at("seq_output_f64").f64(), row, contents.config.hidden_size);
}

std::vector<int32_t> GoldenCase::TopItems(int64_t row) const {
  const auto items = Row(expected.at("top20_items").i64(), row, 20);
  return {items.begin(), items.end()};
}

double RelativeError(std::span<const double> a, std::span<const double> b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace tim4rec
