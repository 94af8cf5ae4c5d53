// Times re-encoding on a GPU (goal G3): 4096 histories of 50 to 200 events in the bulk mode and by
// the exact fold, and windows of 50 events; with the ceilings of the same run. One line of JSON
// each. Usage: bench_bulk [rounds]
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/kernels/cuda/bulk.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/mma.h"
#include "model/kernels/math.h"
#include "tests/gpu/bench_timing.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int32_t kHistories = 4096;

// Eight independent chains of each thread, or of each warp.
__global__ void __launch_bounds__(kThreads) FuseAll(int rounds, float* result) {
  float sums[8] = {};
  const float a = 1.0f + static_cast<float>(threadIdx.x) * 1e-9f;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < 8; ++chain) {
      sums[chain] = kernels::FusedMultiplyAdd(sums[chain], a, 1e-9f);
    }
  }
  float all = 0;
  for (const float sum : sums) all += sum;
  if (all == 12345.0f) *result = all;
}

__global__ void __launch_bounds__(kThreads) MultiplyAll(int rounds, float* result) {
  float sums[8][4] = {};
  const float a[4] = {1, 2, 3, 4}, b[2] = {1, 2};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < 8; ++chain) MmaTf32(sums[chain], a, b);
  }
  float all = 0;
  for (const auto& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  if (all == 12345.0f) *result = all;
}

// Floating-point operations of an event: two per product of rules 1, 4 and 10.
double Operations(const kernels::Dims& s) {
  const double linear = double(s.d) * s.projections() + double(s.e) * s.d + 2.0 * s.d * s.f;
  const double others = double(s.k) * s.conv_channels() + 3.0 * s.e * s.n;
  return 2 * s.layers * (linear + others);
}

void BenchModel(cudaStream_t stream, int rounds, const gpu_test::Sizes& sizes, int32_t shortest,
                int32_t longest, const std::string& name) {
  gpu_test::Random random(1);
  const auto model = gpu_test::MakeModel(sizes, &random);
  const kernels::Dims& dims = model->dims;
  std::unique_ptr<const DeviceModel> exact;
  Check(DeviceModel::Create(dims, model->weights, &exact));
  std::unique_ptr<const BulkModel> bulk;
  Check(BulkModel::Create(dims, model->weights, exact->embedding(), &bulk));

  std::vector<kernels::Event> events;
  std::vector<int32_t> first = {0};
  for (int32_t i = 0; i < kHistories; ++i) {
    int64_t clock_ms = 1'600'000'000'000;
    const int64_t length =
        shortest + static_cast<int64_t>(random() % static_cast<uint64_t>(longest - shortest + 1));
    const auto history = gpu_test::RandomEvents(dims, length, &clock_ms, &random);
    events.insert(events.end(), history.begin(), history.end());
    first.push_back(static_cast<int32_t>(events.size()));
  }
  const auto rows = static_cast<int32_t>(events.size());
  const DeviceArray<kernels::Event> device_events(events);
  const DeviceArray<int32_t> device_first(first);
  const DeviceArray<int64_t> as_of(std::vector<int64_t>(kHistories, 1'700'000'000'000));
  const DeviceArray<char> workspace(BulkModel::WorkspaceBytes(dims, kHistories, rows));
  const DeviceArray<float> queries(static_cast<size_t>(kHistories) * dims.d);
  const std::string size =
      name + ", " + std::to_string(kHistories) + " histories, " + std::to_string(rows) + " events";
  const auto report = [&](const std::string& what, const Times& times) {
    Print(what + size, times,
          Number("events/s", rows / times.median * 1e3) +
              Number("TFLOP/s", Operations(dims) * rows / times.median / 1e9));
  };
  const Times bulk_times = Measure(stream, rounds, [&](int) {
    Check(bulk->Encode(device_events.data(), device_first.data(), kHistories, rows, as_of.data(),
                       queries.data(), workspace.data(), stream));
  });
  report("bulk, ", bulk_times);

  const auto record = static_cast<size_t>(gpu_test::RecordBytes(dims));
  const DeviceArray<char> records(record * kHistories);
  Times exact_times;
  if (dims.window > 0) {
    std::vector<DeviceQuery> requests;
    std::vector<DeviceRun> runs;
    for (int32_t i = 0; i < kHistories; ++i) {
      auto* state = reinterpret_cast<kernels::StateHeader*>(records.data() + record * i);
      runs.push_back({state, first[i], first[i + 1] - first[i]});
      requests.push_back({state, 0});
    }
    const DeviceArray<DeviceRun> device_runs(runs);
    const DeviceArray<DeviceQuery> device_requests(requests);
    const DeviceArray<char> fold(exact->FoldWorkspaceBytes());
    const DeviceArray<char> query(exact->QueryWorkspaceBytes(kHistories));
    Check(Describe(cudaMemset(records.data(), 0, record * kHistories)));
    Check(exact->Fold(device_runs.data(), kHistories, device_events.data(), rows, fold.data(),
                      stream));
    exact_times = Measure(stream, rounds, [&](int) {
      Check(exact->Query(device_requests.data(), kHistories, queries.data(), query.data(), stream));
    });
  } else {
    std::vector<DeviceRun> runs;
    for (int32_t i = 0; i < kHistories; ++i) {
      runs.push_back({reinterpret_cast<kernels::StateHeader*>(records.data() + record * i),
                      first[i], first[i + 1] - first[i]});
    }
    const DeviceArray<DeviceRun> device_runs(runs);
    const DeviceArray<char> fold(exact->FoldWorkspaceBytes());
    exact_times = Measure(stream, rounds, [&](int) {
      Check(Describe(cudaMemsetAsync(records.data(), 0, record * kHistories, stream)));
      Check(exact->Fold(device_runs.data(), kHistories, device_events.data(), rows, fold.data(),
                        stream));
    });
  }
  report("exact, ", exact_times);
}

void Bench(int rounds) {
  cudaStream_t stream;
  Check(Describe(cudaStreamCreate(&stream)));
  constexpr int kRounds = 4096;
  const unsigned blocks = 4 * Processors();
  const DeviceArray<float> sink(1);
  const Times fused = Measure(
      stream, rounds, [&](int) { FuseAll<<<blocks, kThreads, 0, stream>>>(kRounds, sink.data()); });
  Print("float32 FMA alone", fused,
        Number("TFLOP/s", 2.0 * 8 * kRounds * blocks * kThreads / fused.median / 1e9));
  const Times matrix = Measure(stream, rounds, [&](int) {
    MultiplyAll<<<blocks, kThreads, 0, stream>>>(kRounds, sink.data());
  });
  Print("tf32 matrix instructions alone", matrix,
        Number("TFLOP/s",
               2.0 * 16 * 8 * 8 * 8 * kRounds * blocks * (kThreads / 32) / matrix.median / 1e9));
  gpu_test::Sizes sizes = gpu_test::ServedSizes(64);
  sizes.items = 100'000;
  BenchModel(stream, rounds, sizes, 50, 200, "D 64");
  sizes.time_write = sizes.time_decay = sizes.time_query = false;
  sizes.window = 50;
  BenchModel(stream, rounds, sizes, 50, 50, "D 64, windows of 50");
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace tim4rec::cuda

int main(int argc, char** argv) {
  if (!tim4rec::cuda::HasDevice()) return 77;
  tim4rec::cuda::Bench(argc > 1 ? std::atoi(argv[1]) : 15);
  return 0;
}
