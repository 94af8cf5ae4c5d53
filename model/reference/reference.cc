#include "model/reference/reference.h"

#include <algorithm>
#include <exception>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/reference/streaming_model.h"
#include "model/reference/tensors.h"

namespace tim4rec {
namespace {

class TorchReference : public Reference {
 public:
  explicit TorchReference(StreamingModel model) : model_(std::move(model)) {
    model_->to(torch::kFloat64);
    model_->eval();
  }

  absl::StatusOr<std::vector<double>> Outputs(
      std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const override {
    if (auto checked = Check(items, timestamps_ms); !checked.ok()) return checked;
    try {
      return ToVector(Run(items, timestamps_ms));
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat("reference: ", error.what()));
    }
  }

  absl::StatusOr<std::vector<double>> Query(std::span<const int32_t> items,
                                            std::span<const int64_t> timestamps_ms,
                                            int64_t as_of_ms) const override {
    if (auto checked = Check(items, timestamps_ms); !checked.ok()) return checked;
    try {
      torch::NoGradGuard no_grad;
      const auto last = Run(items, timestamps_ms)[-1];
      const auto gap = torch::tensor(static_cast<double>(Clamp(as_of_ms - timestamps_ms.back())),
                                     torch::kFloat64);
      return ToVector(model_->Query(last, gap));
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat("reference: ", error.what()));
    }
  }

  std::vector<int32_t> TopItems(std::span<const double> query, int k) const override {
    const auto table = model_->item_vectors().detach();
    const double* rows = table.data_ptr<double>();
    const int64_t width = model_->config().hidden_size;
    std::vector<double> scores(table.size(0));
    for (int64_t v = 1; v < table.size(0); ++v) {
      scores[v] = std::inner_product(query.begin(), query.end(), rows + v * width, 0.0);
    }
    std::vector<int32_t> order(table.size(0) - 1);
    std::iota(order.begin(), order.end(), 1);
    const auto best = order.begin() + std::min<int64_t>(k, order.size());
    std::partial_sort(order.begin(), best, order.end(), [&](int32_t a, int32_t b) {
      return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    });
    order.erase(best, order.end());
    return order;
  }

 private:
  absl::Status Check(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const {
    if (items.empty() || items.size() != timestamps_ms.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("reference: ", items.size(), " items and ", timestamps_ms.size(),
                       " timestamps; expected as many of both, at least one"));
    }
    for (const int32_t item : items) {
      if (item < 1 || item >= model_->config().n_items) {
        return absl::InvalidArgumentError(absl::StrCat("reference: item ", item, " is not in 1 to ",
                                                       model_->config().n_items - 1));
      }
    }
    return absl::OkStatus();
  }

  int64_t Clamp(int64_t gap) const {
    return std::clamp<int64_t>(gap, 0, model_->config().time.max_gap_ms);
  }

  // [L,D]
  torch::Tensor Run(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const {
    torch::NoGradGuard no_grad;
    const int64_t length = static_cast<int64_t>(items.size());
    const auto indices = torch::empty({1, length}, torch::kInt64);
    const auto gaps = torch::zeros({1, length}, torch::kFloat64);
    for (int64_t i = 0; i < length; ++i) {
      indices.data_ptr<int64_t>()[i] = items[i];
      if (i > 0) {
        gaps.data_ptr<double>()[i] =
            static_cast<double>(Clamp(timestamps_ms[i] - timestamps_ms[i - 1]));
      }
    }
    return model_->forward(indices, gaps)[0];
  }

  static std::vector<double> ToVector(const torch::Tensor& tensor) {
    const auto flat = tensor.contiguous();
    return {flat.data_ptr<double>(), flat.data_ptr<double>() + flat.numel()};
  }

  // Modules are not const-correct; evaluation mode changes nothing in them.
  mutable StreamingModel model_;
};

absl::Status CheckVariant(const ModelConfig& config) {
  if (config.variant != Variant::kStreaming) {
    return absl::InvalidArgumentError("the reference computes the streaming variant only");
  }
  return config.Validate();
}

}  // namespace

NamedTensors ExportTensors(const StreamingModel& model) {
  NamedTensors tensors;
  for (const auto& parameter : model->named_parameters()) {
    const auto values = parameter.value().detach().to(torch::kFloat32).contiguous();
    const float* data = values.data_ptr<float>();
    tensors[parameter.key()] = {values.sizes().vec(), {data, data + values.numel()}};
  }
  return tensors;
}

absl::Status ImportTensors(const NamedTensors& tensors, StreamingModel* model) {
  std::vector<std::string> faults;
  const auto parameters = (*model)->named_parameters();
  for (const auto& parameter : parameters) {
    const auto found = tensors.find(parameter.key());
    if (found == tensors.end()) {
      faults.push_back(absl::StrCat(parameter.key(), " is missing"));
    } else if (found->second.first != parameter.value().sizes().vec()) {
      faults.push_back(absl::StrCat(parameter.key(), " has the shape [",
                                    absl::StrJoin(found->second.first, ","), "], expected [",
                                    absl::StrJoin(parameter.value().sizes(), ","), "]"));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (!parameters.contains(name)) faults.push_back(absl::StrCat(name, " is unknown"));
  }
  if (!faults.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("weights: ", absl::StrJoin(faults, "; ")));
  }
  torch::NoGradGuard no_grad;
  for (const auto& parameter : parameters) {
    const auto& [shape, data] = tensors.at(parameter.key());
    parameter.value().copy_(
        torch::from_blob(const_cast<float*>(data.data()), shape, torch::kFloat32));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Reference>> Reference::Create(const ModelConfig& config,
                                                             const NamedTensors& tensors) {
  if (auto checked = CheckVariant(config); !checked.ok()) return checked;
  try {
    StreamingModel model(config, StreamingInit());
    if (auto imported = ImportTensors(tensors, &model); !imported.ok()) return imported;
    return std::make_unique<TorchReference>(std::move(model));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("reference: ", error.what()));
  }
}

absl::StatusOr<NamedTensors> RandomWeights(const ModelConfig& config, uint64_t seed) {
  if (auto checked = CheckVariant(config); !checked.ok()) return checked;
  try {
    torch::manual_seed(seed);
    StreamingModel model(config, StreamingInit());
    torch::NoGradGuard no_grad;
    for (auto& parameter : model->parameters()) {
      parameter.add_(torch::randn_like(parameter) * 0.05);
    }
    model->item_vectors()[0].zero_();
    return ExportTensors(model);
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("reference: ", error.what()));
  }
}

}  // namespace tim4rec
