#include "model/backends/cuda/cuda_backend.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/backends/cpu/cpu_backend.h"
#include "model/backends/cuda/bulk_bound.h"
#include "model/backends/cuda/device_part.h"
#include "model/backends/packed_model.h"
#include "model/backends/request_checks.h"

namespace tim4rec {
namespace {

using cuda::DevicePart;

// Slots of the cpu backend within are these and above.
constexpr Slot kHostSlots = cuda::DeviceSlab::kMostSlots;

class CudaBackend final : public Backend {
 public:
  // `bulk_bound`: what bulk.h allows queries of windows that are encoded in that mode.
  CudaBackend(const ModelConfig& config, std::unique_ptr<Backend> host,
              std::unique_ptr<DevicePart> device, int64_t least_device_scores, double bulk_bound)
      : config_(config),
        least_device_scores_(least_device_scores),
        bulk_bound_(bulk_bound),
        host_(std::move(host)),
        device_(std::move(device)) {}

  std::string_view name() const override { return "cuda"; }
  std::string_view isa() const override { return device_->name(); }
  bool exact() const override { return true; }
  int64_t state_bytes() const override { return host_->state_bytes(); }
  double query_bound() const override { return host_->query_bound() + bulk_bound_; }
  WindowEncoding window_encoding() const override {
    return device_->bulk_windows() ? WindowEncoding::kBulk : WindowEncoding::kExact;
  }

  absl::StatusOr<Slot> Allocate() override {
    if (const std::optional<int32_t> slot = device_->Allocate()) return *slot;
    const absl::StatusOr<Slot> slot = host_->Allocate();
    if (!slot.ok()) return slot;
    ++host_slots_;
    Slot top = host_top_;
    while (top <= *slot && !host_top_.compare_exchange_weak(top, *slot + 1)) {
    }
    return kHostSlots + *slot;
  }

  void Release(Slot slot) override {
    if (!Contains(slot)) return;
    if (slot < kHostSlots) return device_->Release(slot);
    host_->Release(slot - kHostSlots);
    --host_slots_;
  }

  bool Lost(Slot slot) const override {
    return slot < kHostSlots && device_->lost() && Contains(slot);
  }

  absl::Status Advance(std::span<const Run> runs) override {
    std::vector<Run> on_device;
    std::vector<Run> on_host;
    for (size_t r = 0; r < runs.size(); ++r) {
      if (absl::Status status = CheckEvents(runs[r], r, config_.n_items); !status.ok()) {
        return status;
      }
      if (!Contains(runs[r].slot)) return BadSlot("runs", r, runs[r].slot);
      if (runs[r].slot >= kHostSlots) {
        on_host.push_back({runs[r].slot - kHostSlots, runs[r].events});
      } else {
        on_device.push_back(runs[r]);
      }
    }
    if (!on_device.empty()) {
      if (absl::Status status = device_->Advance(on_device); !status.ok()) return status;
    }
    host_lookups_ += static_cast<int64_t>(on_host.size());
    return on_host.empty() ? absl::OkStatus() : host_->Advance(on_host);
  }

  absl::Status Query(std::span<const QueryRequest> requests, std::span<float> queries) override {
    absl::Status sized = CheckQueries(requests.size(), queries.size(), config_);
    if (!sized.ok()) return sized;
    const auto d = static_cast<size_t>(config_.hidden_size);
    std::vector<QueryRequest> on_device;
    std::vector<float*> device_queries;
    std::vector<size_t> on_host;
    for (size_t i = 0; i < requests.size(); ++i) {
      const Slot slot = requests[i].slot;
      if (!Contains(slot)) return BadSlot("requests", i, slot);
      if (slot >= kHostSlots) {
        on_host.push_back(i);
        continue;
      }
      if (device_->lost()) return device_->LostError();
      if (!device_->HasEvents(slot)) return NoEvent(i, slot);
      on_device.push_back(requests[i]);
      device_queries.push_back(queries.data() + i * d);
    }
    for (const size_t i : on_host) {
      const QueryRequest request = {requests[i].slot - kHostSlots, requests[i].as_of_ms};
      absl::Status status = host_->Query({&request, 1}, queries.subspan(i * d, d));
      if (absl::IsFailedPrecondition(status)) return NoEvent(i, requests[i].slot);
      if (!status.ok()) return status;
    }
    host_lookups_ += static_cast<int64_t>(on_host.size());
    return on_device.empty() ? absl::OkStatus() : device_->Query(on_device, device_queries);
  }

