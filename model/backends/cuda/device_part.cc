#include "model/backends/cuda/device_part.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tim4rec::cuda {
namespace {

constexpr int64_t kExportRows = 128;
constexpr int64_t kLeastRankInput = int64_t{32} << 20;

template <typename Works>
void Answer(const absl::Status& status, const Works& works) {
  for (auto* work : works) work->status = status;
}

}  // namespace

void DevicePart::Counters::Add(int64_t more_rows, double more_seconds) {
  ++launches;
  rows += more_rows;
  seconds += more_seconds;
}

namespace {

// Gives parts of one piece of memory, 256-byte aligned; counts them first, with no memory.
class Places {
 public:
  explicit Places(void* memory) : memory_(reinterpret_cast<uintptr_t>(memory)) {}
  template <typename T>
  void Give(T** part, int64_t count) {
    *part = reinterpret_cast<T*>(memory_ + static_cast<uintptr_t>(bytes_));
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  }
  int64_t bytes() const { return bytes_; }

 private:
  const uintptr_t memory_;
  int64_t bytes_ = 0;
};

}  // namespace

int64_t DevicePart::PlacePinned(const kernels::Dims& dims, int64_t state_bytes, void* memory,
                                Pinned* pinned) {
  Places places(memory);
  places.Give(&pinned->runs, kMostRuns);
  places.Give(&pinned->events, kMostEvents);
  places.Give(&pinned->requests, kMostQueries);
  places.Give(&pinned->first, kMostQueries + 1);
  places.Give(&pinned->queries, int64_t{kMostQueries} * dims.d);
  places.Give(&pinned->imports, Staging::kRows * state_bytes);
  places.Give(&pinned->exports, kExportRows * state_bytes);
  places.Give(&pinned->rank_input, RankInputBytes(dims));
  places.Give(&pinned->rank_output, 1);
  return places.bytes();
}

int64_t DevicePart::PlaceOnDevice(const kernels::Dims& dims, void* memory, OnDevice* on_device) {
  Places places(memory);
  places.Give(&on_device->rank_input, RankInputBytes(dims));
  places.Give(&on_device->rank_output, 1);
  return places.bytes();
}

int64_t DevicePart::BoostFloats(const kernels::Dims& dims) {
  return (int64_t{dims.items} + kBoostTile - 1) / kBoostTile * kBoostTile;
}

int64_t DevicePart::RankInputBytes(const kernels::Dims& dims) {
  return std::max(kLeastRankInput,
                  RankInput::MostBytesOfOne(dims.items, dims.d, BoostFloats(dims)));
}

Fault DevicePart::LoadBulk(Device* device, const kernels::Dims& dims,
                           const kernels::Weights& weights, int64_t room, int32_t* most_encoded) {
  for (*most_encoded = std::max(kMostEncoded, dims.window);;
       *most_encoded = std::max(*most_encoded / 2, dims.window)) {
    const bool least = *most_encoded == dims.window;
    if (!least && device->BulkBytes(dims, weights, *most_encoded) > room / 8) continue;
    const Fault fault = device->LoadBulk(dims, weights, *most_encoded);
    if (fault == nullptr || least || !IsOutOfMemory(fault)) return fault;
  }
}

