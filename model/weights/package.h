// The model package: a directory that holds all that serving a model needs.
//
//   config.json          ModelConfig, "format_version", "fingerprint"
//   weights.safetensors  float32 tensors by name
//   items.tsv            index, item id, title, categories ('|'-separated), training events; a
//                        line of column names, then one row per item (see package_files.h)
//   probe.safetensors    histories with the float64 reference's query vectors and top items:
//                        lengths [C], items [sum of lengths], timestamps_ms [the same], as_of_ms
//                        [C], query [C,D] float64, top_lengths [C], top_items [sum]; else int64
//   trend.safetensors    only of a model with an ItemTrend, whose hash is config.json's
//                        "trend_hash": weight [1] float32, begin [V+1], day [M], count [M] float64;
//                        else int64
//   metrics.json         data, split, seeds, accuracy; not needed for serving
#ifndef TIM4REC_MODEL_WEIGHTS_PACKAGE_H_
#define TIM4REC_MODEL_WEIGHTS_PACKAGE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/weights/item_timeline.h"

namespace tim4rec {

// A float32 tensor that views memory owned by somebody else (the mapped file, or the writer's).
struct TensorView {
  std::vector<int64_t> shape;
  std::span<const float> data;  // row-major
};

struct Item {
  std::string id;
  std::string title;                    // empty if unknown
  std::vector<std::string> categories;  // empty if unknown
  int64_t train_events = 0;             // popularity
};

// The catalogue: items by index 1 … V-1 (index 0 is padding) and by id. Immutable, thread-safe.
class ItemCatalog {
 public:
  ItemCatalog() = default;
  // `items[0]` is the padding entry (its id is empty). INVALID_ARGUMENT on an id that is empty,
  // oversized (over 256 bytes), repeated or not UTF-8.
  static absl::StatusOr<ItemCatalog> Create(std::vector<Item> items);

  int64_t size() const { return static_cast<int64_t>(items_.size()); }  // V
  const Item& item(int32_t index) const { return items_[index]; }
  std::optional<int32_t> Find(std::string_view id) const;
  // Indices 1 … V-1, most training events first, ties by index.
  const std::vector<int32_t>& by_popularity() const { return by_popularity_; }
  // The items of a category, ascending; empty if no item has it.
  std::span<const int32_t> InCategory(std::string_view category) const;

 private:
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  std::vector<Item> items_;
  std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>> index_;
  std::vector<int32_t> by_popularity_;
  std::unordered_map<std::string, std::vector<int32_t>, TextHash, std::equal_to<>> categories_;
};

// One history of the probe: at least one event, timestamps ascending (equal ones allowed).
struct ProbeCase {
  std::vector<int32_t> items;
  std::vector<int64_t> timestamps_ms;
  int64_t as_of_ms = 0;
  std::vector<double> query;       // [D], float64 reference
  std::vector<int32_t> top_items;  // best first, whole catalogue, nothing excluded
};

struct PackageContents {
  ModelConfig config;
  std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>>
      tensors;              // shape, row-major data
  std::vector<Item> items;  // [V]
  std::vector<ProbeCase> probe;
  std::optional<ItemTrend> trend;
  std::string metrics_json = "{}";
};

// Writes the package into `dir` so that a reader sees the old package, the new one or none, never a
// mix: files are written to a sibling directory, synced, and renamed. INVALID_ARGUMENT on an
// invalid config, on missing, unknown, misshapen or non-finite tensors (all named in one error), on
// bad items or probe cases, and without any probe case. FAILED_PRECONDITION if `dir` exists and is
// neither empty nor a package. Other files in a package's directory are kept.
absl::Status WritePackage(const std::string& dir, const PackageContents& contents);

// An opened package: weights memory-mapped, every bound and every shape checked. Immutable,
// thread-safe.
class ModelPackage {
 public:
  // NOT_FOUND without a directory or file; INVALID_ARGUMENT naming file and fault for any malformed
  // content; DATA_LOSS if the fingerprint does not match the content.
  static absl::StatusOr<std::shared_ptr<const ModelPackage>> Open(const std::string& dir);
  // The same object from memory, for evaluation during training. Checks as WritePackage does, but
  // the probe may be empty.
  static absl::StatusOr<std::shared_ptr<const ModelPackage>> FromContents(PackageContents contents);

  virtual ~ModelPackage() = default;
  const ModelConfig& config() const { return config_; }
  const ItemCatalog& catalog() const { return catalog_; }
  // 32 hex digits over all that makes states compatible: config, time constants, weights, item ids
  // by index, layout of the state.
  const std::string& fingerprint() const { return fingerprint_; }
  const std::vector<ProbeCase>& probe() const { return probe_; }
  // What is added to the scores; null if nothing is. States do not depend on it.
  const ItemTrend* trend() const { return trend_ ? &*trend_ : nullptr; }
  const std::string& metrics_json() const { return metrics_json_; }
  // Every tensor of TensorShapes(config) is present.
  const TensorView& tensor(const std::string& name) const { return tensors_.at(name); }

 protected:
  ModelPackage() = default;
  ModelConfig config_;
  ItemCatalog catalog_;
  std::string fingerprint_;
  std::vector<ProbeCase> probe_;
  std::optional<ItemTrend> trend_;
  std::string metrics_json_;
  std::map<std::string, TensorView> tensors_;
};

// Names and shapes of the tensors that a model of this configuration has: the one list that the
// reference, the writer, the reader and the backends agree on. Streaming:
//   item_embedding.weight [V,D]; in_layer_norm.{weight,bias} [D];
//   ssd_layers.{i}.ssd.{dt_bias,A_log,D} [H], .in_proj.weight [2E+2N+H,D], .in_proj.bias,
//   .conv1d.weight [E+2N,1,K], .conv1d.bias [E+2N], .norm.weight [E], .out_proj.weight [D,E],
//   .out_proj.bias [D]; with time_write: .conv1d4time_{1,2}.weight [H,1,K], .bias [H],
//   .mlp4time_scale.1.weight [M,1], .1.bias [M], .mlp4time_scale.3.weight [H,M], .3.bias [H]; with
//   time_decay: .log_memory_ms [H] (natural log of T_h); ssd_layers.{i}.layer_norm.{weight,bias}
//   [D]; with is_ffn: ssd_layers.{i}.ffn.fc1.weight [F,D], .bias [F], .fc2.weight [D,F], .bias [D],
//   .layer_norm.{weight,bias} [D]; with time_query: query_gate.1.weight [M,1], query_gate.1.bias
//   [M], query_gate.3.weight [2D,M], .3.bias [2D].
// Published: the released code's state-dict names and shapes.
std::map<std::string, std::vector<int64_t>> TensorShapes(const ModelConfig& config);

// INVALID_ARGUMENT that lists every tensor which is missing, misshapen, not of this model, or holds
// values that are not finite.
absl::Status CheckTensors(const ModelConfig& config,
                          const std::map<std::string, TensorView>& tensors);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_PACKAGE_H_