  absl::Status TopK(std::span<const TopKRequest> requests,
                    std::vector<std::vector<ScoredItem>>* results) override {
    for (size_t i = 0; i < requests.size(); ++i) {
      absl::Status checked = CheckTopK(requests[i], i, config_);
      if (!checked.ok()) return checked;
    }
    // Named candidates are a few scores each.
    const auto all = std::count_if(requests.begin(), requests.end(),
                                   [](const auto& request) { return !request.candidates_only; });
    if (device_->lost() || all * config_.n_items < least_device_scores_) {
      return host_->TopK(requests, results);
    }
    if (all == static_cast<int64_t>(requests.size())) return TopKOfAll(requests, results);
    results->resize(requests.size());
    for (const bool candidates_only : {false, true}) {
      std::vector<TopKRequest> some;
      std::vector<std::vector<ScoredItem>> some_results;
      for (const TopKRequest& request : requests) {
        if (request.candidates_only == candidates_only) some.push_back(request);
      }
      absl::Status status =
          candidates_only ? host_->TopK(some, &some_results) : TopKOfAll(some, &some_results);
      if (!status.ok()) return status;
      for (size_t i = 0, next = 0; i < requests.size(); ++i) {
        if (requests[i].candidates_only == candidates_only) {
          (*results)[i] = std::move(some_results[next++]);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Export(Slot slot, std::span<std::byte> record) const override {
    const StateExport one = {slot, record};
    return ExportAll({&one, 1});
  }

  absl::Status ExportAll(std::span<const StateExport> exports) const override {
    std::vector<StateExport> on_device;
    for (const StateExport& one : exports) {
      if (absl::Status status = CheckSlotRecord(one.slot, one.record.size()); !status.ok()) {
        return status;
      }
      if (one.slot < kHostSlots) on_device.push_back(one);
    }
    for (const StateExport& one : exports) {
      if (one.slot < kHostSlots) continue;
      absl::Status status = host_->Export(one.slot - kHostSlots, one.record);
      if (!status.ok()) return status;
    }
    return on_device.empty() ? absl::OkStatus() : device_->Export(on_device);
  }

  absl::Status Import(Slot slot, std::span<const std::byte> record) override {
    if (absl::Status status = CheckSlotRecord(slot, record.size()); !status.ok()) return status;
    if (slot >= kHostSlots) return host_->Import(slot - kHostSlots, record);
    if (absl::Status status = CheckRecord(record, config_); !status.ok()) return status;
    return device_->Import(slot, record);
  }

  std::optional<DeviceStats> device_stats() const override {
    DeviceStats stats = device_->Stats();
    stats.overflow_slots = host_slots_;
    stats.host_lookups = host_lookups_;
    return stats;
  }

  // Whether the device gives the bits of the cpu backend for what the package's probe asks, but for
  // queries in the bulk mode: those within its bound.
  absl::Status CheckItself(const ModelPackage& package);

 private:
  // A device that fails now has lost no state that this needs.
  absl::Status TopKOfAll(std::span<const TopKRequest> requests,
                         std::vector<std::vector<ScoredItem>>* results) {
    if (DeviceTopK(requests, results).ok()) return absl::OkStatus();
    return host_->TopK(requests, results);
  }
  absl::Status DeviceTopK(std::span<const TopKRequest> requests,
                          std::vector<std::vector<ScoredItem>>* results);
  absl::Status CheckCase(size_t index, const ProbeCase& probe);
  // The query of a state folded in `slot` of `backend`, and its record.
  static absl::Status FoldAndAsk(Backend& backend, Slot slot, const ProbeCase& probe,
                                 std::vector<std::byte>* record, std::vector<float>* query);

  // Whether `slot` was ever given out.
  bool Contains(Slot slot) const {
    return slot < kHostSlots ? device_->Contains(slot) : slot - kHostSlots < host_top_;
  }

  absl::Status CheckSlotRecord(Slot slot, size_t bytes) const {
    if (Contains(slot)) return CheckRecordSize(bytes, state_bytes());
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " is not allocated"));
  }

  const ModelConfig config_;
  const int64_t least_device_scores_;
  const double bulk_bound_;  // 0: exact
  const std::unique_ptr<Backend> host_;
  const std::unique_ptr<DevicePart> device_;
  std::atomic<Slot> host_top_ = 0;  // all of the cpu backend's slots given out are below
  std::atomic<int64_t> host_slots_ = 0, host_lookups_ = 0;
};

absl::Status CudaBackend::DeviceTopK(std::span<const TopKRequest> requests,
                                     std::vector<std::vector<ScoredItem>>* results) {
  std::vector<kernels::TopKQuery> queries;
  size_t places = 0;
  for (const TopKRequest& request : requests) {
    kernels::TopKQuery query = {};
    query.query = request.query.data();
    query.k = request.k;
    query.excluded = request.excluded.data();
    query.excluded_count = static_cast<int64_t>(request.excluded.size());
    query.eligible = request.eligible.empty() ? nullptr : request.eligible.data();
    query.boost = request.boost.empty() ? nullptr : request.boost.data();
    queries.push_back(query);
    places += static_cast<size_t>(request.k);
  }
  std::vector<kernels::Scored> scored(places);
  std::vector<kernels::Scored*> best;
  for (kernels::Scored* place = scored.data(); const TopKRequest& request : requests) {
    best.push_back(place);
    place += request.k;
  }
  std::vector<int32_t> found(requests.size());
  if (absl::Status status = device_->Rank(queries, best, found); !status.ok()) return status;
  results->resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<ScoredItem>& result = (*results)[i];
    result.clear();
    for (int32_t j = 0; j < found[i]; ++j) result.push_back({best[i][j].item, best[i][j].score});
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::FoldAndAsk(Backend& backend, Slot slot, const ProbeCase& probe,
                                     std::vector<std::byte>* record, std::vector<float>* query) {
  constexpr size_t kMostEvents = 64;
  std::vector<FoldEvent> events;
  for (size_t i = 0; i < std::min(probe.items.size(), kMostEvents); ++i) {
    events.push_back({probe.items[i], probe.timestamps_ms[i]});
  }
  // One event by itself and the rest as a run, as serving does.
  for (const auto part : {std::span(events).first(1), std::span(events).subspan(1)}) {
    const Run run = {slot, part};
    if (absl::Status status = backend.Advance({&run, 1}); !status.ok()) return status;
  }
  record->resize(static_cast<size_t>(backend.state_bytes()));
  if (absl::Status status = backend.Export(slot, *record); !status.ok()) return status;
  query->resize(probe.query.size());
  const QueryRequest request = {slot, probe.as_of_ms};
  return backend.Query({&request, 1}, *query);
}

absl::Status CudaBackend::CheckCase(size_t index, const ProbeCase& probe) {
  const auto differs = [index](const char* what) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the CUDA device computes other bits than the CPU: ", what, " of probe case ", index));
  };
  std::vector<std::byte> expected_record, record;
  std::vector<float> expected, query;
  const absl::StatusOr<Slot> host_slot = host_->Allocate();
  if (!host_slot.ok()) return host_slot.status();
  absl::Status status = FoldAndAsk(*host_, *host_slot, probe, &expected_record, &expected);
  host_->Release(*host_slot);
  if (!status.ok()) return status;
  const absl::StatusOr<Slot> slot = Allocate();
  if (!slot.ok()) return slot.status();
  status = FoldAndAsk(*this, *slot, probe, &record, &query);
  Release(*slot);
  if (!status.ok()) return status;
  if (record != expected_record) return differs("the state");
  if (device_->bulk_windows()) {
    const double error = cuda::RelativeError(query, expected);
    if (!(error <= bulk_bound_)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the CUDA device encodes windows outside the bulk mode's bound: the query of "
          "probe case ",
          index, " has the relative error ", error, ", allowed ", bulk_bound_));
    }
  } else if (std::memcmp(query.data(), expected.data(), expected.size() * sizeof(float)) != 0) {
    return differs("the query");
  }

