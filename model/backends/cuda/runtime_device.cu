#include "model/backends/cuda/runtime_device.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "model/kernels/cuda/bulk.h"
#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/rank.h"

namespace tim4rec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostTogether = 128;
constexpr unsigned kMostParts = 16;  // blocks that share a record

// By value, so that a launch keeps its own. 2 kB of the 4 that a launch may have everywhere.
struct RecordCopies {
  RecordCopy copies[kMostTogether];
};

// 16 bytes per thread and pass.
__global__ void CopyRecordsKernel(const RecordCopies records, int64_t words) {
  const RecordCopy copy = records.copies[blockIdx.x];
  auto* to = static_cast<uint4*>(copy.to);
  const auto* from = static_cast<const uint4*>(copy.from);
  const int64_t stride = int64_t{kThreads} * gridDim.y;
  for (int64_t w = int64_t{kThreads} * blockIdx.y + threadIdx.x; w < words; w += stride) {
    to[w] = from == nullptr ? uint4{0, 0, 0, 0} : from[w];
  }
}

// Device memory, freed at the end.
class Block {
 public:
  Block() = default;
  ~Block() { cudaFree(at_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // In place of what it has.
  Fault Allocate(size_t bytes) {
    cudaFree(std::exchange(at_, nullptr));
    return bytes == 0 ? nullptr : Describe(cudaMalloc(&at_, bytes));
  }
  void* at() const { return at_; }

 private:
  void* at_ = nullptr;
};

// The first of them that is a fault.
template <typename... Calls>
Fault InTurn(const Calls&... calls) {
  Fault fault = nullptr;
  (void)((fault = calls(), fault == nullptr) && ...);
  return fault;
}

class RuntimeDevice final : public Device {
 public:
  ~RuntimeDevice() override {
    for (const StepGraph& graph : step_graphs_) {
      if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
    }
    for (const LaneState& lane : lanes_) {
      if (lane.stream != nullptr) cudaStreamDestroy(lane.stream);
      for (cudaEvent_t event : {lane.begin, lane.end, lane.reached}) {
        if (event != nullptr) cudaEventDestroy(event);
      }
    }
    cudaFreeHost(rank_host_);
  }

  Fault Start() {
    int devices = 0;
    if (const Fault fault = Describe(cudaGetDeviceCount(&devices)); fault != nullptr) return fault;
    if (devices == 0) return Describe(cudaErrorNoDevice);
    if (const Fault fault = Describe(cudaSetDevice(0)); fault != nullptr) return fault;
    int major = 0;
    int minor = 0;
    const Fault fault =
        InTurn([&] { return Attribute(&major, cudaDevAttrComputeCapabilityMajor); },
               [&] { return Attribute(&minor, cudaDevAttrComputeCapabilityMinor); });
    if (fault != nullptr) return fault;
    std::snprintf(name_, sizeof(name_), "sm_%d%d", major, minor);
    if (major < 8) return "the device is older than compute capability 8.0";
    for (LaneState& lane : lanes_) {
      const Fault created = InTurn(
          [&] { return Describe(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking)); },
          [&] { return Describe(cudaEventCreate(&lane.begin)); },
          [&] { return Describe(cudaEventCreate(&lane.end)); },
          [&] {
            return Describe(cudaEventCreateWithFlags(&lane.reached, cudaEventDisableTiming));
          });
      if (created != nullptr) return created;
    }
    return nullptr;
  }

  const char* name() const override { return name_; }

  Fault Memory(MemoryInfo* memory) override {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    const Fault fault = Describe(cudaMemGetInfo(&free_bytes, &total_bytes));
    *memory = {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
    return fault;
  }

  Fault Allocate(size_t bytes, void** memory) override {
    *memory = nullptr;
    const cudaError_t error = cudaMalloc(memory, bytes);
    if (error != cudaSuccess) (void)cudaGetLastError();  // refusals are no fault of what follows
    return Describe(error);
  }
  void Free(void* memory) override { cudaFree(memory); }

  Fault AllocateHost(size_t bytes, void** memory) override {
    *memory = nullptr;
    return Describe(cudaMallocHost(memory, bytes));
  }
  void FreeHost(void* memory) override { cudaFreeHost(memory); }

  int64_t ModelBytes(const kernels::Dims& dims) const override {
    return static_cast<int64_t>(DeviceModel::BytesFor(dims) +
                                DeviceModel::FoldWorkspaceBytesFor(dims)) +
           ItemTableBytes(dims.items, dims.d) + RankMemoryOf(dims).device_bytes;
  }

  Fault LoadModel(const kernels::Dims& dims, const kernels::Weights& weights) override {
    const RankMemory rank = RankMemoryOf(dims);
    return InTurn(
        [&] { return DeviceModel::Create(dims, weights, &model_); },
        [&] { return fold_workspace_.Allocate(model_->FoldWorkspaceBytes()); },
        [&] { return query_workspace_.Allocate(model_->QueryWorkspaceBytes(kMostQueries)); },
        [&] { return runs_.Allocate(sizeof(DeviceRun) * kMostRuns); },
        [&] { return events_.Allocate(sizeof(kernels::Event) * kMostEvents); },
        [&] {
          return table_memory_.Allocate(static_cast<size_t>(ItemTableBytes(dims.items, dims.d)));
        },
        [&] {
          return BuildItemTable(model_->embedding(), dims.items, dims.d, table_memory_.at(),
                                stream(Lane::kRank), &table_);
        },
        [&] { return rank_memory_.Allocate(static_cast<size_t>(rank.device_bytes)); },
        [&] {
          return Describe(cudaMallocHost(&rank_host_, static_cast<size_t>(rank.host_bytes)));
        });
  }

  int64_t BulkBytes(const kernels::Dims& dims, const kernels::Weights& weights,
                    int32_t most_events) const override {
    return static_cast<int64_t>(BulkModel::BytesFor(dims, weights) +
                                BulkModel::WorkspaceBytes(dims, kMostQueries, most_events)) +
           kFirstBytes;
  }

  Fault LoadBulk(const kernels::Dims& dims, const kernels::Weights& weights,
                 int32_t most_events) override {
    const Fault fault = InTurn(
        [&] {
          return bulk_workspace_.Allocate(
              BulkModel::WorkspaceBytes(dims, kMostQueries, most_events));
        },
        [&] { return first_.Allocate(kFirstBytes); },
        [&] { return BulkModel::Create(dims, weights, model_->embedding(), &bulk_); });
    if (fault != nullptr) (void)cudaGetLastError();  // refusals are no fault of what follows
    return fault;
  }

  Fault Copy(Lane lane, void* to, const void* from, size_t bytes) override {
    return InTurn(
        [&] { return Begin(lane); },
        [&] {
          return Describe(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream(lane)));
        });
  }

  Fault CopyRecords(Lane lane, const RecordCopy* copies, int64_t count,
                    int64_t record_bytes) override {
    if (const Fault fault = Begin(lane); fault != nullptr) return fault;
    const int64_t words = record_bytes / static_cast<int64_t>(sizeof(uint4));
    const auto parts = static_cast<unsigned>((words + kThreads - 1) / kThreads);
    for (int64_t first = 0; first < count; first += kMostTogether) {
      const auto now = static_cast<unsigned>(std::min<int64_t>(kMostTogether, count - first));
      RecordCopies records = {};
      std::copy_n(copies + first, now, records.copies);
      CopyRecordsKernel<<<dim3(now, std::min(parts, kMostParts)), kThreads, 0, stream(lane)>>>(
          records, words);
      if (const Fault fault = Describe(cudaGetLastError()); fault != nullptr) return fault;
    }
    return nullptr;
  }

  // A step reads its runs and events once: from pinned memory as it goes. A scan comes back to
  // them: from copies.
  Fault Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
             int32_t most_events) override {
    if (const Fault fault = Begin(Lane::kFold); fault != nullptr) return fault;
    const cudaStream_t lane = stream(Lane::kFold);
    const bool step = most_events == run_count && (run_count & (run_count - 1)) == 0;
    if (step) return Step(runs, run_count, events);
    const auto count = static_cast<size_t>(most_events);
    return InTurn(
        [&] {
          return Describe(cudaMemcpyAsync(runs_.at(), runs,
                                          sizeof(DeviceRun) * static_cast<size_t>(run_count),
                                          cudaMemcpyHostToDevice, lane));
        },
        [&] {
          return Describe(cudaMemcpyAsync(events_.at(), events, sizeof(kernels::Event) * count,
                                          cudaMemcpyHostToDevice, lane));
        },
        [&] {
          return model_->Fold(static_cast<const DeviceRun*>(runs_.at()), run_count,
                              static_cast<const kernels::Event*>(events_.at()), most_events,
                              fold_workspace_.at(), lane);
        });
  }

