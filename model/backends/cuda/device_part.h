// A model on a device: the states that live there, and the calls that run there.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_PART_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_PART_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/backends/cuda/combiner.h"
#include "model/backends/cuda/device.h"
#include "model/backends/cuda/device_slab.h"
#include "model/backends/cuda/rank_input.h"
#include "model/backends/cuda/staging.h"
#include "model/engine/backend.h"

namespace tim4rec::cuda {

// Calls of many threads are combined into one launch of each kind at a time; folds, queries,
// rankings, imports and exports go on beside one another. Thread-safe as Backend is; requests are
// checked by the caller. Every fault of the device but a refused allocation loses it: all calls
// answer LostError from then on.
class DevicePart {
 public:
  struct Options {
    int64_t state_bytes;
    int64_t chunk_bytes;
    int64_t reserve_bytes;
    bool bulk_windows;  // Query encodes windows in the bulk mode, if the model has them
  };
  // Loads the model. RESOURCE_EXHAUSTED with the bytes needed and free, UNAVAILABLE with the
  // device's text.
  static absl::StatusOr<std::unique_ptr<DevicePart>> Create(std::unique_ptr<Device> device,
                                                            const kernels::Dims& dims,
                                                            const kernels::Weights& weights,
                                                            const Options& options);
  ~DevicePart();

  const char* name() const { return device_->name(); }
  bool lost() const { return fault_.load(std::memory_order_acquire) != nullptr; }
  // ABORTED, with the device's text.
  absl::Status LostError() const;

  // A slot with the empty state, or none: there is no room, or the device is lost.
  std::optional<int32_t> Allocate();
  void Release(int32_t slot) { slab_.Release(slot); }
  bool Contains(int32_t slot) const { return slab_.Contains(slot); }
  bool HasEvents(int32_t slot) const { return slab_.notes(slot).events > 0; }
  bool bulk_windows() const { return most_encoded_ > 0; }

  absl::Status Advance(std::span<const Run> runs);  // of slots here, as Backend::Advance
  // queries[i] is [D]. The slots have events.
  absl::Status Query(std::span<const QueryRequest> requests, std::span<float* const> queries);
  // kernels::TopK of each, whose pointers are host memory; none has candidates.
  absl::Status Rank(std::span<const kernels::TopKQuery> queries,
                    std::span<kernels::Scored* const> best, std::span<int32_t> found);
  absl::Status Export(std::span<const StateExport> exports);
  absl::Status Import(int32_t slot, std::span<const std::byte> record);

  // All of it but overflow_slots and host_lookups.
  DeviceStats Stats();

 private:
  struct Counters {
    std::atomic<int64_t> launches = 0, rows = 0;
    std::atomic<double> seconds = 0;

    void Add(int64_t more_rows, double more_seconds);
    DeviceWork Get() const { return {launches, rows, seconds}; }
  };
  struct FoldWork {
    std::span<const Run> runs;
    absl::Status status;
  };
  struct QueryWork {
    std::span<const QueryRequest> requests;
    std::span<float* const> queries;
    absl::Status status;
  };
  struct RankWork {
    std::span<const kernels::TopKQuery> queries;
    std::span<kernels::Scored* const> best;
    std::span<int32_t> found;
    absl::Status status;
  };
  struct RankPlace {
    kernels::Scored* best;
    int32_t* found;
  };
  struct ExportWork {
    std::span<const StateExport> exports;
    absl::Status status;
  };
  struct RankOutput {
    int32_t found[kMostRankings];
    kernels::Scored best[kMostRankings * kMostBest];
  };
  // Pinned memory of all lanes.
  struct Pinned {
    DeviceRun* runs;
    kernels::Event* events;
    DeviceQuery* requests;
    int32_t* first;
    float* queries;
    std::byte* imports;
    std::byte* exports;
    std::byte* rank_input;
    RankOutput* rank_output;
  };
  // On the device. A copy of each goes to or comes from the pinned one.
  struct OnDevice {
    std::byte* rank_input;
    RankOutput* rank_output;
  };
  // Owns both.
  struct Buffers {
    explicit Buffers(Device* device) : device(device) {}
    ~Buffers() {
      device->FreeHost(host);
      device->Free(memory);
    }
    Device* const device;
    void* host = nullptr;
    void* memory = nullptr;
    Pinned pinned = {};
    OnDevice on_device = {};
  };

  DevicePart(std::unique_ptr<Device> device, const kernels::Dims& dims, const Options& options,
             int32_t most_encoded, std::unique_ptr<const Buffers> buffers);

  // Readies the bulk mode for as many events of a launch as an eighth of `room` bytes holds: at
  // least a window's, at most kMostEncoded.
  static Fault LoadBulk(Device* device, const kernels::Dims& dims, const kernels::Weights& weights,
                        int64_t room, int32_t* most_encoded);
  // The fault, if there is one, loses the device.
  absl::Status Check(Fault fault);
  absl::Status FoldAll(std::span<FoldWork* const> works);
  absl::Status LaunchFold(int32_t runs, int32_t events);
  absl::Status QueryAll(std::span<QueryWork* const> works);
  // Makes pinned queries of places.size() pinned requests, for those places, and clears them.
  absl::Status LaunchQuery(std::vector<float*>* places);
  absl::Status RankAll(std::span<RankWork* const> works);
  // Ranks rank_input_, whose results belong to places, and clears both.
  absl::Status LaunchRank(std::vector<RankPlace>* places);
  absl::Status ExportAll(std::span<ExportWork* const> works);
  absl::Status LaunchExport(std::span<const StateExport* const> exports);

  static int64_t PlacePinned(const kernels::Dims& dims, int64_t state_bytes, void* memory,
                             Pinned* pinned);
  static int64_t PlaceOnDevice(const kernels::Dims& dims, void* memory, OnDevice* on_device);
  static int64_t RankInputBytes(const kernels::Dims& dims);
  static int64_t BoostFloats(const kernels::Dims& dims);

  const std::unique_ptr<Device> device_;
  const kernels::Dims dims_;
  const Options options_;
  const int32_t most_encoded_;  // events of windows in a launch of the bulk mode; 0: it is not used
  const std::unique_ptr<const Buffers> buffers_;
  const Pinned& pinned_;
  DeviceSlab slab_;
  Staging staging_;
  std::atomic<Fault> fault_ = nullptr;

  Combiner<FoldWork> folds_;
  Combiner<QueryWork> queries_;
  Combiner<RankWork> ranks_;
  Combiner<ExportWork> exports_;
  RankInput rank_input_;  // of whoever does the rankings

  Counters folded_, queried_, ranked_, exported_;
  std::atomic<int64_t> lookups_ = 0, bytes_out_ = 0;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_DEVICE_PART_H_