  TopKRequest request;
  request.query = expected;
  request.k = static_cast<int>(std::min<int64_t>(config_.n_items, 100));
  std::vector<std::vector<ScoredItem>> expected_top, top;
  if (status = host_->TopK({&request, 1}, &expected_top); !status.ok()) return status;
  if (status = DeviceTopK({&request, 1}, &top); !status.ok()) return status;
  const bool same =
      std::equal(top[0].begin(), top[0].end(), expected_top[0].begin(), expected_top[0].end(),
                 [](const auto& a, const auto& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; });
  return same ? absl::OkStatus() : differs("the ranking");
}

absl::Status CudaBackend::CheckItself(const ModelPackage& package) {
  constexpr size_t kMostCases = 3;
  for (size_t i = 0; i < std::min(package.probe().size(), kMostCases); ++i) {
    if (package.probe()[i].items.empty()) continue;
    absl::Status status = CheckCase(i, package.probe()[i]);
    if (device_->lost()) {
      return absl::UnavailableError(absl::StrCat("the CUDA device fails: ", status.message()));
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackendOn(
    std::unique_ptr<cuda::Device> device, std::shared_ptr<const ModelPackage> package,
    const CudaOptions& options) {
  auto host = CreateCpuBackend(package);
  if (!host.ok()) return host.status();
  const auto model = PackedModel::Create(package, /*pack_items=*/false);
  auto part = DevicePart::Create(std::move(device), model->dims(), model->weights(),
                                 {(*host)->state_bytes(), options.state_chunk_bytes,
                                  options.reserve_bytes, options.windows == WindowEncoding::kBulk});
  if (!part.ok()) return part.status();
  const double bulk_bound =
      (*part)->bulk_windows()
          ? cuda::BulkQueryBound(model->dims(), model->weights(), package->probe())
          : 0;
  auto backend =
      std::make_unique<CudaBackend>(package->config(), *std::move(host), *std::move(part),
                                    options.least_device_scores, bulk_bound);
  if (absl::Status checked = backend->CheckItself(*package); !checked.ok()) return checked;
  return backend;
}

}  // namespace tim4rec