  Fault Query(const DeviceQuery* requests, int32_t count, float* queries) override {
    return InTurn([&] { return Begin(Lane::kQuery); },
                  [&] {
                    return model_->Query(requests, count, queries, query_workspace_.at(),
                                         stream(Lane::kQuery));
                  });
  }

  // `first` is read by many kernels: from a copy.
  Fault EncodeWindows(const DeviceQuery* requests, const int32_t* first, int32_t count,
                      float* queries) override {
    return InTurn([&] { return Begin(Lane::kQuery); },
                  [&] {
                    return Describe(cudaMemcpyAsync(
                        first_.at(), first, sizeof(int32_t) * static_cast<size_t>(count + 1),
                        cudaMemcpyHostToDevice, stream(Lane::kQuery)));
                  },
                  [&] {
                    return bulk_->EncodeWindows(requests, static_cast<const int32_t*>(first_.at()),
                                                count, first[count], queries, bulk_workspace_.at(),
                                                stream(Lane::kQuery));
                  });
  }

  Fault Rank(const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
             kernels::Scored* best, int32_t* found) override {
    return InTurn([&] { return Begin(Lane::kRank); },
                  [&] {
                    return cuda::Rank(table_, queries, count, most_k, rank_host_, rank_memory_.at(),
                                      stream(Lane::kRank), best, found);
                  });
  }

