#include "model/training/baseline.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/reference/tensors.h"
#include "model/training/sequence_model.h"

namespace tim4rec {
namespace {

constexpr int64_t kListLength = 20;
constexpr size_t kBatch = 128;

// Outputs [B,D] after the last event of each history.
torch::Tensor LastOutputs(SasrecModel& model, std::span<const RankingCase> cases) {
  const int64_t rows = static_cast<int64_t>(cases.size());
  std::vector<int64_t> lengths;
  for (const RankingCase& ranking : cases) {
    lengths.push_back(std::min<int64_t>(ranking.history.size(), model->config().max_length));
  }
  const int64_t longest = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  const auto items = torch::zeros({rows, longest}, torch::kInt64);
  std::vector<int64_t> last;
  for (int64_t row = 0; row < rows; ++row) {
    const auto& history = cases[row].history;
    for (int64_t i = 0; i < lengths[row]; ++i) {
      items.data_ptr<int64_t>()[row * longest + i] =
          history[history.size() - lengths[row] + i].item;
    }
    last.push_back(row * longest + std::max<int64_t>(0, lengths[row] - 1));
  }
  return model->forward(items)
      .reshape({-1, model->config().hidden_size})
      .index_select(0, torch::tensor(last));
}

std::vector<std::vector<ScoredItem>> Rank(SasrecModel& model, std::span<const RankingCase> cases) {
  const auto table = model->item_vectors().t();
  const int64_t k = std::min<int64_t>(kListLength, table.size(1) - 1);
  std::vector<std::vector<ScoredItem>> top;
  for (size_t begin = 0; begin < cases.size(); begin += kBatch) {
    const auto batch = cases.subspan(begin, std::min(kBatch, cases.size() - begin));
    auto scores = LastOutputs(model, batch).mm(table);
    scores.select(1, 0).fill_(-std::numeric_limits<float>::infinity());
    const auto [values, indices] = scores.topk(k, 1);
    const auto rows = static_cast<int64_t>(batch.size());
    for (int64_t row = 0; row < rows; ++row) {
      top.emplace_back();
      for (int64_t i = 0; i < k; ++i) {
        top.back().push_back({static_cast<int32_t>(indices[row].data_ptr<int64_t>()[i]),
                              values[row].data_ptr<float>()[i]});
      }
    }
  }
  return top;
}

}  // namespace

absl::StatusOr<RankingResult> EvaluateSasrec(const ModelConfig& config, const TrainOptions& options,
                                             const TrainedTensors& tensors,
                                             std::span<const RankingCase> cases) {
  try {
    const torch::NoGradGuard no_grad;
    // Initial values are drawn and overwritten: a run's random numbers must not depend on it.
    auto generator = at::detail::getDefaultCPUGenerator();
    const auto random_state = generator.get_state();
    SasrecModel model(SasrecConfigOf(config, options));
    generator.set_state(random_state);
    if (auto imported = ImportTensors(tensors, &model); !imported.ok()) return imported;
    model->eval();
    return MeterRanking(cases, Rank(model, cases));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("ranking with SASRec: ", error.what()));
  }
}

}  // namespace tim4rec
