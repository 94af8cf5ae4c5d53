#include "model/reference/reference.h"

#include <algorithm>
#include <exception>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/reference/published_model.h"
#include "model/reference/streaming_model.h"
#include "model/reference/tensors.h"

// OpenBLAS, where it is the BLAS that torch uses, has threads of its own.
extern "C" __attribute__((weak)) void openblas_set_num_threads(int threads);

namespace tim4rec {
namespace {

// What both variants share: checks, conversions and the ranking.
template <typename Model>
class TorchReference : public Reference {
 public:
  explicit TorchReference(Model model) : model_(std::move(model)) {
    model_->to(torch::kFloat64);
    model_->eval();
  }

  absl::StatusOr<std::vector<double>> Outputs(
      std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const override {
    return Checked(items, timestamps_ms, [&] { return AllOutputs(items, timestamps_ms); });
  }

  absl::StatusOr<std::vector<double>> Query(std::span<const int32_t> items,
                                            std::span<const int64_t> timestamps_ms,
                                            int64_t as_of_ms) const override {
    return Checked(items, timestamps_ms, [&] { return LastQuery(items, timestamps_ms, as_of_ms); });
  }

  std::vector<int32_t> TopItems(std::span<const double> query, int k,
                                std::span<const float> boost) const override {
    const auto table = model_->item_vectors().detach();
    const double* rows = table.template data_ptr<double>();
    const int64_t width = model_->config().hidden_size;
    std::vector<double> scores(table.size(0));
    for (int64_t v = 1; v < table.size(0); ++v) {
      scores[v] = std::inner_product(query.begin(), query.end(), rows + v * width, 0.0);
      if (!boost.empty()) scores[v] += static_cast<double>(boost[v]);
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

 protected:
  // [L,D] and [D]
  virtual torch::Tensor AllOutputs(std::span<const int32_t> items,
                                   std::span<const int64_t> timestamps_ms) const = 0;
  virtual torch::Tensor LastQuery(std::span<const int32_t> items,
                                  std::span<const int64_t> timestamps_ms,
                                  int64_t as_of_ms) const = 0;

  const ModelConfig& config() const { return model_->config(); }

  // Modules are not const-correct; evaluation mode changes nothing in them.
  mutable Model model_;

 private:
  template <typename Compute>
  absl::StatusOr<std::vector<double>> Checked(std::span<const int32_t> items,
                                              std::span<const int64_t> timestamps_ms,
                                              const Compute& compute) const {
    if (auto checked = Check(items, timestamps_ms); !checked.ok()) return checked;
    try {
      torch::NoGradGuard no_grad;
      const torch::Tensor flat = compute().contiguous();
      const double* data = flat.template data_ptr<double>();
      return std::vector<double>(data, data + flat.numel());
    } catch (const std::exception& error) {
      return absl::InternalError(absl::StrCat("reference: ", error.what()));
    }
  }

  absl::Status Check(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const {
    if (items.empty() || items.size() != timestamps_ms.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("reference: ", items.size(), " items and ", timestamps_ms.size(),
                       " timestamps; expected as many of both, at least one"));
    }
    for (const int32_t item : items) {
      if (item < 1 || item >= config().n_items) {
        return absl::InvalidArgumentError(
            absl::StrCat("reference: item ", item, " is not in 1 to ", config().n_items - 1));
      }
    }
    return absl::OkStatus();
  }
};

class StreamingReference : public TorchReference<StreamingModel> {
 public:
  using TorchReference::TorchReference;

 protected:
  torch::Tensor AllOutputs(std::span<const int32_t> items,
                           std::span<const int64_t> timestamps_ms) const override {
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

  torch::Tensor LastQuery(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms,
                          int64_t as_of_ms) const override {
    const auto gap =
        torch::tensor(static_cast<double>(Clamp(as_of_ms - timestamps_ms.back())), torch::kFloat64);
    return model_->Query(AllOutputs(items, timestamps_ms)[-1], gap);
  }

 private:
  int64_t Clamp(int64_t gap) const { return std::clamp<int64_t>(gap, 0, config().time.max_gap_ms); }
};

class PublishedReference : public TorchReference<PublishedModel> {
 public:
  using TorchReference::TorchReference;

 protected:
  torch::Tensor AllOutputs(std::span<const int32_t> items,
                           std::span<const int64_t> timestamps_ms) const override {
    if (!config().is_time) return Run(items, timestamps_ms);
    std::vector<torch::Tensor> outputs;
    for (size_t i = 1; i <= items.size(); ++i) {
      outputs.push_back(LastOfWindow(items.first(i), timestamps_ms.first(i)));
    }
    return torch::stack(outputs);
  }

  torch::Tensor LastQuery(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms,
                          int64_t) const override {
    return config().is_time ? LastOfWindow(items, timestamps_ms) : Run(items, timestamps_ms)[-1];
  }

 private:
  torch::Tensor LastOfWindow(std::span<const int32_t> items,
                             std::span<const int64_t> timestamps_ms) const {
    const size_t length =
        std::min(items.size(), static_cast<size_t>(config().max_item_list_length));
    return Run(items.last(length), timestamps_ms.last(length))[static_cast<int64_t>(length) - 1];
  }

  // [L,D], in a padded window with is_time.
  torch::Tensor Run(std::span<const int32_t> items, std::span<const int64_t> timestamps_ms) const {
    const int64_t length =
        config().is_time ? config().max_item_list_length : static_cast<int64_t>(items.size());
    const auto indices = torch::zeros({1, length}, torch::kInt64);
    const auto seconds = torch::zeros({1, length}, torch::kFloat64);
    for (size_t i = 0; i < items.size(); ++i) {
      indices.data_ptr<int64_t>()[i] = items[i];
      seconds.data_ptr<double>()[i] = static_cast<double>(timestamps_ms[i]) / 1000;
    }
    return model_->forward(indices, seconds)[0];
  }
};

template <typename TheReference, typename Model>
absl::StatusOr<std::unique_ptr<Reference>> WithWeights(Model model, const NamedTensors& tensors) {
  if (auto imported = ImportTensors(tensors, &model); !imported.ok()) return imported;
  return std::make_unique<TheReference>(std::move(model));
}

template <typename Model>
NamedTensors Perturbed(const Model& model) {
  torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) parameter.add_(torch::randn_like(parameter) * 0.05);
  model->item_vectors()[0].zero_();
  return ExportTensors(model);
}

}  // namespace

void UseTorchThreads(int threads) {
  torch::set_num_threads(threads);
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(threads);
}

NamedTensors ExportParameters(const torch::nn::Module& module) {
  NamedTensors tensors;
  for (const auto& parameter : module.named_parameters()) {
    const auto values = parameter.value().detach().to(torch::kFloat32).contiguous();
    const float* data = values.data_ptr<float>();
    tensors[parameter.key()] = {values.sizes().vec(), {data, data + values.numel()}};
  }
  return tensors;
}

absl::Status ImportParameters(const NamedTensors& tensors, torch::nn::Module* module) {
  std::vector<std::string> faults;
  const auto parameters = module->named_parameters();
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
  if (auto checked = config.Validate(); !checked.ok()) return checked;
  try {
    if (config.variant == Variant::kPublished) {
      return WithWeights<PublishedReference>(PublishedModel(config), tensors);
    }
    return WithWeights<StreamingReference>(StreamingModel(config, StreamingInit()), tensors);
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("reference: ", error.what()));
  }
}

absl::StatusOr<NamedTensors> RandomWeights(const ModelConfig& config, uint64_t seed) {
  if (auto checked = config.Validate(); !checked.ok()) return checked;
  try {
    torch::manual_seed(seed);
    if (config.variant == Variant::kPublished) return Perturbed(PublishedModel(config));
    return Perturbed(StreamingModel(config, StreamingInit()));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("reference: ", error.what()));
  }
}

}  // namespace tim4rec