  Fault After(Lane lane, Lane first) override {
    const cudaEvent_t reached = state(first).reached;
    return InTurn([&] { return Describe(cudaEventRecord(reached, stream(first))); },
                  [&] { return Describe(cudaStreamWaitEvent(stream(lane), reached, 0)); });
  }

  Fault Wait(Lane lane, double* seconds) override {
    *seconds = 0;
    LaneState& s = state(lane);
    if (!std::exchange(s.begun, false)) return Describe(cudaStreamSynchronize(s.stream));
    float ms = 0;
    const Fault fault = InTurn([&] { return Describe(cudaEventRecord(s.end, s.stream)); },
                               [&] { return Describe(cudaStreamSynchronize(s.stream)); },
                               [&] { return Describe(cudaEventElapsedTime(&ms, s.begin, s.end)); });
    *seconds = 1e-3 * static_cast<double>(ms);
    return fault;
  }

 private:
  struct LaneState {
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr, reached = nullptr;
    bool begun = false;  // something was put there since the last Wait
  };
  // A step of so many runs, in the memory that it was captured with.
  struct StepGraph {
    cudaGraphExec_t exec = nullptr;
    const DeviceRun* runs = nullptr;
    const kernels::Event* events = nullptr;
  };

  static constexpr int64_t kFirstBytes = sizeof(int32_t) * (kMostQueries + 1);

  static Fault Attribute(int* value, cudaDeviceAttr attribute) {
    return Describe(cudaDeviceGetAttribute(value, attribute, 0));
  }

  static RankMemory RankMemoryOf(const kernels::Dims& dims) {
    ItemTable table = {};
    table.items = dims.items;
    table.d = dims.d;
    return RankMemoryFor(table, kMostRankings, kMostBest);
  }

  LaneState& state(Lane lane) { return lanes_[static_cast<int>(lane)]; }
  cudaStream_t stream(Lane lane) { return state(lane).stream; }

  Fault Begin(Lane lane) {
    LaneState& s = state(lane);
    if (std::exchange(s.begun, true)) return nullptr;
    return Describe(cudaEventRecord(s.begin, s.stream));
  }

  Fault Step(const DeviceRun* runs, int32_t run_count, const kernels::Event* events) {
    int bucket = 0;
    while (1 << bucket < run_count) ++bucket;
    StepGraph& graph = step_graphs_[bucket];
    if (graph.exec != nullptr && (graph.runs != runs || graph.events != events)) {
      cudaGraphExecDestroy(std::exchange(graph.exec, nullptr));
    }
    if (graph.exec == nullptr) {
      if (const Fault fault = Capture(runs, run_count, events, &graph); fault != nullptr) {
        return fault;
      }
    }
    return Describe(cudaGraphLaunch(graph.exec, stream(Lane::kFold)));
  }

  Fault Capture(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
                StepGraph* graph) {
    const cudaStream_t lane = stream(Lane::kFold);
    const cudaError_t begun = cudaStreamBeginCapture(lane, cudaStreamCaptureModeThreadLocal);
    if (begun != cudaSuccess) return Describe(begun);
    const Fault folded =
        model_->Fold(runs, run_count, events, run_count, fold_workspace_.at(), lane);
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(lane, &captured);
    if (folded != nullptr || ended != cudaSuccess) {
      if (captured != nullptr) cudaGraphDestroy(captured);
      return folded != nullptr ? folded : Describe(ended);
    }
    const Fault fault = Describe(cudaGraphInstantiateWithFlags(&graph->exec, captured, 0));
    cudaGraphDestroy(captured);
    graph->runs = runs;
    graph->events = events;
    return fault;
  }

  char name_[16] = "";
  std::array<LaneState, kLanes> lanes_ = {};
  std::unique_ptr<const DeviceModel> model_;
  std::unique_ptr<const BulkModel> bulk_;
  Block bulk_workspace_, first_, fold_workspace_, query_workspace_, runs_, events_, table_memory_,
      rank_memory_;
  void* rank_host_ = nullptr;
  ItemTable table_ = {};
  std::array<StepGraph, 13> step_graphs_ = {};  // of 1, 2, 4, … kMostRuns
};
static_assert(kMostRuns == 1 << 12, "step_graphs_ has one for each");
static_assert(kMostBest == kMostRanked && kMostRankings <= kMostRankQueries &&
                  kBoostTile == kItemTile,
              "what device.h says of rankings");

}  // namespace

Fault OpenRuntimeDevice(std::unique_ptr<Device>* device) {
  auto opened = std::make_unique<RuntimeDevice>();
  if (const Fault fault = opened->Start(); fault != nullptr) return fault;
  *device = std::move(opened);
  return nullptr;
}

}  // namespace tim4rec::cuda