absl::StatusOr<std::unique_ptr<DevicePart>> DevicePart::Create(std::unique_ptr<Device> device,
                                                               const kernels::Dims& dims,
                                                               const kernels::Weights& weights,
                                                               const Options& options) {
  MemoryInfo memory;
  const auto failed = [&](absl::string_view what, Fault fault) {
    return absl::UnavailableError(absl::StrCat("the CUDA device fails at ", what, ": ", fault));
  };
  if (const Fault fault = device->Memory(&memory); fault != nullptr) {
    return failed("asking for its memory", fault);
  }
  auto buffers = std::make_unique<Buffers>(device.get());
  const int64_t own_bytes = PlaceOnDevice(dims, nullptr, &buffers->on_device);
  const bool bulk = options.bulk_windows && dims.window > 0;
  const int64_t needed = device->ModelBytes(dims) + own_bytes +
                         (bulk ? device->BulkBytes(dims, weights, dims.window) : 0);
  const auto too_large = [&](absl::string_view why) {
    return absl::ResourceExhaustedError(absl::StrCat("the model needs ", needed,
                                                     " bytes of device memory, ", memory.free_bytes,
                                                     " of ", memory.total_bytes, " are free", why));
  };
  if (memory.free_bytes < needed) return too_large("");
  // What is free in all may not be free in one piece, and others take of it.
  const auto refused = [&](absl::string_view what, Fault fault) -> absl::Status {
    if (IsOutOfMemory(fault)) return too_large(", but not in the pieces that it needs");
    return failed(what, fault);
  };
  if (const Fault fault = device->LoadModel(dims, weights); fault != nullptr) {
    return refused("loading the model", fault);
  }
  if (const Fault fault = device->Allocate(static_cast<size_t>(own_bytes), &buffers->memory);
      fault != nullptr) {
    return refused("allocating memory", fault);
  }
  PlaceOnDevice(dims, buffers->memory, &buffers->on_device);
  int32_t most_encoded = 0;
  if (bulk) {
    const Fault fault =
        LoadBulk(device.get(), dims, weights, memory.free_bytes - needed, &most_encoded);
    if (fault != nullptr) return refused("loading the bulk mode", fault);
  }
  const int64_t bytes = PlacePinned(dims, options.state_bytes, nullptr, &buffers->pinned);
  if (const Fault fault = device->AllocateHost(static_cast<size_t>(bytes), &buffers->host);
      fault != nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", bytes, " bytes of pinned host memory: ", fault));
  }
  PlacePinned(dims, options.state_bytes, buffers->host, &buffers->pinned);
  Options chosen = options;
  if (chosen.reserve_bytes == 0) chosen.reserve_bytes = memory.total_bytes / 8;
  return std::unique_ptr<DevicePart>(
      new DevicePart(std::move(device), dims, chosen, most_encoded, std::move(buffers)));
}

DevicePart::DevicePart(std::unique_ptr<Device> device, const kernels::Dims& dims,
                       const Options& options, int32_t most_encoded,
                       std::unique_ptr<const Buffers> buffers)
    : device_(std::move(device)),
      dims_(dims),
      options_(options),
      most_encoded_(most_encoded),
      buffers_(std::move(buffers)),
      pinned_(buffers_->pinned),
      slab_(device_.get(), options.state_bytes, options.chunk_bytes, options.reserve_bytes),
      staging_(device_.get(), &slab_, options.state_bytes, pinned_.imports),
      rank_input_(dims.items, dims.d, BoostFloats(dims), pinned_.rank_input,
                  buffers_->on_device.rank_input, RankInputBytes(dims)) {}

DevicePart::~DevicePart() {
  // What was staged and never needed may still be on its way.
  double seconds = 0;
  (void)device_->Wait(Lane::kImport, &seconds);
}

absl::Status DevicePart::LostError() const {
  return absl::AbortedError(absl::StrCat("the state is lost with its CUDA device: ",
                                         fault_.load(std::memory_order_acquire)));
}

absl::Status DevicePart::Check(Fault fault) {
  if (fault == nullptr) return absl::OkStatus();
  Fault none = nullptr;
  fault_.compare_exchange_strong(none, fault);
  return LostError();
}

std::optional<int32_t> DevicePart::Allocate() {
  if (lost()) return std::nullopt;
  std::optional<int32_t> slot;
  if (!Check(slab_.Allocate(&slot)).ok() || !slot) return std::nullopt;
  slab_.notes(*slot).events = 0;
  staging_.Clear(*slot);
  return slot;
}

absl::Status DevicePart::Advance(std::span<const Run> runs) {
  if (lost()) return LostError();
  FoldWork work{runs, {}};
  folds_.Do(&work, [this](std::span<FoldWork* const> works) { Answer(FoldAll(works), works); });
  if (!work.status.ok()) return work.status;
  for (const Run& run : runs) {
    slab_.notes(run.slot).events += static_cast<int64_t>(run.events.size());
  }
  lookups_ += static_cast<int64_t>(runs.size());
  return absl::OkStatus();
}

// A run that does not fit goes on in the next launch, which gives the same bits.
absl::Status DevicePart::FoldAll(std::span<FoldWork* const> works) {
  if (absl::Status status = Check(staging_.Before(Lane::kFold)); !status.ok()) return status;
  int32_t runs = 0;
  int32_t events = 0;
  for (const FoldWork* work : works) {
    for (const Run& run : work->runs) {
      auto* const state = reinterpret_cast<kernels::StateHeader*>(slab_.record(run.slot));
      for (std::span<const FoldEvent> rest = run.events; !rest.empty();) {
        if (runs == kMostRuns || events == kMostEvents) {
          if (absl::Status status = LaunchFold(runs, events); !status.ok()) return status;
          runs = events = 0;
        }
        const auto part =
            rest.first(std::min(rest.size(), static_cast<size_t>(kMostEvents - events)));
        rest = rest.subspan(part.size());
        pinned_.runs[runs++] = {state, events, static_cast<int32_t>(part.size())};
        for (const FoldEvent& event : part) {
          pinned_.events[events++] = {event.item, event.timestamp_ms};
        }
      }
    }
  }
  return runs == 0 ? absl::OkStatus() : LaunchFold(runs, events);
}

