#include "model/training/query_terms.h"

#include <algorithm>
#include <span>
#include <utility>

namespace tim4rec {
namespace {

constexpr float kTrendWeight = 0.5;  // where training starts; age starts at 0

}  // namespace

QueryTerms::QueryTerms(const Dataset& data, const QueryFeatures& features,
                       torch::nn::Module* module, int64_t cache_floats)
    : features_(features),
      timeline_(TimelineOf(data)),
      terms_((features.trend ? 1 : 0) + (features.age ? 1 : 0)),
      most_days_(std::max<int64_t>(1, cache_floats / (terms_ * timeline_.n_items()))) {
  auto weights = torch::zeros({terms_});
  if (features.trend) weights[0] = kTrendWeight;
  weights_ = module->register_parameter(kTermWeights, weights);
}

ScoreTerms QueryTerms::At(const torch::Tensor& query_ms) {
  std::vector<int64_t> days(query_ms.size(0));
  for (size_t i = 0; i < days.size(); ++i) days[i] = DayOf(query_ms.data_ptr<int64_t>()[i]);
  return {weights_, [this, days = std::move(days)](int64_t begin, int64_t end) {
            return Block(days, begin, end);
          }};
}

TermBlock QueryTerms::Block(const std::vector<int64_t>& days, int64_t begin, int64_t end) {
  const int64_t items = timeline_.n_items();
  TermBlock block{torch::empty({terms_, end - begin, items}), {}};
  float* values = block.values.data_ptr<float>();
  for (int64_t row = begin; row < end; ++row) {
    const std::vector<float>& day = Day(days[row]);
    for (int64_t term = 0; term < terms_; ++term) {
      std::copy_n(day.data() + term * items, items,
                  values + (term * (end - begin) + row - begin) * items);
    }
  }
  if (features_.age) block.excluded = block.values[terms_ - 1] < 0;
  return block;
}

const std::vector<float>& QueryTerms::Day(int64_t day) {
  const auto found = days_.find(day);
  if (found != days_.end()) return found->second;
  if (days_.size() >= most_days_) days_.clear();
  const size_t items = timeline_.n_items();
  std::vector<float>& values = days_[day];
  values.resize(terms_ * items);
  if (features_.trend) timeline_.Trend(day, std::span(values).first(items));
  if (features_.age) timeline_.Age(day, std::span(values).last(items));
  return values;
}

}  // namespace tim4rec
