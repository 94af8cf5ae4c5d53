// What computes: holds the states of users in slots, folds events into them, reads queries out of
// them and ranks the catalogue. Implemented by the cpu, cuda and torch backends.
#ifndef TIM4REC_MODEL_ENGINE_BACKEND_H_
#define TIM4REC_MODEL_ENGINE_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/weights/package.h"

namespace tim4rec {

// Handle of a user's state inside one backend. Reused after Release; dense, from 0, in each kind of
// memory that the backend has.
using Slot = int32_t;

struct FoldEvent {
  int32_t item;          // 1 … V-1
  int64_t timestamp_ms;  // not below the slot's last timestamp (a smaller one counts as gap 0)
};

struct Run {
  Slot slot;
  std::span<const FoldEvent> events;  // in fold order
};

struct QueryRequest {
  Slot slot;         // at least one event folded in
  int64_t as_of_ms;  // not before the slot's last event (else counts as gap 0)
};

struct TopKRequest {
  std::span<const float> query;         // [D]
  int k = 10;                           // 1 … 1000
  std::span<const int32_t> excluded;    // ascending, distinct
  bool candidates_only = false;         // rank only `candidates`
  std::span<const int32_t> candidates;  // ascending, distinct, read if candidates_only
  // Bit v % 64 of word v / 64: whether item v may be ranked, [ceil(V/64)]. Empty: all may.
  std::span<const uint64_t> eligible;
  // Added to the items' scores in one float32 addition, [16 ceil(V/16)]; finite. Empty: nothing is.
  std::span<const float> boost;
};

struct ScoredItem {
  int32_t item;
  float score;
};

struct StateExport {
  Slot slot;
  std::span<std::byte> record;  // state_bytes() long
};

// How a query is made of a state that is a window of events (published models with time). States
// are the same either way.
enum class WindowEncoding {
  kExact,  // the same bits everywhere
  kBulk,   // on a device's matrix units, for throughput: as if weights and activations were
           // rounded to tf32, 2^-11. The cuda backend's alone; others go on as they do, and it is
           // exact itself for states that are not on its device
};

// Launches of one kind, how many requests (runs, queries, states) they did and how long they took
// on the device.
struct DeviceWork {
  int64_t launches = 0;
  int64_t rows = 0;
  double seconds = 0;
};

// What a backend tells of the device on which it computes. All but slots, memory and `lost` count
// from the start.
struct DeviceStats {
  int64_t slots_used = 0;      // states on the device
  int64_t slots_limit = 0;     // states that it could hold, with the memory that is free now
  int64_t overflow_slots = 0;  // states in main memory
  int64_t memory_used_bytes = 0, memory_bytes = 0;  // of the whole device, whoever uses it
  int64_t device_lookups = 0, host_lookups = 0;     // runs and queries by where the state was
  DeviceWork fold, query, rank, exported;
  int64_t bytes_in = 0, bytes_out = 0;  // state records, to and from the device
  bool lost = false;                    // the states that were there are, and none will be there
  std::string fault;                    // then why
};

// Thread-safety: calls on disjoint slots may run concurrently; Allocate and Release may run beside
// anything. Two calls on one slot must not overlap. A failed call leaves every state as it was, but
// for those that are lost.
//
// A state may be lost with the device that held it. Whatever is asked of its slot from then on
// fails with ABORTED, no other fault does, and the same asked of slots allocated after that goes
// well.
//
// Advance is a pure function of (model, ordered events), bit for bit the same for every backend
// with exact() true, every batch and every split of a run (kernels.h); others' are never stored.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // "cpu", "cuda", "torch"
  // What computes, where there is a choice: "scalar", "avx2", "avx512"; of torch "cpu" or "cuda".
  virtual std::string_view isa() const { return {}; }
  virtual bool exact() const = 0;           // states follow the canonical operation order
  virtual int64_t state_bytes() const = 0;  // StateLayout::bytes
  // How far queries may be from the model in float64: relative error in the Euclidean norm.
  virtual double query_bound() const { return 1e-5; }
  virtual WindowEncoding window_encoding() const { return WindowEncoding::kExact; }

  // A slot with the empty state (no events). RESOURCE_EXHAUSTED when no memory is left.
  virtual absl::StatusOr<Slot> Allocate() = 0;
  virtual void Release(Slot slot) = 0;
  // Whether the state of an allocated slot is lost.
  virtual bool Lost(Slot /*slot*/) const { return false; }

  // Folds each run into its slot; a slot appears at most once. INVALID_ARGUMENT on an item out of
  // range.
  virtual absl::Status Advance(std::span<const Run> runs) = 0;

  // Writes the query vectors [B,D]; changes no state. FAILED_PRECONDITION on a slot without events.
  virtual absl::Status Query(std::span<const QueryRequest> requests, std::span<float> queries) = 0;

  // For each request the exact k best by float32 score, boost included, best first, ties by smaller
  // item index; fewer if fewer are eligible. Never returns index 0.
  virtual absl::Status TopK(std::span<const TopKRequest> requests,
                            std::vector<std::vector<ScoredItem>>* results) = 0;

  // The state record of StateLayout, state_bytes() long. Import refuses another length.
  virtual absl::Status Export(Slot slot, std::span<std::byte> record) const = 0;
  virtual absl::Status Import(Slot slot, std::span<const std::byte> record) = 0;
  // Export of several, which a device does together.
  virtual absl::Status ExportAll(std::span<const StateExport> exports) const {
    for (const StateExport& one : exports) {
      if (absl::Status status = Export(one.slot, one.record); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Of a backend that computes on a device of its own. Any thread.
  virtual std::optional<DeviceStats> device_stats() const { return std::nullopt; }
};

inline bool IsStateLost(const absl::Status& status) {
  return status.code() == absl::StatusCode::kAborted;
}

// Makes a backend for a model; fails with the reason (for cuda without a device, the driver's own).
using BackendFactory =
    std::function<absl::StatusOr<std::unique_ptr<Backend>>(std::shared_ptr<const ModelPackage>)>;

// The backends of a binary by name, composed in model/backends and handed to the engine.
struct BackendRegistry {
  std::map<std::string, BackendFactory> factories;
  std::vector<std::string> preference;  // what "auto" tries, in order
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_ENGINE_BACKEND_H_
