#include "model/backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/backends/cpu/blocked_model.h"
#include "model/backends/cpu/isa.h"
#include "model/backends/cpu/state_slab.h"
#include "model/backends/packed_model.h"
#include "model/backends/request_checks.h"
#include "model/kernels/kernels.h"

namespace tim4rec {
namespace {

absl::Status CheckCpu() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
    return absl::FailedPreconditionError(
        "the cpu backend needs a CPU with AVX2, FMA and BMI2 (x86-64-v3: Intel since Haswell, AMD "
        "since Zen); this one lacks them");
  }
#endif
  return absl::OkStatus();
}

// Each thread keeps what its largest call needed. 64-byte aligned.
float* ThreadScratch(int64_t floats) {
  struct alignas(64) Line {
    float floats[16];
  };
  static thread_local std::vector<Line> scratch;
  const size_t lines = (static_cast<size_t>(floats) + 15) / 16;
  if (scratch.size() < lines) scratch.resize(lines);
  return scratch.data()->floats;
}

// So do these.
template <typename T>
std::vector<T>& ThreadLocal() {
  static thread_local std::vector<T> values;
  return values;
}

int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

class CpuBackend : public Backend {
 public:
  // Without `kernel_set`, scalar code computes.
  CpuBackend(const ModelConfig& config, std::unique_ptr<const PackedModel> model,
             const kernels::KernelSet* kernel_set, int64_t state_bytes)
      : config_(config),
        model_(std::move(model)),
        dims_(model_->dims()),
        kernel_set_(kernel_set),
        state_bytes_(state_bytes),
        scratch_floats_(dims_.window > 0 ? kernels::WindowScratchFloats(dims_)
                                         : kernels::ScratchFloats(dims_)),
        slab_(SlotBytes(dims_, state_bytes)) {
    if (kernel_set_ == nullptr) return;
    blocked_ = std::make_unique<BlockedModel>(dims_, model_->weights());
    fold_scratch_floats_ = kernel_set_->fold_scratch_floats(dims_);
    if (dims_.window > 0) {  // see FoldWindow
      scratch_floats_ = RoundUp16(scratch_floats_) +
                        RoundUp16(int64_t{dims_.layers} * dims_.window * dims_.h) +
                        RoundUp16(kernels::WindowRecordFloats(dims_)) + fold_scratch_floats_;
    }
  }

  std::string_view name() const override { return "cpu"; }
  std::string_view isa() const override {
    return kernel_set_ == nullptr ? "scalar" : kernel_set_->isa;
  }
  bool exact() const override { return true; }
  int64_t state_bytes() const override { return state_bytes_; }

  absl::StatusOr<Slot> Allocate() override { return slab_.Allocate(); }
  void Release(Slot slot) override { slab_.Release(slot); }

