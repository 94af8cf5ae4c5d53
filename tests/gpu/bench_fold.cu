// How fast fold.h is on this GPU, beside what the GPU can do in the same run. Usage:
//
//   bench_fold [--slab-gib N] [--rounds N] [--d WIDTH]
//
// For D 64 and then D 256, or for the width given: a JSON object per line, last the verdict of a
// comparison with the scalar truth; exits 1 if that fails, 77 where no GPU can be used.
//
//   {"what":"ceiling","d":D,"copy_gbps":…,"fma_tflops":…}  medians of the rounds
//   {"what":"fold","d":D,"batch":B,"us":…,"us_min":…,"us_max":…,"users_per_s":…,"state_gbps":…,
//    "of_copy":…,"tflops":…,"of_fma":…}                    one event per user, random users of a
//    slab
//   {"what":"scan","d":D,"users":…,"events":…,"ms":…,"events_per_s":…,"tflops":…,"of_fma":…}
//   {"what":"query","d":D,"batch":B,"us":…}
//
// Times are CUDA events around replays of a graph of kSets launches, each with users of its own, so
// that no state is found in a cache; "us" is per launch. Every round measures everything, so that
// ratios are of the same moment. state_gbps counts a record read and written per user.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <string>

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::gpu_test {
namespace {

using cuda::DeviceModel;
using cuda::DeviceQuery;
using cuda::DeviceRun;
using kernels::Event;
using kernels::StateHeader;

constexpr int kSets = 16;
constexpr int32_t kBatches[] = {1, 32, 256, 1024, 4096};

void Require(cuda::Fault fault) {
  if (fault == nullptr) return;
  std::fprintf(stderr, "bench_fold: the device reports: %s\n", fault);
  std::exit(1);
}

void Require(cudaError_t error) { Require(cuda::Describe(error)); }

template <typename T>
T* Upload(const std::vector<T>& values) {
  void* at = nullptr;
  Require(cudaMalloc(&at, values.size() * sizeof(T)));
  Require(cudaMemcpy(at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(at);
}

// Read by no pass of the compiler: keeps sums alive.
__global__ void MultiplyAdd(float* out, int32_t steps) {
  float sum[16];
  for (int i = 0; i < 16; ++i) sum[i] = static_cast<float>(threadIdx.x + i);
  const float factor = 0.999f + static_cast<float>(blockIdx.x) * 1e-9f;
#pragma unroll 4
  for (int32_t s = 0; s < steps; ++s) {
#pragma unroll
    for (int i = 0; i < 16; ++i) sum[i] = __fmaf_rn(sum[i], factor, 0.5f);
  }
  float all = 0;
  for (int i = 0; i < 16; ++i) all += sum[i];
  if (all == 12345.0f) out[0] = all;
}

__global__ void CopyWords(const uint4* from, uint4* to, int64_t words) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += stride) {
    to[i] = from[i];
  }
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(int32_t d, double slab_gib, int rounds) : rounds_(rounds), random_(1) {
    Sizes sizes = ServedSizes(d);
    sizes.items = 10'000;
    model_ = MakeModel(sizes, &random_);
    dims_ = model_->dims;
    record_bytes_ = RecordBytes(dims_);
    Require(DeviceModel::Create(dims_, model_->weights, &device_));
    Require(cudaStreamCreate(&stream_));
    users_ = static_cast<int64_t>(slab_gib * 1024 * 1024 * 1024) / record_bytes_;
    slab_bytes_ = static_cast<size_t>(users_ * record_bytes_);
    Require(cudaMalloc(reinterpret_cast<void**>(&slab_), slab_bytes_));
    Require(cudaMemset(slab_, 0, slab_bytes_));
    if (device_->FoldWorkspaceBytes() > 0) {
      Require(cudaMalloc(&workspace_, device_->FoldWorkspaceBytes()));
    }
    Require(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0));
    Require(cudaMalloc(reinterpret_cast<void**>(&out_), sizeof(float) * 4096 * 4096));
    clocks_.assign(static_cast<size_t>(users_), 1'700'000'000'000);
  }
  ~Bench() {
    for (void* memory : {static_cast<void*>(slab_), workspace_, copy_, static_cast<void*>(out_)}) {
      cudaFree(memory);
    }
    cudaStreamDestroy(stream_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  int Run() {
    WarmUp();
    std::map<std::string, std::vector<double>> seconds;
    std::vector<std::pair<std::string, std::function<double()>>> parts;
    parts.emplace_back("copy", [&] { return TimeCopy(); });
    parts.emplace_back("fma", [&] { return TimeMultiplyAdd(); });
    for (const int32_t batch : kBatches) {
      const cudaGraphExec_t fold = CaptureFolds(batch);
      parts.emplace_back("fold " + std::to_string(batch), [=] { return TimeGraph(fold) / kSets; });
      const cudaGraphExec_t query = CaptureQueries(batch);
      parts.emplace_back("query " + std::to_string(batch),
                         [=] { return TimeGraph(query) / kSets; });
    }
    MakeScan();
    parts.emplace_back("scan", [&] { return TimeScan(); });
    for (int round = 0; round < rounds_; ++round) {
      for (size_t i = 0; i < parts.size(); ++i) {
        // There and back, so that a drift of the clock favours nobody.
        auto& part = parts[round % 2 == 0 ? i : parts.size() - 1 - i];
        seconds[part.first].push_back(part.second());
      }
    }
    Report(seconds);
    return Verify();
  }

 private:
  // A batch of `count` distinct random users with an event each.
  struct Batch {
    DeviceRun* runs;
    Event* events;
    DeviceQuery* queries;
  };

  Batch MakeBatch(const std::vector<int64_t>& users, const std::vector<int64_t>& lengths) {
    std::vector<DeviceRun> runs;
    std::vector<Event> events;
    std::vector<DeviceQuery> queries;
    for (size_t i = 0; i < users.size(); ++i) {
      auto* state = reinterpret_cast<StateHeader*>(slab_ + users[i] * record_bytes_);
      runs.push_back(
          {state, static_cast<int32_t>(events.size()), static_cast<int32_t>(lengths[i])});
      int64_t* clock = &clocks_[static_cast<size_t>(users[i])];
      for (const Event& event : RandomEvents(dims_, lengths[i], clock, &random_)) {
        events.push_back(event);
      }
      queries.push_back({state, *clock + 60'000});
    }
    return {Upload(runs), Upload(events), Upload(queries)};
  }

  std::vector<int64_t> RandomUsers(int32_t count) {
    std::vector<int64_t> users;
    std::vector<bool> taken(static_cast<size_t>(users_));
    while (users.size() < static_cast<size_t>(count)) {
      const auto user = static_cast<int64_t>(random_() % static_cast<uint64_t>(users_));
      if (taken[static_cast<size_t>(user)]) continue;
      taken[static_cast<size_t>(user)] = true;
      users.push_back(user);
    }
    return users;
  }

  void Fold(const Batch& batch, int32_t runs, int32_t events) {
    Require(device_->Fold(batch.runs, runs, batch.events, events, workspace_, stream_));
  }

  // No state stays empty: all zeros would be unlike what is served.
  void WarmUp() {
    for (int64_t first = 0; first < users_; first += 4096) {
      std::vector<int64_t> users(static_cast<size_t>(std::min<int64_t>(4096, users_ - first)));
      std::iota(users.begin(), users.end(), first);
      const Batch batch = MakeBatch(users, std::vector<int64_t>(users.size(), 1));
      Fold(batch, static_cast<int32_t>(users.size()), static_cast<int32_t>(users.size()));
      Require(cudaStreamSynchronize(stream_));
      cudaFree(batch.runs);
      cudaFree(batch.events);
      cudaFree(batch.queries);
    }
  }

  cudaGraphExec_t Capture(const std::function<void(const Batch&)>& launch, int32_t count) {
    std::vector<Batch> sets;
    for (int i = 0; i < kSets; ++i) {
      sets.push_back(MakeBatch(RandomUsers(count), std::vector<int64_t>(count, 1)));
    }
    Require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (const Batch& batch : sets) launch(batch);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    Require(cudaStreamEndCapture(stream_, &graph));
    Require(cudaGraphInstantiate(&exec, graph, 0));
    Require(cudaGraphDestroy(graph));
    return exec;
  }

  cudaGraphExec_t CaptureFolds(int32_t count) {
    return Capture([&](const Batch& batch) { Fold(batch, count, count); }, count);
  }

  cudaGraphExec_t CaptureQueries(int32_t count) {
    return Capture(
        [&](const Batch& batch) {
          Require(device_->Query(batch.queries, count, out_, /*workspace=*/nullptr, stream_));
        },
        count);
  }

  // Seconds of what `start` puts on the stream.
  double Time(const std::function<void()>& start) {
    cudaEvent_t begin, end;
    Require(cudaEventCreate(&begin));
    Require(cudaEventCreate(&end));
    Require(cudaEventRecord(begin, stream_));
    start();
    Require(cudaEventRecord(end, stream_));
    Require(cudaEventSynchronize(end));
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end));
    Require(cudaEventDestroy(begin));
    Require(cudaEventDestroy(end));
    return ms * 1e-3;
  }

  // Twice, the second time measured: the graph is then on the device.
  double TimeGraph(cudaGraphExec_t graph) {
    Require(cudaGraphLaunch(graph, stream_));
    return Time([&] { Require(cudaGraphLaunch(graph, stream_)); });
  }

  // Half of the slab is read, into a buffer of its own.
  double TimeCopy() {
    const size_t bytes = CopyBytes();
    if (copy_ == nullptr) Require(cudaMalloc(&copy_, bytes));
    const auto start = [&] {
      CopyWords<<<static_cast<unsigned>(multiprocessors_) * 8, 512, 0, stream_>>>(
          reinterpret_cast<const uint4*>(slab_), static_cast<uint4*>(copy_),
          static_cast<int64_t>(bytes / sizeof(uint4)));
    };
    start();
    return Time(start);
  }
  size_t CopyBytes() const { return slab_bytes_ / 2 / 256 * 256; }

  double TimeMultiplyAdd() {
    const auto start = [&] {
      MultiplyAdd<<<static_cast<unsigned>(multiprocessors_) * 4, 512, 0, stream_>>>(out_, kSteps);
    };
    start();
    return Time(start);
  }
  static constexpr int32_t kSteps = 4096;

  void MakeScan() {
    const int32_t count = 4096;
    std::vector<int64_t> lengths;
    for (int32_t i = 0; i < count; ++i)
      lengths.push_back(50 + static_cast<int64_t>(random_() % 151));
    scan_users_ = RandomUsers(count);
    scan_events_ = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    scan_ = MakeBatch(scan_users_, lengths);
  }

  double TimeScan() {
    return Time([&] {
      Fold(scan_, static_cast<int32_t>(scan_users_.size()), static_cast<int32_t>(scan_events_));
    });
  }

  // Fused multiply-adds of one event through a layer: up to its state, and from there on.
  double StateOperations() const {
    return 2.0 * dims_.d * dims_.projections() + 3.0 * dims_.e * dims_.n;
  }
  double FinishOperations() const {
    return 2.0 * dims_.e * dims_.d + (dims_.ffn ? 4.0 * dims_.d * dims_.f : 0);
  }

  void Report(std::map<std::string, std::vector<double>>& seconds) {
    const double copy_gbps =
        2.0 * static_cast<double>(CopyBytes()) / Median(seconds["copy"]) * 1e-9;
    const double fma = 2.0 * 16 * kSteps * 512.0 * 4 * multiprocessors_ / Median(seconds["fma"]);
    std::printf("{\"what\":\"ceiling\",\"d\":%d,\"copy_gbps\":%.1f,\"fma_tflops\":%.2f}\n", dims_.d,
                copy_gbps, fma * 1e-12);
    for (const int32_t batch : kBatches) {
      const std::vector<double>& times = seconds["fold " + std::to_string(batch)];
      const double median = Median(times);
      const double flops = batch * dims_.layers * (StateOperations() + FinishOperations()) / median;
      const double gbps = 2.0 * static_cast<double>(batch * record_bytes_) / median * 1e-9;
      std::printf(
          "{\"what\":\"fold\",\"d\":%d,\"batch\":%d,\"us\":%.2f,\"us_min\":%.2f,\"us_max\":%.2f,"
          "\"users_per_s\":%.0f,\"state_gbps\":%.1f,\"of_copy\":%.3f,\"tflops\":%.2f,"
          "\"of_fma\":%.3f}\n",
          dims_.d, batch, median * 1e6, *std::min_element(times.begin(), times.end()) * 1e6,
          *std::max_element(times.begin(), times.end()) * 1e6, batch / median, gbps,
          gbps / copy_gbps, flops * 1e-12, flops / fma);
    }
    for (const int32_t batch : kBatches) {
      std::printf("{\"what\":\"query\",\"d\":%d,\"batch\":%d,\"us\":%.2f}\n", dims_.d, batch,
                  Median(seconds["query " + std::to_string(batch)]) * 1e6);
    }
    const double median = Median(seconds["scan"]);
    const double users = static_cast<double>(scan_users_.size());
    const double events = static_cast<double>(scan_events_);
    // In the last layer only a run's last event goes on after the state.
    const double operations = events * dims_.layers * StateOperations() +
                              (events * (dims_.layers - 1) + users) * FinishOperations();
    std::printf(
        "{\"what\":\"scan\",\"d\":%d,\"users\":%.0f,\"events\":%.0f,\"ms\":%.3f,\"events_per_s\":%."
        "0f,"
        "\"tflops\":%.2f,\"of_fma\":%.3f}\n",
        dims_.d, users, events, median * 1e3, events / median, operations / median * 1e-12,
        operations / median / fma);
  }

  // One more event for a few users, on both sides.
  int Verify() {
    const std::vector<int64_t> users = RandomUsers(300);
    const auto bytes = static_cast<size_t>(record_bytes_);
    std::vector<std::vector<char>> before;
    for (const int64_t user : users) {
      auto& record = before.emplace_back(bytes);
      Require(
          cudaMemcpy(record.data(), slab_ + user * record_bytes_, bytes, cudaMemcpyDeviceToHost));
    }
    const Batch batch = MakeBatch(users, std::vector<int64_t>(users.size(), 1));
    Fold(batch, 300, 300);
    Require(cudaStreamSynchronize(stream_));
    std::vector<Event> events(users.size());
    Require(cudaMemcpy(events.data(), batch.events, events.size() * sizeof(Event),
                       cudaMemcpyDeviceToHost));
    std::vector<float> scratch(static_cast<size_t>(kernels::ScratchFloats(dims_)));
    int different = 0;
    for (size_t i = 0; i < users.size(); ++i) {
      std::vector<char> record(bytes);
      Require(cudaMemcpy(record.data(), slab_ + users[i] * record_bytes_, bytes,
                         cudaMemcpyDeviceToHost));
      auto* state = reinterpret_cast<StateHeader*>(before[i].data());
      kernels::Scan(dims_, model_->weights, &events[i], 1, state, scratch.data());
      different += record == before[i] ? 0 : 1;
    }
    std::printf("{\"what\":\"same_bits_as_scalar\",\"records\":%zu,\"different\":%d}\n",
                users.size(), different);
    return different == 0 ? 0 : 1;
  }

  const int rounds_;
  Random random_;
  std::unique_ptr<const Model> model_;
  kernels::Dims dims_;
  int64_t record_bytes_ = 0, users_ = 0;
  size_t slab_bytes_ = 0;
  std::unique_ptr<const DeviceModel> device_;
  cudaStream_t stream_ = nullptr;
  char* slab_ = nullptr;
  void *workspace_ = nullptr, *copy_ = nullptr;
  float* out_ = nullptr;
  int multiprocessors_ = 0;
  std::vector<int64_t> clocks_;
  std::vector<int64_t> scan_users_;
  int64_t scan_events_ = 0;
  Batch scan_ = {};
};

int Main(int argc, char** argv) {
  double slab_gib = 4;
  int rounds = 9;
  std::vector<int32_t> widths = {64, 256};
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--slab-gib") slab_gib = std::atof(argv[i + 1]);
    if (flag == "--rounds") rounds = std::atoi(argv[i + 1]);
    if (flag == "--d") widths = {std::atoi(argv[i + 1])};
  }
  if (const cuda::Fault fault = cuda::Describe(cudaFree(nullptr)); fault != nullptr) {
    std::printf("no CUDA device can be used: %s\n", fault);
    return 77;
  }
  for (const int32_t d : widths) {
    if (const int failed = Bench(d, slab_gib, rounds).Run(); failed != 0) return failed;
  }
  return 0;
}

}  // namespace
}  // namespace tim4rec::gpu_test

int main(int argc, char** argv) { return tim4rec::gpu_test::Main(argc, argv); }
