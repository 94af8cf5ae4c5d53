// trend.safetensors of a package. Used by package.cc alone.
#ifndef TIM4REC_MODEL_WEIGHTS_TREND_FILE_H_
#define TIM4REC_MODEL_WEIGHTS_TREND_FILE_H_

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/weights/item_timeline.h"

namespace tim4rec {

// INVALID_ARGUMENT unless the weight is finite and the timeline is one of `n_items` items, the
// first of them padding.
absl::Status CheckTrend(const ItemTrend& trend, int64_t n_items);

std::string FormatTrend(const ItemTrend& trend);
// INVALID_ARGUMENT for anything malformed.
absl::StatusOr<ItemTrend> ParseTrend(std::span<const std::byte> bytes, int64_t n_items);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_TREND_FILE_H_