absl::Status DevicePart::LaunchFold(int32_t runs, int32_t events) {
  int32_t launched = runs;
  int32_t most_events = events;
  if (events == runs) {  // steps: filled up to a launch that may be a graph
    launched = most_events = static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(runs)));
    for (int32_t r = runs; r < launched; ++r) pinned_.runs[r] = {nullptr, events, 0};
  }
  absl::Status status = Check(device_->Fold(pinned_.runs, launched, pinned_.events, most_events));
  if (!status.ok()) return status;
  double seconds = 0;
  status = Check(device_->Wait(Lane::kFold, &seconds));
  folded_.Add(runs, seconds);
  return status;
}

absl::Status DevicePart::Query(std::span<const QueryRequest> requests,
                               std::span<float* const> queries) {
  if (lost()) return LostError();
  QueryWork work{requests, queries, {}};
  queries_.Do(&work, [this](std::span<QueryWork* const> works) { Answer(QueryAll(works), works); });
  if (work.status.ok()) lookups_ += static_cast<int64_t>(requests.size());
  return work.status;
}

absl::Status DevicePart::QueryAll(std::span<QueryWork* const> works) {
  if (absl::Status status = Check(staging_.Before(Lane::kQuery)); !status.ok()) return status;
  std::vector<float*> places;
  pinned_.first[0] = 0;
  for (const QueryWork* work : works) {
    for (size_t i = 0; i < work->requests.size(); ++i) {
      const QueryRequest& request = work->requests[i];
      // Of its window; nobody counts them but for the bulk mode.
      const auto events =
          static_cast<int32_t>(std::min<int64_t>(slab_.notes(request.slot).events, dims_.window));
      const size_t count = places.size();
      if (count == kMostQueries ||
          (bulk_windows() && pinned_.first[count] + events > most_encoded_)) {
        if (absl::Status status = LaunchQuery(&places); !status.ok()) return status;
      }
      auto* const state = reinterpret_cast<kernels::StateHeader*>(slab_.record(request.slot));
      pinned_.requests[places.size()] = {state, request.as_of_ms};
      pinned_.first[places.size() + 1] = pinned_.first[places.size()] + events;
      places.push_back(work->queries[i]);
    }
  }
  return places.empty() ? absl::OkStatus() : LaunchQuery(&places);
}

absl::Status DevicePart::LaunchQuery(std::vector<float*>* places) {
  const auto count = static_cast<int32_t>(places->size());
  absl::Status status =
      Check(bulk_windows()
                ? device_->EncodeWindows(pinned_.requests, pinned_.first, count, pinned_.queries)
                : device_->Query(pinned_.requests, count, pinned_.queries));
  if (!status.ok()) return status;
  double seconds = 0;
  status = Check(device_->Wait(Lane::kQuery, &seconds));
  if (!status.ok()) return status;
  queried_.Add(count, seconds);
  for (size_t i = 0; i < places->size(); ++i) {
    std::memcpy((*places)[i], pinned_.queries + static_cast<int64_t>(i) * dims_.d,
                sizeof(float) * static_cast<size_t>(dims_.d));
  }
  places->clear();
  return absl::OkStatus();
}

absl::Status DevicePart::Rank(std::span<const kernels::TopKQuery> queries,
                              std::span<kernels::Scored* const> best, std::span<int32_t> found) {
  if (lost()) return LostError();
  RankWork work{queries, best, found, {}};
  ranks_.Do(&work, [this](std::span<RankWork* const> works) { Answer(RankAll(works), works); });
  return work.status;
}

absl::Status DevicePart::RankAll(std::span<RankWork* const> works) {
  rank_input_.Clear();
  std::vector<RankPlace> places;
  for (const RankWork* work : works) {
    for (size_t i = 0; i < work->queries.size(); ++i) {
      const bool full = static_cast<int32_t>(places.size()) == kMostRankings;
      if (full || !rank_input_.Add(work->queries[i])) {
        if (absl::Status status = LaunchRank(&places); !status.ok()) return status;
        rank_input_.Add(work->queries[i]);  // there is room for any one
      }
      places.push_back({work->best[i], &work->found[i]});
    }
  }
  return places.empty() ? absl::OkStatus() : LaunchRank(&places);
}

