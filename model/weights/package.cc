#include "model/weights/package.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "model/weights/package_files.h"
#include "model/weights/safetensors.h"
#include "model/weights/trend_file.h"

namespace tim4rec {
namespace {

using Json = nlohmann::json;
using Tensors = std::map<std::string, TensorView>;

constexpr int64_t kFormatVersion = 1;
constexpr char kConfigFile[] = "config.json";
constexpr char kWeightsFile[] = "weights.safetensors";
constexpr char kItemsFile[] = "items.tsv";
constexpr char kProbeFile[] = "probe.safetensors";
constexpr char kTrendFile[] = "trend.safetensors";
constexpr char kMetricsFile[] = "metrics.json";
constexpr size_t kMaxJsonBytes = 4 << 20;

absl::Status Invalid(const std::string& what) { return absl::InvalidArgumentError(what); }

// Puts the name of a file before an error about its content.
absl::Status InFile(const std::string& dir, const char* file, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(dir, "/", file, ": ", std::string(status.message())));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

bool AllFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  bool finite = true;
  for (const float value : values) {
    finite &= (std::bit_cast<uint32_t>(value) & kExponent) != kExponent;
  }
  return finite;
}

int64_t ElementCount(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

absl::Status CheckItems(const ModelConfig& config, const std::vector<Item>& items) {
  if (static_cast<int64_t>(items.size()) != config.n_items) {
    return Invalid(absl::StrCat("items: ", items.size(), " with the padding entry, but n_items is ",
                                config.n_items));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].train_events < 0) {
      return Invalid(absl::StrCat("items[", i, "].train_events is negative"));
    }
    for (const std::string& category : items[i].categories) {
      if (category.empty()) {
        return Invalid(absl::StrCat("items[", i, "].categories has an empty entry"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckProbeCase(const ModelConfig& config, const ProbeCase& probe) {
  const auto known = [&](int32_t item) { return item >= 1 && item < config.n_items; };
  if (probe.items.empty() || probe.items.size() != probe.timestamps_ms.size()) {
    return Invalid(absl::StrCat(probe.items.size(), " items and ", probe.timestamps_ms.size(),
                                " timestamps; there must be as many, at least one"));
  }
  if (!std::all_of(probe.items.begin(), probe.items.end(), known) ||
      !std::all_of(probe.top_items.begin(), probe.top_items.end(), known)) {
    return Invalid(absl::StrCat("an item outside 1 to ", config.n_items - 1));
  }
  if (!std::is_sorted(probe.timestamps_ms.begin(), probe.timestamps_ms.end())) {
    return Invalid("timestamps_ms descend");
  }
  if (static_cast<int64_t>(probe.query.size()) != config.hidden_size) {
    return Invalid(absl::StrCat("query has ", probe.query.size(), " values, hidden_size is ",
                                config.hidden_size));
  }
  for (const double value : probe.query) {
    if (!std::isfinite(value)) return Invalid("query holds values that are not finite");
  }
  return absl::OkStatus();
}

absl::Status CheckProbe(const ModelConfig& config, const std::vector<ProbeCase>& probe) {
  for (size_t i = 0; i < probe.size(); ++i) {
    if (absl::Status status = CheckProbeCase(config, probe[i]); !status.ok()) {
      return Invalid(absl::StrCat("probe case ", i, ": ", std::string(status.message())));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckMetrics(const std::string& json) {
  if (Json::accept(json)) return absl::OkStatus();
  return Invalid("metrics: not valid JSON");
}

// ---- fingerprint

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void Add(std::span<const std::byte> bytes) {
    Add(static_cast<int64_t>(bytes.size()));
    XXH3_128bits_update(state_, bytes.data(), bytes.size());
  }
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text.data(), text.size()))); }
  void Add(int64_t value) { XXH3_128bits_update(state_, &value, sizeof(value)); }

  std::string Hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t* state_;
};

std::string Fingerprint(const ModelConfig& config, const Tensors& tensors,
                        const ItemCatalog& catalog) {
  Hasher hasher;
  hasher.Add(int64_t{StateLayout::kVersion});
  hasher.Add(config.FingerprintText());
  for (const auto& [name, tensor] : tensors) {
    hasher.Add(name);
    hasher.Add(std::as_bytes(tensor.data));  // the shape follows from the configuration
  }
  for (int64_t i = 1; i < catalog.size(); ++i) {
    hasher.Add(catalog.item(static_cast<int32_t>(i)).id);
  }
  return hasher.Hex();
}

std::string HashOf(std::span<const std::byte> bytes) {
  Hasher hasher;
  hasher.Add(bytes);
  return hasher.Hex();
}

// ---- probe.safetensors

struct ProbeColumns {
  std::vector<int64_t> lengths, items, timestamps_ms, as_of_ms, top_lengths, top_items;
  std::vector<double> query;
};

ProbeColumns ColumnsOf(const std::vector<ProbeCase>& probe) {
  ProbeColumns c;
  for (const ProbeCase& p : probe) {
    c.lengths.push_back(static_cast<int64_t>(p.items.size()));
    c.items.insert(c.items.end(), p.items.begin(), p.items.end());
    c.timestamps_ms.insert(c.timestamps_ms.end(), p.timestamps_ms.begin(), p.timestamps_ms.end());
    c.as_of_ms.push_back(p.as_of_ms);
    c.query.insert(c.query.end(), p.query.begin(), p.query.end());
    c.top_lengths.push_back(static_cast<int64_t>(p.top_items.size()));
    c.top_items.insert(c.top_items.end(), p.top_items.begin(), p.top_items.end());
  }
  return c;
}

int64_t SizeOf(const auto& values) { return static_cast<int64_t>(values.size()); }

void AddProbe(const ProbeColumns& c, int64_t hidden_size, SafetensorsWriter* writer) {
  const auto add = [writer](const char* name, const std::vector<int64_t>& values) {
    writer->Add(name, {SizeOf(values)}, std::span<const int64_t>(values));
  };
  add("lengths", c.lengths);
  add("items", c.items);
  add("timestamps_ms", c.timestamps_ms);
  add("as_of_ms", c.as_of_ms);
  add("top_lengths", c.top_lengths);
  add("top_items", c.top_items);
  writer->Add("query", {SizeOf(c.lengths), hidden_size}, std::span<const double>(c.query));
}

// Takes `length` values off the front; false if there are fewer.
template <typename T>
bool TakeFront(std::span<const T>* values, int64_t length, std::span<const T>* front) {
  if (length < 0 || length > SizeOf(*values)) return false;
  *front = values->first(static_cast<size_t>(length));
  *values = values->subspan(static_cast<size_t>(length));
  return true;
}

bool ToItems(std::span<const int64_t> values, std::vector<int32_t>* items) {
  for (const int64_t value : values) {
    if (value < 0 || value > INT32_MAX) return false;
    items->push_back(static_cast<int32_t>(value));
  }
  return true;
}

absl::StatusOr<std::vector<ProbeCase>> ParseProbe(const ModelConfig& config,
                                                  std::span<const std::byte> bytes) {
  auto tensors = ParseSafetensors(bytes);
  if (!tensors.ok()) return tensors.status();
  const auto column = [&](const char* name) {
    const auto it = tensors->find(name);
    return it == tensors->end() ? std::span<const int64_t>() : it->second.i64();
  };
  const auto lengths = column("lengths"), as_of_ms = column("as_of_ms"),
             top_lengths = column("top_lengths");
  auto items = column("items"), timestamps_ms = column("timestamps_ms"),
       top_items = column("top_items");
  auto query = tensors->contains("query") ? tensors->at("query").f64() : std::span<const double>();
  const absl::Status inconsistent = Invalid(
      "expected the tensors lengths, items, timestamps_ms, as_of_ms, query, top_lengths "
      "and top_items, of lengths that agree");
  if (as_of_ms.size() != lengths.size() || top_lengths.size() != lengths.size()) {
    return inconsistent;
  }
  std::vector<ProbeCase> probe;
  for (size_t i = 0; i < lengths.size(); ++i) {
    ProbeCase& p = probe.emplace_back();
    std::span<const int64_t> case_items, case_times, case_top;
    std::span<const double> case_query;
    if (!TakeFront(&items, lengths[i], &case_items) ||
        !TakeFront(&timestamps_ms, lengths[i], &case_times) ||
        !TakeFront(&top_items, top_lengths[i], &case_top) ||
        !TakeFront(&query, config.hidden_size, &case_query) || !ToItems(case_items, &p.items) ||
        !ToItems(case_top, &p.top_items)) {
      return inconsistent;
    }
    p.timestamps_ms.assign(case_times.begin(), case_times.end());
    p.query.assign(case_query.begin(), case_query.end());
    p.as_of_ms = as_of_ms[i];
  }
  if (!items.empty() || !timestamps_ms.empty() || !top_items.empty() || !query.empty()) {
    return inconsistent;
  }
  if (absl::Status status = CheckProbe(config, probe); !status.ok()) return status;
  return probe;
}

// ---- config.json

// What config.json says of the rest of the package.
struct Hashes {
  std::string fingerprint;
  std::string trend;  // of trend.safetensors; empty: there is none
};

std::string ConfigJson(const ModelConfig& config, const Hashes& hashes) {
  Json json = Json::parse(config.ToJson());
  json["format_version"] = kFormatVersion;
  json["fingerprint"] = hashes.fingerprint;
  if (!hashes.trend.empty()) json["trend_hash"] = hashes.trend;
  return json.dump(2) + "\n";
}

absl::StatusOr<ModelConfig> ParseConfig(std::string_view text, Hashes* hashes) {
  if (text.size() > kMaxJsonBytes) return Invalid("larger than 4 MiB");
  // Writing JSON recurses, reading does not: refuse nesting that no configuration has.
  bool too_deep = false;
  const auto callback = [&too_deep](int depth, Json::parse_event_t, Json&) {
    too_deep |= depth > 8;
    return true;
  };
  Json json = Json::parse(text, callback, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object() || too_deep) return Invalid("not a JSON object");
  const auto version = json.find("format_version");
  if (version == json.end() || !version->is_number_integer()) {
    return Invalid("format_version must be an integer");
  }
  if (*version != kFormatVersion) {
    return Invalid(absl::StrCat("format_version is ", version->dump(), ", this program reads ",
                                kFormatVersion));
  }
  const auto stored = json.find("fingerprint");
  if (stored == json.end() || !stored->is_string()) return Invalid("fingerprint must be a string");
  hashes->fingerprint = stored->get<std::string>();
  if (const auto trend = json.find("trend_hash"); trend != json.end()) {
    if (!trend->is_string() || *trend == "") return Invalid("trend_hash must be a string");
    hashes->trend = trend->get<std::string>();
    json.erase("trend_hash");
  }
  json.erase("format_version");
  json.erase("fingerprint");
  return ModelConfig::FromJson(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

// ---- packages by where their tensors live

class OwnedPackage : public ModelPackage {
 public:
  static absl::StatusOr<std::shared_ptr<const ModelPackage>> Create(PackageContents contents) {
    auto package = std::make_shared<OwnedPackage>();
    if (absl::Status status = package->Init(std::move(contents)); !status.ok()) return status;
    return package;
  }

 private:
  absl::Status Init(PackageContents contents) {
    config_ = contents.config;
    if (absl::Status status = config_.Validate(); !status.ok()) return status;
    data_ = std::move(contents.tensors);
    for (const auto& [name, tensor] : data_) tensors_[name] = {tensor.first, tensor.second};
    if (absl::Status status = CheckTensors(config_, tensors_); !status.ok()) return status;
    if (absl::Status status = CheckItems(config_, contents.items); !status.ok()) return status;
    auto catalog = ItemCatalog::Create(std::move(contents.items));
    if (!catalog.ok()) return catalog.status();
    catalog_ = *std::move(catalog);
    if (absl::Status status = CheckProbe(config_, contents.probe); !status.ok()) return status;
    probe_ = std::move(contents.probe);
    if (absl::Status status = CheckMetrics(contents.metrics_json); !status.ok()) return status;
    metrics_json_ = std::move(contents.metrics_json);
    if (contents.trend) {
      absl::Status status = CheckTrend(*contents.trend, config_.n_items);
      if (!status.ok()) return Invalid(absl::StrCat("trend: ", std::string(status.message())));
    }
    trend_ = std::move(contents.trend);
    fingerprint_ = Fingerprint(config_, tensors_, catalog_);
    return absl::OkStatus();
  }

  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>> data_;
};

// The files of one directory, opened before any is read.
struct PackageFiles {
  std::map<std::string, std::unique_ptr<MappedFile>> files;

  std::span<const std::byte> bytes(const char* name) const { return files.at(name)->bytes(); }
  std::string_view text(const char* name) const {
    return {reinterpret_cast<const char*>(bytes(name).data()), bytes(name).size()};
  }
};

absl::StatusOr<PackageFiles> OpenFiles(int dir_fd, const std::string& dir) {
  PackageFiles opened;
  for (const char* name :
       {kConfigFile, kWeightsFile, kItemsFile, kProbeFile, kTrendFile, kMetricsFile}) {
    auto file = MappedFile::OpenAt(dir_fd, dir, name);
    if (!file.ok()) {
      const bool optional = name == std::string_view(kTrendFile) || name == kMetricsFile;
      if (absl::IsNotFound(file.status()) && optional) continue;
      return file.status();
    }
    opened.files[name] = *std::move(file);
  }
  return opened;
}

// All files come from one directory even if the package is replaced meanwhile.
absl::StatusOr<PackageFiles> OpenDirectory(const std::string& dir) {
  constexpr int kAttempts = 5;
  for (int attempt = 1;; ++attempt) {
    const int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
      const std::string what = absl::StrCat(dir, ": ", std::strerror(errno));
      if (errno == ENOENT || errno == ENOTDIR) return absl::NotFoundError(what);
      return absl::UnavailableError(what);
    }
    absl::Cleanup close_fd = [fd] { close(fd); };
    absl::StatusOr<PackageFiles> files = OpenFiles(fd, dir);
    if (files.ok() || attempt == kAttempts || !absl::IsNotFound(files.status())) return files;
    struct stat opened, current;
    const bool replaced = fstat(fd, &opened) == 0 && stat(dir.c_str(), &current) == 0 &&
                          opened.st_ino != current.st_ino;
    if (!replaced) return files;
  }
}

class MappedPackage : public ModelPackage {
 public:
  static absl::StatusOr<std::shared_ptr<const ModelPackage>> Open(const std::string& dir) {
    auto files = OpenDirectory(dir);
    if (!files.ok()) return files.status();
    auto package = std::make_shared<MappedPackage>();
    if (absl::Status status = package->Init(dir, *std::move(files)); !status.ok()) return status;
    return package;
  }

 private:
  absl::Status Init(const std::string& dir, PackageFiles files) {
    Hashes hashes;
    auto config = ParseConfig(files.text(kConfigFile), &hashes);
    if (!config.ok()) return InFile(dir, kConfigFile, config.status());
    config_ = *config;
    if (absl::Status status = ReadWeights(files.bytes(kWeightsFile)); !status.ok()) {
      return InFile(dir, kWeightsFile, status);
    }
    if (absl::Status status = ReadItems(files.text(kItemsFile)); !status.ok()) {
      return InFile(dir, kItemsFile, status);
    }
    auto probe = ParseProbe(config_, files.bytes(kProbeFile));
    if (!probe.ok()) return InFile(dir, kProbeFile, probe.status());
    probe_ = *std::move(probe);
    if (absl::Status status = ReadTrend(dir, hashes.trend, files); !status.ok()) return status;
    metrics_json_ = "{}";
    if (files.files.contains(kMetricsFile)) {
      metrics_json_ = std::string(files.text(kMetricsFile));
      if (absl::Status status = CheckMetrics(metrics_json_); !status.ok()) {
        return InFile(dir, kMetricsFile, status);
      }
    }
    fingerprint_ = Fingerprint(config_, tensors_, catalog_);
    if (fingerprint_ != hashes.fingerprint) {
      return absl::DataLossError(absl::StrCat(
          dir, ": config.json records fingerprint ", hashes.fingerprint, ", the content has ",
          fingerprint_, "; the package is damaged or mixed from two: write it again"));
    }
    weights_ = std::move(files.files.at(kWeightsFile));
    return absl::OkStatus();
  }

  absl::Status ReadWeights(std::span<const std::byte> bytes) {
    auto parsed = ParseSafetensors(bytes);
    if (!parsed.ok()) return parsed.status();
    for (auto& [name, tensor] : *parsed) {
      if (tensor.dtype != DType::kF32) return Invalid(absl::StrCat(name, ": dtype must be F32"));
      tensors_[name] = {std::move(tensor.shape), tensor.f32()};
    }
    return CheckTensors(config_, tensors_);
  }

  absl::Status ReadTrend(const std::string& dir, const std::string& hash,
                         const PackageFiles& files) {
    if (hash.empty()) return absl::OkStatus();
    if (!files.files.contains(kTrendFile)) {
      return absl::NotFoundError(
          absl::StrCat(dir, "/", kTrendFile, ": config.json has its hash, but it is not there"));
    }
    const std::span<const std::byte> bytes = files.bytes(kTrendFile);
    if (HashOf(bytes) != hash) {
      return absl::DataLossError(
          absl::StrCat(dir, "/", kTrendFile, ": config.json records the hash ", hash,
                       ", the file has ", HashOf(bytes), "; write the package again"));
    }
    auto trend = ParseTrend(bytes, config_.n_items);
    if (!trend.ok()) return InFile(dir, kTrendFile, trend.status());
    trend_ = *std::move(trend);
    return absl::OkStatus();
  }

  absl::Status ReadItems(std::string_view text) {
    auto items = ParseItems(text);
    if (!items.ok()) return items.status();
    if (absl::Status status = CheckItems(config_, *items); !status.ok()) return status;
    auto catalog = ItemCatalog::Create(*std::move(items));
    if (!catalog.ok()) return catalog.status();
    catalog_ = *std::move(catalog);
    return absl::OkStatus();
  }

  std::unique_ptr<MappedFile> weights_;
};

FilePieces PiecesOf(const std::string& header, const SafetensorsWriter& writer) {
  FilePieces pieces = writer.pieces();
  pieces.insert(pieces.begin(), std::as_bytes(std::span(header)));
  return pieces;
}

}  // namespace

absl::Status CheckTensors(const ModelConfig& config,
                          const std::map<std::string, TensorView>& tensors) {
  const auto expected = TensorShapes(config);
  std::vector<std::string> faults;
  for (const auto& [name, shape] : expected) {
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      faults.push_back(absl::StrCat(name, " ", ShapeText(shape), " is missing"));
    } else if (it->second.shape != shape) {
      faults.push_back(absl::StrCat(name, " has shape ", ShapeText(it->second.shape),
                                    ", the configuration says ", ShapeText(shape)));
    } else if (static_cast<int64_t>(it->second.data.size()) != ElementCount(shape)) {
      faults.push_back(absl::StrCat(name, " has ", it->second.data.size(), " values, its shape ",
                                    ShapeText(shape), " needs ", ElementCount(shape)));
    } else if (!AllFinite(it->second.data)) {
      faults.push_back(absl::StrCat(name, " holds values that are not finite"));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!expected.contains(name)) {
      faults.push_back(absl::StrCat(name, " ", ShapeText(tensor.shape), " is not of this model"));
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return Invalid(absl::StrCat("tensors: ", absl::StrJoin(faults, "; ")));
}

absl::Status WritePackage(const std::string& dir, const PackageContents& contents) {
  if (absl::Status status = contents.config.Validate(); !status.ok()) return status;
  Tensors tensors;
  SafetensorsWriter weights;
  for (const auto& [name, tensor] : contents.tensors) {
    tensors[name] = {tensor.first, tensor.second};
    weights.Add(name, tensor.first, std::span<const float>(tensor.second));
  }
  if (absl::Status status = CheckTensors(contents.config, tensors); !status.ok()) return status;
  if (absl::Status status = CheckItems(contents.config, contents.items); !status.ok()) {
    return status;
  }
  const auto catalog = ItemCatalog::Create(contents.items);
  if (!catalog.ok()) return catalog.status();
  if (contents.probe.empty()) {
    return Invalid("probe: at least one case is needed, so that every reader can verify itself");
  }
  if (absl::Status status = CheckProbe(contents.config, contents.probe); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckMetrics(contents.metrics_json); !status.ok()) return status;

  Hashes hashes;
  hashes.fingerprint = Fingerprint(contents.config, tensors, *catalog);
  std::string trend;
  if (contents.trend) {
    absl::Status status = CheckTrend(*contents.trend, contents.config.n_items);
    if (!status.ok()) return Invalid(absl::StrCat("trend: ", std::string(status.message())));
    trend = FormatTrend(*contents.trend);
    hashes.trend = HashOf(std::as_bytes(std::span(trend)));
  }
  const std::string config_json = ConfigJson(contents.config, hashes);
  const std::string weights_header = weights.Header();
  const std::string items = FormatItems(contents.items);
  const ProbeColumns columns = ColumnsOf(contents.probe);
  SafetensorsWriter probe;
  AddProbe(columns, contents.config.hidden_size, &probe);
  const std::string probe_header = probe.Header();
  FilePieces trend_pieces;
  if (contents.trend) trend_pieces.push_back(std::as_bytes(std::span(trend)));
  const std::map<std::string, FilePieces> files = {
      {kConfigFile, {std::as_bytes(std::span(config_json))}},
      {kWeightsFile, PiecesOf(weights_header, weights)},
      {kItemsFile, {std::as_bytes(std::span(items))}},
      {kProbeFile, PiecesOf(probe_header, probe)},
      {kMetricsFile, {std::as_bytes(std::span(contents.metrics_json))}},
      {kTrendFile, trend_pieces}};
  return ReplaceDirectory(dir, files);
}

absl::StatusOr<std::shared_ptr<const ModelPackage>> ModelPackage::Open(const std::string& dir) {
  return MappedPackage::Open(dir);
}

absl::StatusOr<std::shared_ptr<const ModelPackage>> ModelPackage::FromContents(
    PackageContents contents) {
  return OwnedPackage::Create(std::move(contents));
}

}  // namespace tim4rec