  absl::Status Advance(std::span<const Run> runs) override {
    for (size_t r = 0; r < runs.size(); ++r) {
      if (absl::Status status = CheckRun(runs[r], r); !status.ok()) return status;
    }
    if (kernel_set_ != nullptr && dims_.window == 0) {
      Fold(runs);
      return absl::OkStatus();
    }
    float* scratch = ThreadScratch(scratch_floats_);
    std::vector<kernels::Event>& events = ThreadLocal<kernels::Event>();
    for (const Run& run : runs) {
      events.clear();
      for (const FoldEvent& event : run.events) events.push_back({event.item, event.timestamp_ms});
      const auto count = static_cast<int64_t>(events.size());
      if (dims_.window > 0) {
        kernels::PushWindow(dims_, events.data(), count, State(run.slot));
        Encoding(run.slot)->valid = false;
      } else {
        kernels::Scan(dims_, model_->weights(), events.data(), count, State(run.slot), scratch);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Query(std::span<const QueryRequest> requests, std::span<float> queries) override {
    const size_t d = static_cast<size_t>(dims_.d);
    absl::Status sized = CheckQueries(requests.size(), queries.size(), config_);
    if (!sized.ok()) return sized;
    for (size_t i = 0; i < requests.size(); ++i) {
      const Slot slot = requests[i].slot;
      if (!slab_.Contains(slot)) return BadSlot("requests", i, slot);
      if (State(slot)->folded_events == 0) return NoEvent(i, slot);
    }
    float* scratch = ThreadScratch(scratch_floats_);
    for (size_t i = 0; i < requests.size(); ++i) {
      if (dims_.window > 0) {
        std::memcpy(queries.data() + i * d, EncodedQuery(requests[i].slot, scratch),
                    d * sizeof(float));
        continue;
      }
      kernels::Query(dims_, model_->weights(), State(requests[i].slot), requests[i].as_of_ms,
                     scratch, queries.data() + i * d);
    }
    return absl::OkStatus();
  }

  absl::Status TopK(std::span<const TopKRequest> requests,
                    std::vector<std::vector<ScoredItem>>* results) override {
    for (size_t i = 0; i < requests.size(); ++i) {
      absl::Status checked = CheckTopK(requests[i], i, config_);
      if (!checked.ok()) return checked;
    }
    results->resize(requests.size());
    std::vector<kernels::TopKQuery>& queries = ThreadLocal<kernels::TopKQuery>();
    std::vector<kernels::Scored*>& best = ThreadLocal<kernels::Scored*>();
    std::vector<kernels::Scored>& scored = ThreadLocal<kernels::Scored>();
    std::vector<int32_t>& found = ThreadLocal<int32_t>();
    queries.clear();
    size_t places = 0;
    for (const TopKRequest& request : requests) {
      kernels::TopKQuery& query = queries.emplace_back();
      query.query = request.query.data();
      query.k = request.k;
      query.excluded = request.excluded.data();
      query.excluded_count = static_cast<int64_t>(request.excluded.size());
      query.candidates_only = request.candidates_only;
      query.candidates = request.candidates.data();
      query.candidate_count = static_cast<int64_t>(request.candidates.size());
      if (!request.eligible.empty()) query.eligible = request.eligible.data();
      if (!request.boost.empty()) query.boost = request.boost.data();
      places += static_cast<size_t>(request.k);
    }
    scored.resize(places);
    found.resize(requests.size());
    best.clear();
    for (kernels::Scored* place = scored.data(); const TopKRequest& request : requests) {
      best.push_back(place);
      place += request.k;
    }
    Rank(queries, best, &found);
    for (size_t i = 0; i < requests.size(); ++i) {
      std::vector<ScoredItem>& result = (*results)[i];
      result.clear();
      for (int32_t j = 0; j < found[i]; ++j) result.push_back({best[i][j].item, best[i][j].score});
    }
    return absl::OkStatus();
  }

  absl::Status Export(Slot slot, std::span<std::byte> record) const override {
    if (absl::Status status = CheckSlotRecord(slot, record.size()); !status.ok()) return status;
    std::memcpy(record.data(), slab_.record(slot), record.size());
    return absl::OkStatus();
  }

  absl::Status Import(Slot slot, std::span<const std::byte> record) override {
    if (absl::Status status = CheckSlotRecord(slot, record.size()); !status.ok()) return status;
    if (absl::Status status = CheckRecord(record, config_); !status.ok()) return status;
    std::memcpy(slab_.record(slot), record.data(), record.size());
    if (dims_.window > 0) Encoding(slot)->valid = false;
    return absl::OkStatus();
  }

 private:
  void Rank(const std::vector<kernels::TopKQuery>& queries,
            const std::vector<kernels::Scored*>& best, std::vector<int32_t>* found) {
    const auto count = static_cast<int64_t>(queries.size());
    if (kernel_set_ != nullptr) {
      float* scratch = ThreadScratch(kernel_set_->rank_scratch_floats(dims_.d, count));
      kernel_set_->rank(blocked_->items(), queries.data(), count, best.data(), found->data(),
                        scratch);
      return;
    }
    for (size_t i = 0; i < queries.size(); ++i) {
      (*found)[i] =
          kernels::TopK(model_->packed_items(), dims_.items, dims_.d, queries[i], best[i]);
    }
  }

  void Fold(std::span<const Run> runs) {
    std::vector<kernels::Event>& events = ThreadLocal<kernels::Event>();
    std::vector<kernels::FoldRun>& fold_runs = ThreadLocal<kernels::FoldRun>();
    events.clear();
    fold_runs.clear();
    for (const Run& run : runs) {
      for (const FoldEvent& event : run.events) events.push_back({event.item, event.timestamp_ms});
    }
    const kernels::Event* next = events.data();
    for (const Run& run : runs) {
      const auto count = static_cast<int64_t>(run.events.size());
      fold_runs.push_back({State(run.slot), next, count});
      next += count;
    }
    kernel_set_->fold(dims_, model_->weights(), blocked_->layers(), fold_runs.data(),
                      static_cast<int64_t>(fold_runs.size()), ThreadScratch(fold_scratch_floats_));
  }

  // Follows a window's record in its slot: the query vector [D] that the window encodes to, which
  // is not part of the exported state. Made when a query needs it, once per change. Zero: not made.
  struct WindowEncoding {
    int64_t valid;
    int64_t unused;

    float* query() { return reinterpret_cast<float*>(this + 1); }
  };

  static int64_t SlotBytes(const kernels::Dims& dims, int64_t state_bytes) {
    if (dims.window == 0) return state_bytes;
    const int64_t query_bytes = 4 * static_cast<int64_t>(dims.d);
    return state_bytes + static_cast<int64_t>(sizeof(WindowEncoding)) +
           (query_bytes + 15) / 16 * 16;
  }

  WindowEncoding* Encoding(Slot slot) const {
    return reinterpret_cast<WindowEncoding*>(slab_.record(slot) + state_bytes_);
  }

  // kernels::EncodeWindow by the kernel set.
  void FoldWindow(const kernels::StateHeader* state, float* scratch, float* query) const {
    std::vector<kernels::Event>& events = ThreadLocal<kernels::Event>();
    events.resize(static_cast<size_t>(dims_.window));
    const int64_t count = kernels::WindowEvents(dims_, state, events.data());
    const int64_t write_floats = RoundUp16(int64_t{dims_.layers} * dims_.window * dims_.h);
    const int64_t record_floats = RoundUp16(kernels::WindowRecordFloats(dims_));
    float* writes = scratch + RoundUp16(kernels::WindowScratchFloats(dims_));
    float* record = writes + write_floats;
    kernels::WindowWrites(dims_, model_->weights(), state, scratch, writes);
    std::memset(record, 0, sizeof(float) * static_cast<size_t>(record_floats));
    const kernels::FoldRun run = {reinterpret_cast<kernels::StateHeader*>(record), events.data(),
                                  count, writes};
    kernel_set_->fold(dims_, model_->weights(), blocked_->layers(), &run, 1,
                      record + record_floats);
    const float* tensors = record + sizeof(kernels::StateHeader) / sizeof(float);
    std::memcpy(query, tensors + dims_.output_offset, sizeof(float) * static_cast<size_t>(dims_.d));
  }

  const float* EncodedQuery(Slot slot, float* scratch) const {
    WindowEncoding* encoding = Encoding(slot);
    if (!encoding->valid) {
      if (kernel_set_ == nullptr) {
        kernels::EncodeWindow(dims_, model_->weights(), State(slot), scratch, encoding->query());
      } else {
        FoldWindow(State(slot), scratch, encoding->query());
      }
      encoding->valid = true;
    }
    return encoding->query();
  }

  kernels::StateHeader* State(Slot slot) const {
    return reinterpret_cast<kernels::StateHeader*>(slab_.record(slot));
  }

  absl::Status CheckRun(const Run& run, size_t index) const {
    if (!slab_.Contains(run.slot)) return BadSlot("runs", index, run.slot);
    return CheckEvents(run, index, dims_.items);
  }

  absl::Status CheckSlotRecord(Slot slot, size_t bytes) const {
    if (slab_.Contains(slot)) return CheckRecordSize(bytes, state_bytes_);
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " is not allocated"));
  }

  const ModelConfig config_;
  const std::unique_ptr<const PackedModel> model_;
  const kernels::Dims dims_;
  const kernels::KernelSet* const kernel_set_;  // null: scalar
  const int64_t state_bytes_;
  int64_t scratch_floats_;                       // of Advance without a kernel set, and of Query
  std::unique_ptr<const BlockedModel> blocked_;  // null: scalar
  int64_t fold_scratch_floats_ = 0;
  StateSlab slab_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(
    std::shared_ptr<const ModelPackage> package) {
  if (absl::Status status = CheckCpu(); !status.ok()) return status;
  const absl::StatusOr<const kernels::KernelSet*> kernel_set = ChooseKernelSet();
  if (!kernel_set.ok()) return kernel_set.status();
  const ModelConfig config = package->config();
  return std::make_unique<CpuBackend>(
      config, PackedModel::Create(std::move(package), /*pack_items=*/*kernel_set == nullptr),
      *kernel_set, StateLayout::Of(config).bytes);
}

}  // namespace tim4rec