absl::Status DevicePart::LaunchRank(std::vector<RankPlace>* places) {
  const auto count = static_cast<int32_t>(places->size());
  const int32_t most_k = rank_input_.most_k();
  RankOutput* const out = buffers_->on_device.rank_output;
  absl::Status status =
      Check(device_->Copy(Lane::kRank, buffers_->on_device.rank_input, pinned_.rank_input,
                          static_cast<size_t>(rank_input_.bytes())));
  if (!status.ok()) return status;
  status = Check(device_->Rank(rank_input_.queries().data(), count, most_k, out->best, out->found));
  if (!status.ok()) return status;
  // What was found lies before the best.
  const size_t bytes = offsetof(RankOutput, best) + sizeof(kernels::Scored) *
                                                        static_cast<size_t>(count) *
                                                        static_cast<size_t>(most_k);
  status = Check(device_->Copy(Lane::kRank, pinned_.rank_output, out, bytes));
  if (!status.ok()) return status;
  double seconds = 0;
  status = Check(device_->Wait(Lane::kRank, &seconds));
  if (!status.ok()) return status;
  ranked_.Add(count, seconds);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t found = pinned_.rank_output->found[i];
    std::copy_n(pinned_.rank_output->best + int64_t{i} * most_k, found, (*places)[i].best);
    *(*places)[i].found = found;
  }
  places->clear();
  rank_input_.Clear();
  return absl::OkStatus();
}

absl::Status DevicePart::Export(std::span<const StateExport> exports) {
  if (lost()) return LostError();
  ExportWork work{exports, {}};
  exports_.Do(&work,
              [this](std::span<ExportWork* const> works) { Answer(ExportAll(works), works); });
  return work.status;
}

absl::Status DevicePart::ExportAll(std::span<ExportWork* const> works) {
  if (absl::Status status = Check(staging_.Before(Lane::kExport)); !status.ok()) return status;
  std::vector<const StateExport*> exports;
  for (const ExportWork* work : works) {
    for (const StateExport& one : work->exports) exports.push_back(&one);
  }
  for (std::span<const StateExport* const> rest = exports; !rest.empty();) {
    const size_t count = std::min(rest.size(), static_cast<size_t>(kExportRows));
    if (absl::Status status = LaunchExport(rest.first(count)); !status.ok()) return status;
    rest = rest.subspan(count);
  }
  return absl::OkStatus();
}

absl::Status DevicePart::LaunchExport(std::span<const StateExport* const> exports) {
  std::vector<RecordCopy> copies;
  for (const StateExport* one : exports) {
    const int64_t row = static_cast<int64_t>(copies.size());
    copies.push_back({pinned_.exports + row * options_.state_bytes, slab_.record(one->slot)});
  }
  const auto count = static_cast<int64_t>(copies.size());
  absl::Status status =
      Check(device_->CopyRecords(Lane::kExport, copies.data(), count, options_.state_bytes));
  if (!status.ok()) return status;
  double seconds = 0;
  status = Check(device_->Wait(Lane::kExport, &seconds));
  if (!status.ok()) return status;
  exported_.Add(count, seconds);
  bytes_out_ += count * options_.state_bytes;
  for (size_t i = 0; i < exports.size(); ++i) {
    std::memcpy(exports[i]->record.data(), copies[i].to, exports[i]->record.size());
  }
  return absl::OkStatus();
}

absl::Status DevicePart::Import(int32_t slot, std::span<const std::byte> record) {
  if (lost()) return LostError();
  if (absl::Status status = Check(staging_.Put(slot, record)); !status.ok()) return status;
  kernels::StateHeader header;
  std::memcpy(&header, record.data(), sizeof(header));
  slab_.notes(slot).events = header.folded_events;
  return absl::OkStatus();
}

DeviceStats DevicePart::Stats() {
  DeviceStats stats;
  stats.fold = folded_.Get();
  stats.query = queried_.Get();
  stats.rank = ranked_.Get();
  stats.exported = exported_.Get();
  stats.device_lookups = lookups_;
  stats.bytes_in = staging_.bytes();
  stats.bytes_out = bytes_out_;
  MemoryInfo memory = {};
  if (!lost()) (void)Check(device_->Memory(&memory));
  if (lost()) {
    stats.lost = true;
    stats.fault = fault_.load();
    return stats;
  }
  stats.memory_bytes = memory.total_bytes;
  stats.memory_used_bytes = memory.total_bytes - memory.free_bytes;
  stats.slots_used = slab_.used();
  stats.slots_limit = slab_.slots() + slab_.RoomFor(memory.free_bytes);
  return stats;
}

}  // namespace tim4rec::cuda
