#include "model/training/sequence_model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "model/reference/published_model.h"
#include "model/reference/streaming_model.h"
#include "model/training/query_terms.h"

namespace tim4rec {
namespace {

// So long a memory, in units of the longest gap, that real time takes at most 1 % off a state.
constexpr double kOff = 100;

StreamingInit InitFor(const Dataset& data, const ModelConfig& config, const TrainOptions& options) {
  StreamingInit init;
  if (options.init == Initialisation::kLogTimescales) {
    const auto quantiles = PositiveGapQuantiles(data, {0.25, 0.95});
    init.shortest_memory_ms = quantiles[0];
    init.longest_memory_ms = 16 * quantiles[1];
  } else {
    init.shortest_memory_ms = kOff * static_cast<double>(config.time.max_gap_ms);
    init.longest_memory_ms = init.shortest_memory_ms;
  }
  if (options.init == Initialisation::kHippo) {
    // Within Mamba-2's range of Delta.
    init.hippo_length =
        static_cast<double>(std::clamp<int64_t>(MedianInputs(data, options.max_length), 10, 1000));
  }
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
  Streaming(StreamingModel model, const Dataset& data, const QueryFeatures& features)
      : HeldModel(std::move(model)) {
    const int64_t hidden = model_->config().time_hidden;
    if (features.calendar) {
      hour_ = model_->register_parameter("calendar_hour", torch::zeros({24, hidden}));
      weekday_ = model_->register_parameter("calendar_weekday", torch::zeros({7, hidden}));
    }
    if (features.trend || features.age) terms_.emplace(data, features, &*model_);
  }

  torch::Tensor Queries(const BatchTensors& batch) override {
    const auto outputs = model_->forward(batch.items, batch.gaps_ms);
    return model_->Query(AtPositions(outputs, batch), batch.query_gaps, Calendar(batch.query_ms));
  }
  ScoreTerms Terms(const BatchTensors& batch) override {
    return terms_ ? terms_->At(batch.query_ms) : ScoreTerms();
  }
  torch::Tensor term_weights() override { return terms_ ? terms_->weights() : torch::Tensor(); }

 private:
  // [T,M], or undefined without the feature.
  torch::Tensor Calendar(const torch::Tensor& query_ms) const {
    if (!hour_.defined()) return {};
    const auto hours = query_ms.div(3'600'000, "floor");
    const auto days = hours.div(24, "floor");
    const auto device = hour_.device();
    return hour_.index_select(0, hours.remainder(24).to(device)) +
           weekday_.index_select(0, days.remainder(7).to(device));
  }

  torch::Tensor hour_;     // [24,M]
  torch::Tensor weekday_;  // [7,M], from Thursday on: 1970 began with one
  std::optional<QueryTerms> terms_;
};

class Published : public HeldModel<PublishedModel> {
 public:
  using HeldModel::HeldModel;
  torch::Tensor Queries(const BatchTensors& batch) override {
    if (batch.last.defined()) return model_->LastOutputs(batch.items, batch.seconds, batch.last);
    return AtPositions(model_->forward(batch.items, batch.seconds), batch);
  }
  // With time an output depends on the whole padded window, later events included.
  BatchShape batch_shape() const override {
    if (!model_->config().is_time) return {};
    return {.last_only = true, .window = model_->config().max_item_list_length};
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

BatchTensors BatchTensors::To(torch::Device device) const {
  BatchTensors moved = *this;
  for (torch::Tensor* tensor : {&moved.items, &moved.gaps_ms, &moved.seconds, &moved.last,
                                &moved.positions, &moved.targets, &moved.query_gaps}) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
  return moved;
}

BatchTensors MakeBatchTensors(const Dataset& data, const Batch& batch, const BatchShape& shape,
                              int64_t max_gap_ms) {
  const int64_t rows = static_cast<int64_t>(batch.size());
  int64_t length = 0;
  for (const Window& window : batch) length = std::max<int64_t>(length, window.size());
  BatchTensors tensors;
  tensors.items = torch::zeros({rows, length}, torch::kInt64);
  tensors.gaps_ms = torch::zeros({rows, length});
  const int64_t seconds_length = std::max(length, shape.window);
  tensors.seconds = torch::zeros({rows, seconds_length}, torch::kFloat64);
  std::vector<int64_t> last, positions, targets;
  std::vector<float> query_gaps;
  std::vector<int64_t> query_ms;
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
      seconds[row * seconds_length + (i - window.begin)] =
          static_cast<double>(history.timestamps_ms[i]) / 1000;
      if (shape.last_only && i + 1 < window.end) continue;
      last.push_back(i - window.begin);
      positions.push_back(position);
      targets.push_back(history.items[i + 1]);
      query_gaps.push_back(static_cast<float>(GapBefore(history, i + 1, max_gap_ms)));
      query_ms.push_back(history.timestamps_ms[i + 1]);
    }
  }
  if (shape.last_only) tensors.last = torch::tensor(last);
  tensors.positions = torch::tensor(positions);
  tensors.targets = torch::tensor(targets);
  tensors.query_gaps = torch::tensor(query_gaps);
  tensors.query_ms = torch::tensor(query_ms);
  return tensors;
}

BatchTensors MakeRankingTensors(std::span<const RankingCase* const> cases, int64_t max_events,
                                int64_t max_gap_ms) {
  // One user per case, whose event after the last is the query.
  Dataset data;
  Batch batch;
  for (const RankingCase* ranking : cases) {
    auto history = std::span(ranking->history);
    UserHistory user;
    if (static_cast<int64_t>(history.size()) > max_events) history = history.last(max_events);
    for (const FoldEvent& event : history) {
      user.items.push_back(event.item);
      user.timestamps_ms.push_back(event.timestamp_ms);
    }
    if (history.empty()) {
      user.items.push_back(0);
      user.timestamps_ms.push_back(ranking->as_of_ms);
    }
    batch.push_back({static_cast<int32_t>(batch.size()), 0, static_cast<int32_t>(user.size())});
    user.items.push_back(0);
    user.timestamps_ms.push_back(ranking->as_of_ms);
    data.users.push_back(std::move(user));
  }
  return MakeBatchTensors(data, batch, {.last_only = true}, max_gap_ms);
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
  return std::make_unique<Streaming>(StreamingModel(config, InitFor(data, config, options)), data,
                                     options.query);
}

}  // namespace tim4rec
