#include "model/training/sequence_model.h"

#include <algorithm>
#include <utility>

#include "model/reference/published_model.h"
#include "model/reference/streaming_model.h"

namespace tim4rec {
namespace {

// Memories of the decaying heads start between the quartile of the positive gaps and 16 times their
// 95 % quantile.
StreamingInit InitFor(const Dataset& data) {
  const auto quantiles = PositiveGapQuantiles(data, {0.25, 0.95});
  StreamingInit init;
  init.shortest_memory_ms = quantiles[0];
  init.longest_memory_ms = 16 * quantiles[1];
  return init;
}

template <typename Holder>
class HeldModel : public SequenceModel {
 public:
  explicit HeldModel(Holder model) : model_(std::move(model)) {}
  torch::nn::Module& module() override { return *model_; }
  torch::Tensor item_vectors() override { return model_->item_vectors(); }

 protected:
  // outputs [B,L,D] -> [T,D]
  static torch::Tensor AtPositions(const torch::Tensor& outputs, const BatchTensors& batch) {
    return outputs.reshape({-1, outputs.size(2)}).index_select(0, batch.positions);
  }

  Holder model_;
};

class Streaming : public HeldModel<StreamingModel> {
 public:
  using HeldModel::HeldModel;
  torch::Tensor Queries(const BatchTensors& batch) override {
    const auto outputs = model_->forward(batch.items, batch.gaps_ms);
    return model_->Query(AtPositions(outputs, batch), batch.query_gaps);
  }
};

class Published : public HeldModel<PublishedModel> {
 public:
  using HeldModel::HeldModel;
  torch::Tensor Queries(const BatchTensors& batch) override {
    return AtPositions(model_->forward(batch.items, batch.seconds), batch);
  }
  // With time an output depends on the whole padded window, later events included.
  BatchShape batch_shape() const override {
    if (!model_->config().is_time) return {};
    return {.last_only = true, .padded_length = model_->config().max_item_list_length};
  }
};

class Sasrec : public HeldModel<SasrecModel> {
 public:
  using HeldModel::HeldModel;
  torch::Tensor Queries(const BatchTensors& batch) override {
    return AtPositions(model_->forward(batch.items), batch);
  }
};

}  // namespace

BatchTensors MakeBatchTensors(const Dataset& data, const Batch& batch, const BatchShape& shape,
                              int64_t max_gap_ms) {
  const int64_t rows = static_cast<int64_t>(batch.size());
  int64_t length = shape.padded_length;
  for (const Window& window : batch) length = std::max<int64_t>(length, window.size());
  BatchTensors tensors;
  tensors.items = torch::zeros({rows, length}, torch::kInt64);
  tensors.gaps_ms = torch::zeros({rows, length});
  tensors.seconds = torch::zeros({rows, length}, torch::kFloat64);
  std::vector<int64_t> positions, targets;
  std::vector<float> query_gaps;
  int64_t* items = tensors.items.data_ptr<int64_t>();
  float* gaps = tensors.gaps_ms.data_ptr<float>();
  double* seconds = tensors.seconds.data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) {
    const Window& window = batch[row];
    const UserHistory& history = data.users[window.user];
    for (int64_t i = window.begin; i < window.end; ++i) {
      const int64_t position = row * length + (i - window.begin);
      items[position] = history.items[i];
      gaps[position] = static_cast<float>(GapBefore(history, i, max_gap_ms));
      seconds[position] = static_cast<double>(history.timestamps_ms[i]) / 1000;
      if (shape.last_only && i + 1 < window.end) continue;
      positions.push_back(position);
      targets.push_back(history.items[i + 1]);
      query_gaps.push_back(static_cast<float>(GapBefore(history, i + 1, max_gap_ms)));
    }
  }
  tensors.positions = torch::tensor(positions);
  tensors.targets = torch::tensor(targets);
  tensors.query_gaps = torch::tensor(query_gaps);
  return tensors;
}

SasrecConfig SasrecConfigOf(const ModelConfig& config, const TrainOptions& options) {
  return {.n_items = config.n_items,
          .hidden_size = config.hidden_size,
          .num_layers = config.num_layers,
          .num_heads = options.attention_heads,
          .max_length = options.max_length,
          .dropout_prob = config.dropout_prob};
}

std::unique_ptr<SequenceModel> MakeSequenceModel(const Dataset& data, const ModelConfig& config,
                                                 const TrainOptions& options) {
  if (options.sasrec) {
    return std::make_unique<Sasrec>(SasrecModel(SasrecConfigOf(config, options)));
  }
  if (config.variant == Variant::kPublished) {
    return std::make_unique<Published>(PublishedModel(config));
  }
  return std::make_unique<Streaming>(StreamingModel(config, InitFor(data)));
}

}  // namespace tim4rec
