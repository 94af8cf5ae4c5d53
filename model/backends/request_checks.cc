#include "model/backends/request_checks.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

constexpr int kMaxK = 1000;

absl::Status CheckAscending(std::span<const int32_t> items, const std::string& field) {
  for (size_t i = 1; i < items.size(); ++i) {
    if (items[i - 1] >= items[i]) {
      return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is ", items[i], " after ",
                                                     items[i - 1],
                                                     ", must be ascending and distinct"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status BadSlot(const char* field, size_t index, Slot slot) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, "[", index, "].slot ", slot, " is not allocated"));
}

absl::Status CheckEvents(const Run& run, size_t index, int64_t n_items) {
  for (size_t i = 0; i < run.events.size(); ++i) {
    if (run.events[i].item < 1 || run.events[i].item >= n_items) {
      return absl::InvalidArgumentError(absl::StrCat("runs[", index, "].events[", i, "].item is ",
                                                     run.events[i].item, ", allowed 1 to ",
                                                     n_items - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckQueries(size_t requests, size_t values, const ModelConfig& config) {
  const size_t needed = requests * static_cast<size_t>(config.hidden_size);
  if (values == needed) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("queries has ", values, " values, ", requests, " requests need ", needed));
}

absl::Status NoEvent(size_t index, Slot slot) {
  return absl::FailedPreconditionError(
      absl::StrCat("requests[", index, "].slot ", slot, " has no event folded in"));
}

absl::Status CheckTopK(const TopKRequest& request, size_t index, const ModelConfig& config) {
  const std::string field = absl::StrCat("requests[", index, "]");
  if (request.query.size() != static_cast<size_t>(config.hidden_size)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".query has ", request.query.size(),
                                                   " values, must have ", config.hidden_size));
  }
  if (request.k < 1 || request.k > kMaxK) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".k is ", request.k, ", allowed 1 to ", kMaxK));
  }
  if (absl::Status status = CheckAscending(request.excluded, field + ".excluded"); !status.ok()) {
    return status;
  }
  const size_t words = (static_cast<size_t>(config.n_items) + 63) / 64;
  if (!request.eligible.empty() && request.eligible.size() != words) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".eligible has ", request.eligible.size(),
                                                   " words, must have none or ", words));
  }
  const size_t boosts = (static_cast<size_t>(config.n_items) + 15) / 16 * 16;
  if (!request.boost.empty() && request.boost.size() != boosts) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".boost has ", request.boost.size(),
                                                   " values, must have none or ", boosts));
  }
  if (!request.candidates_only || request.candidates.empty()) return absl::OkStatus();
  if (request.candidates.front() < 1 || request.candidates.back() >= config.n_items) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".candidates range from ", request.candidates.front(), " to ",
                     request.candidates.back(), ", allowed 1 to ", config.n_items - 1));
  }
  return CheckAscending(request.candidates, field + ".candidates");
}

absl::Status CheckRecordSize(size_t bytes, int64_t state_bytes) {
  if (bytes == static_cast<size_t>(state_bytes)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the record has ", bytes, " bytes, this model's have ", state_bytes));
}

absl::Status CheckRecord(std::span<const std::byte> record, const ModelConfig& config) {
  int64_t folded_events;
  std::memcpy(&folded_events, record.data() + sizeof(int64_t), sizeof(folded_events));
  if (folded_events < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the record's folded_events is ", folded_events));
  }
  if (!config.has_window()) return absl::OkStatus();
  const int64_t window = config.max_item_list_length;
  for (int64_t i = 0; i < std::min(folded_events, window); ++i) {
    int32_t item;
    const size_t offset = static_cast<size_t>(StateLayout::kHeaderBytes) +
                          static_cast<size_t>(window) * sizeof(int64_t) +
                          static_cast<size_t>(i) * sizeof(item);
    std::memcpy(&item, record.data() + offset, sizeof(item));
    if (item < 1 || item >= config.n_items) {
      return absl::InvalidArgumentError(absl::StrCat("the record's item ", i, " is ", item,
                                                     ", allowed 1 to ", config.n_items - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace tim4rec
