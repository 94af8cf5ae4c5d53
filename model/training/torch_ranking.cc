#include "model/training/torch_ranking.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/reference/tensors.h"
#include "model/training/sequence_model.h"

namespace tim4rec {
namespace {

constexpr int64_t kListLength = 20;
constexpr size_t kBatch = 128;
constexpr size_t kBatchEvents = 16'384;  // padding included; bounds the memory of long histories

using Lists = std::vector<std::vector<ScoredItem>>;

// One list per row of scores [n,V], best first, without items at -infinity.
void AppendLists(const torch::Tensor& scores, Lists* lists) {
  const int64_t k = std::min<int64_t>(kListLength, scores.size(1) - 1);
  const auto [values, indices] = scores.topk(k, 1);
  for (int64_t row = 0; row < scores.size(0); ++row) {
    lists->emplace_back();
    for (int64_t i = 0; i < k; ++i) {
      const float score = values[row].data_ptr<float>()[i];
      if (std::isinf(score)) break;
      lists->back().push_back({static_cast<int32_t>(indices[row].data_ptr<int64_t>()[i]), score});
    }
  }
}

Lists Rank(SequenceModel& model, std::span<const RankingCase> cases, int64_t max_events,
           int64_t max_gap_ms) {
  const auto events = [max_events](const RankingCase* ranking) {
    return std::max<size_t>(1, std::min<size_t>(ranking->history.size(), max_events));
  };
  // Histories of similar length stand in a batch; of one length in the order given.
  std::vector<const RankingCase*> order;
  for (const RankingCase& ranking : cases) order.push_back(&ranking);
  std::stable_sort(order.begin(), order.end(),
                   [&](const auto* a, const auto* b) { return events(a) < events(b); });
  const auto table = model.item_vectors();
  Lists sorted;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && end - begin < kBatch &&
           (end + 1 - begin) * events(order[end]) <= kBatchEvents) {
      ++end;
    }
    const auto batch =
        MakeRankingTensors(std::span(order).subspan(begin, end - begin), max_events, max_gap_ms);
    TermBlock terms;
    AppendLists(BlockScores(model.Queries(batch), table, model.Terms(batch), 0,
                            static_cast<int64_t>(end - begin), &terms),
                &sorted);
    begin = end;
  }
  Lists top(cases.size());
  for (size_t i = 0; i < order.size(); ++i) top[order[i] - cases.data()] = std::move(sorted[i]);
  return top;
}

}  // namespace

absl::StatusOr<RankingResult> EvaluateWithTorch(const Dataset& data, const ModelConfig& config,
                                                const TrainOptions& options,
                                                const TrainedTensors& tensors,
                                                std::span<const RankingCase> cases) {
  if (!options.sasrec && config.variant != Variant::kStreaming) {
    return absl::InvalidArgumentError("ranking with libtorch: the published variant is served");
  }
  try {
    const torch::NoGradGuard no_grad;
    // Initial values are drawn and overwritten: a run's random numbers must not depend on it.
    auto generator = at::detail::getDefaultCPUGenerator();
    const auto random_state = generator.get_state();
    const auto model = MakeSequenceModel(data, config, options);
    generator.set_state(random_state);
    if (auto imported = ImportParameters(tensors, &model->module()); !imported.ok()) {
      return imported;
    }
    model->module().eval();
    const int64_t seen = options.sasrec ? options.max_length : std::numeric_limits<int64_t>::max();
    return MeterRanking(cases, Rank(*model, cases, seen, config.time.max_gap_ms));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("ranking with libtorch: ", error.what()));
  }
}

}  // namespace tim4rec
