#include "model/engine/state_check.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "model/engine/new_slot.h"

namespace tim4rec {
namespace {

// A run of values of one kind in a record.
struct Field {
  std::string name;
  int64_t offset = 0;  // in bytes
  enum { kInt64, kInt32, kFloat } kind = kFloat;
  std::vector<int64_t> shape;  // empty: a single value

  int64_t value_bytes() const { return kind == kInt64 ? 8 : 4; }
  int64_t bytes() const {
    int64_t bytes = value_bytes();
    for (const int64_t extent : shape) bytes *= extent;
    return bytes;
  }
};

// In order of offset; what lies between them is padding.
std::vector<Field> FieldsOf(const ModelConfig& config) {
  const StateLayout layout = StateLayout::Of(config);
  std::vector<Field> fields = {{"last_timestamp_ms", 0, Field::kInt64, {}},
                               {"folded_events", 8, Field::kInt64, {}}};
  const auto at = [](int64_t floats) { return StateLayout::kHeaderBytes + 4 * floats; };
  if (config.has_window()) {
    const int64_t window = config.max_item_list_length;
    fields.push_back({"window timestamps", at(0), Field::kInt64, {window}});
    fields.push_back({"window items", at(layout.window_items_offset), Field::kInt32, {window}});
    return fields;
  }
  const int64_t tail = config.d_conv - 1;
  const bool time_tails = layout.time_conv2_offset > layout.time_conv1_offset;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const int64_t base = l * layout.layer_floats;
    const auto tensor = [&](const char* name, int64_t offset, std::vector<int64_t> shape) {
      fields.push_back(
          {absl::StrCat("layer ", l, " ", name), at(base + offset), Field::kFloat, shape});
    };
    tensor("S", layout.ssm_offset, {config.num_heads(), config.d_state, config.head_dim});
    tensor("conv", layout.conv_offset, {tail, config.conv_size()});
    if (!time_tails) continue;
    tensor("time_conv1", layout.time_conv1_offset, {tail, config.num_heads()});
    tensor("time_conv2", layout.time_conv2_offset, {tail, config.num_heads()});
  }
  fields.push_back({"output", at(layout.output_offset), Field::kFloat, {config.hidden_size}});
  return fields;
}

template <typename T>
T Load(std::string_view record, int64_t offset) {
  T value;
  std::memcpy(&value, record.data() + offset, sizeof value);
  return value;
}

std::string ValueText(const Field& field, std::string_view record, int64_t offset) {
  if (field.kind == Field::kInt64) return absl::StrCat(Load<int64_t>(record, offset));
  if (field.kind == Field::kInt32) return absl::StrCat(Load<int32_t>(record, offset));
  return absl::StrFormat("%.9g (0x%08x)", Load<float>(record, offset),
                         Load<uint32_t>(record, offset));
}

std::string IndexText(const Field& field, int64_t index) {
  std::vector<int64_t> indices(field.shape.size());
  for (size_t d = field.shape.size(); d-- > 0; index /= field.shape[d]) {
    indices[d] = index % field.shape[d];
  }
  return indices.empty() ? "" : absl::StrCat("[", absl::StrJoin(indices, ","), "]");
}

}  // namespace

absl::StatusOr<std::string> FoldFrom(const Engine& engine, std::string_view base,
                                     std::span<const FoldEvent> events) {
  Backend& backend = engine.backend();
  for (;;) {
    const auto slot = NewSlot(backend, base);
    if (!slot.ok()) return slot.status();
    const absl::Cleanup release = [&] { backend.Release(*slot); };
    const Run run{*slot, events};
    std::string record(static_cast<size_t>(backend.state_bytes()), '\0');
    absl::Status status = backend.Advance({&run, 1});
    if (status.ok()) {
      status = backend.Export(*slot, std::as_writable_bytes(std::span(record)));
    }
    if (status.ok()) return record;
    // Lost with its device: the next is elsewhere.
    if (!IsStateLost(status)) return status;
  }
}

absl::StatusOr<std::string> FoldFromZero(const Engine& engine, std::span<const FoldEvent> events) {
  return FoldFrom(engine, "", events);
}

std::string FirstDifference(const ModelConfig& config, std::string_view expected,
                            std::string_view actual) {
  if (expected.size() != actual.size()) {
    return absl::StrCat(actual.size(), " bytes instead of ", expected.size());
  }
  const auto parts = std::mismatch(expected.begin(), expected.end(), actual.begin());
  if (parts.first == expected.end()) return "";
  const int64_t byte = parts.first - expected.begin();
  for (const Field& field : FieldsOf(config)) {
    if (byte < field.offset || byte >= field.offset + field.bytes()) continue;
    const int64_t index = (byte - field.offset) / field.value_bytes();
    const int64_t offset = field.offset + index * field.value_bytes();
    return absl::StrCat(field.name, IndexText(field, index), ": ", ValueText(field, actual, offset),
                        " instead of ", ValueText(field, expected, offset));
  }
  return absl::StrCat("padding at byte ", byte, " is not what it was");
}

}  // namespace tim4rec
