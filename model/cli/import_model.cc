#include "model/cli/import_model.h"

#include <cmath>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "model/cli/import_config.h"
#include "model/cli/session.h"
#include "model/reference/reference.h"
#include "model/training/probe.h"
#include "model/weights/safetensors.h"
#include "model/weights/torch_checkpoint.h"

namespace tim4rec {
namespace {

constexpr char kEmbedding[] = "item_embedding.weight";
constexpr char kPaddingToken[] = "[PAD]";

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<NamedTensors> ReadSafetensors(std::span<const std::byte> bytes) {
  const auto parsed = ParseSafetensors(bytes);
  if (!parsed.ok()) return parsed.status();
  NamedTensors tensors;
  for (const auto& [name, tensor] : *parsed) {
    auto& [shape, data] = tensors[name];
    shape = tensor.shape;
    switch (tensor.dtype) {
      case DType::kF32:
        data.assign(tensor.f32().begin(), tensor.f32().end());
        break;
      case DType::kF64:
        data.assign(tensor.f64().begin(), tensor.f64().end());
        break;
      case DType::kI64:
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", name, " is I64, only F32 and F64 are weights"));
    }
  }
  return tensors;
}

absl::StatusOr<NamedTensors> ReadTensors(const ImportSources& sources) {
  const bool pth = !sources.checkpoint.empty();
  const std::string& path = pth ? sources.checkpoint : sources.safetensors;
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  auto tensors = pth ? ReadTorchCheckpoint((*file)->bytes()) : ReadSafetensors((*file)->bytes());
  if (!tensors.ok()) return InFile(path, tensors.status());
  return tensors;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const auto bytes = (*file)->bytes();
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

absl::StatusOr<ModelConfig> ReadConfig(const ImportSources& sources, const NamedTensors& tensors) {
  const auto text = ReadText(sources.config);
  if (!text.ok()) return text.status();
  ConfigOverrides overrides;
  overrides.conv_activation = sources.conv_activation;
  const auto embedding = tensors.find(kEmbedding);
  if (embedding != tensors.end() && !embedding->second.first.empty()) {
    overrides.n_items = embedding->second.first.front();
  }
  auto config = ParsePublishedConfig(*text, overrides);
  if (!config.ok()) return InFile(sources.config, config.status());
  return config;
}

std::map<std::string, TensorView> ViewsOf(const NamedTensors& tensors) {
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : tensors) views[name] = {tensor.first, tensor.second};
  return views;
}

// ---- item ids

std::vector<Item> WithIds(std::vector<std::string> ids) {
  std::vector<Item> items(1);
  for (std::string& id : ids) items.emplace_back().id = std::move(id);
  return items;
}

absl::StatusOr<std::vector<Item>> ItemsFromList(const std::string& path) {
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  std::vector<std::string> ids = absl::StrSplit(*text, '\n');
  if (!ids.empty() && ids.back().empty()) ids.pop_back();
  for (std::string& id : ids) {
    if (absl::EndsWith(id, "\r")) id.pop_back();
  }
  if (!ids.empty() && ids.front() == kPaddingToken) ids.erase(ids.begin());
  return WithIds(std::move(ids));
}

absl::StatusOr<std::vector<Item>> ItemsFromDataset(const std::string& path) {
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  auto tokens = ReadRecBoleItemTokens((*file)->bytes());
  if (!tokens.ok()) return InFile(path, tokens.status());
  if (tokens->empty() || tokens->front() != kPaddingToken) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": its first item token is not ", kPaddingToken));
  }
  tokens->erase(tokens->begin());
  return WithIds(*std::move(tokens));
}

absl::StatusOr<std::vector<Item>> ReadItemIds(const ImportSources& sources, int64_t n_items) {
  if (!sources.items.empty()) return ItemsFromList(sources.items);
  if (!sources.dataset.empty()) return ItemsFromDataset(sources.dataset);
  if (!sources.interactions.empty()) {
    auto data = ReadDataset(sources.interactions, sources.skip_bad_rows, sources.min_count);
    if (!data.ok()) return data.status();
    return std::move(data->items);
  }
  std::vector<std::string> ids;
  for (int64_t i = 1; i < n_items; ++i) ids.push_back(absl::StrCat(i));
  return WithIds(std::move(ids));
}

absl::StatusOr<std::vector<Item>> ReadMatchingItems(const ImportSources& sources, int64_t n_items) {
  auto items = ReadItemIds(sources, n_items);
  if (!items.ok() || static_cast<int64_t>(items->size()) == n_items) return items;
  const std::string& path = !sources.items.empty()     ? sources.items
                            : !sources.dataset.empty() ? sources.dataset
                                                       : sources.interactions;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": gives ", items->size() - 1, " item ids, the model has ", n_items - 1,
                   sources.interactions.empty()
                       ? ""
                       : "; give the --min-count that RecBole filtered users and items with"));
}

// ---- probe

// Histories with gaps from seconds to months; the standard library's distributions differ between
// implementations, so they are not used.
ProbeCase RandomHistory(const ModelConfig& config, int64_t length, std::mt19937_64* random) {
  const auto uniform = [&] { return static_cast<double>((*random)() >> 11) * 0x1p-53; };
  ProbeCase probe;
  int64_t now_ms = 978'300'000'000 + static_cast<int64_t>(uniform() * 6e11);
  for (int64_t i = 0; i < length; ++i) {
    probe.items.push_back(
        1 + static_cast<int32_t>((*random)() % static_cast<uint64_t>(config.n_items - 1)));
    probe.timestamps_ms.push_back(now_ms);
    now_ms += 1000 * static_cast<int64_t>(std::exp(uniform() * 15));
  }
  probe.as_of_ms = now_ms;
  return probe;
}

absl::Status AddProbe(PackageContents* contents) {
  constexpr int kCandidates = 8;
  std::mt19937_64 random(20240916);
  const auto maker = ProbeMaker::Create(contents->config, contents->tensors, contents->trend);
  if (!maker.ok()) return maker.status();
  const int64_t window = contents->config.max_item_list_length;
  for (const int64_t length :
       {int64_t{1}, int64_t{2}, int64_t{5}, (window + 1) / 2, window, window + 7}) {
    std::vector<ProbeCase> candidates;
    for (int i = 0; i < kCandidates; ++i) {
      candidates.push_back(RandomHistory(contents->config, length, &random));
    }
    auto probe = maker->MostStable(candidates);
    if (!probe.ok()) return probe.status();
    contents->probe.push_back(*std::move(probe));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PackageContents> ImportPublished(const ImportSources& sources) {
  PackageContents contents;
  auto tensors = ReadTensors(sources);
  if (!tensors.ok()) return tensors.status();
  contents.tensors = *std::move(tensors);
  const auto config = ReadConfig(sources, contents.tensors);
  if (!config.ok()) return config.status();
  contents.config = *config;
  if (absl::Status status = CheckTensors(*config, ViewsOf(contents.tensors)); !status.ok()) {
    return status;
  }
  auto items = ReadMatchingItems(sources, config->n_items);
  if (!items.ok()) return items.status();
  contents.items = *std::move(items);
  if (absl::Status status = AddProbe(&contents); !status.ok()) return status;
  return contents;
}

}  // namespace tim4rec
