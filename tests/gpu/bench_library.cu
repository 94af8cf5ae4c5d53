// The production kernels for bench.py, which owns the memory, the streams and the clock. Every
// function returns null or the text of a fault; pointers are to device memory unless said
// otherwise.
#include <cstdint>
#include <cstring>
#include <memory>

#include "model/kernels/cuda/bulk.h"
#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/rank.h"
#include "tests/gpu/random_model.h"

namespace {

using namespace tim4rec;  // NOLINT: a program's own file

struct Bench {
  std::unique_ptr<const gpu_test::Model> host;
  std::unique_ptr<const cuda::DeviceModel> model;
  std::unique_ptr<const cuda::BulkModel> bulk;
  cuda::ItemTable table = {};
};

struct Weight {
  const char* name;
  const float* data;
};

constexpr int kThreads = 256;

// Floating-point multiply-adds in registers: the machine's rate.
__global__ void MultiplyAdd(float* result, int rounds) {
  float sums[16];
  const float x = 1.0f + static_cast<float>(threadIdx.x) * 1e-9f;
  for (int i = 0; i < 16; ++i) sums[i] = static_cast<float>(i);
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int i = 0; i < 16; ++i) sums[i] = __fmaf_rn(sums[i], x, 1e-7f);
  }
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += sums[i];
  if (sum == -1) *result = sum;  // never: keeps the loop
}

}  // namespace

extern "C" {

cuda::Fault bench_open(int32_t d, int32_t items, uint64_t seed, void** bench) {
  auto made = std::make_unique<Bench>();
  gpu_test::Random random(seed);
  gpu_test::Sizes sizes = gpu_test::ServedSizes(d);
  sizes.items = items;
  sizes.time_query = false;  // so that a query is the output of the last event
  made->host = gpu_test::MakeModel(sizes, &random);
  cuda::Fault fault =
      cuda::DeviceModel::Create(made->host->dims, made->host->weights, &made->model);
  if (fault == nullptr) {
    fault = cuda::BulkModel::Create(made->host->dims, made->host->weights, made->model->embedding(),
                                    &made->bulk);
  }
  if (fault == nullptr) *bench = made.release();
  return fault;
}
void bench_close(void* bench) { delete static_cast<Bench*>(bench); }

// d e h p n k m f layers items, then in floats ssm conv time_conv1 time_conv2 layer output, then
// record bytes; then norm_eps inv_tau0 gap_mean inv_gap_stddev.
void bench_dims(const void* bench, int64_t integers[17], float floats[4], int64_t* max_gap_ms) {
  const kernels::Dims& s = static_cast<const Bench*>(bench)->host->dims;
  const int64_t values[17] = {s.d,
                              s.e,
                              s.h,
                              s.p,
                              s.n,
                              s.k,
                              s.m,
                              s.f,
                              s.layers,
                              s.items,
                              s.ssm_offset,
                              s.conv_offset,
                              s.time_conv1_offset,
                              s.time_conv2_offset,
                              s.layer_floats,
                              s.output_offset,
                              gpu_test::RecordBytes(s)};
  std::memcpy(integers, values, sizeof(values));
  const float constants[4] = {s.norm_eps, s.inv_tau0, s.gap_mean, s.inv_gap_stddev};
  std::memcpy(floats, constants, sizeof(constants));
  *max_gap_ms = s.max_gap_ms;
}

// Weight `name` in host memory, of a layer or (-1) of none, as LayerWeights holds it; null if the
// model has no such.
const float* bench_weight(const void* bench, int32_t layer, const char* name) {
  const kernels::Weights& w = static_cast<const Bench*>(bench)->host->weights;
  const auto find = [name](const Weight* weights, int count) -> const float* {
    for (int i = 0; i < count; ++i) {
      if (std::strcmp(weights[i].name, name) == 0) return weights[i].data;
    }
    return nullptr;
  };
  if (layer < 0) {
    const Weight of_model[] = {
        {"embedding", w.embedding}, {"in_norm", w.in_norm}, {"in_norm_bias", w.in_norm_bias}};
    return find(of_model, 3);
  }
  const kernels::LayerWeights& y = w.layers[layer];
  const Weight of_layer[] = {{"in_proj", y.in_proj},
                             {"in_proj_bias", y.in_proj_bias},
                             {"conv", y.conv},
                             {"conv_bias", y.conv_bias},
                             {"time_conv1", y.time_conv1},
                             {"time_conv1_bias", y.time_conv1_bias},
                             {"time_conv2", y.time_conv2},
                             {"time_conv2_bias", y.time_conv2_bias},
                             {"time_hidden", y.time_hidden},
                             {"time_hidden_bias", y.time_hidden_bias},
                             {"time_scale", y.time_scale},
                             {"time_scale_bias", y.time_scale_bias},
                             {"a", y.a},
                             {"rate", y.rate},
                             {"dt_bias", y.dt_bias},
                             {"skip", y.skip},
                             {"norm", y.norm},
                             {"out_proj", y.out_proj},
                             {"out_proj_bias", y.out_proj_bias},
                             {"layer_norm", y.layer_norm},
                             {"layer_norm_bias", y.layer_norm_bias},
                             {"fc1", y.fc1},
                             {"fc1_bias", y.fc1_bias},
                             {"fc2", y.fc2},
                             {"fc2_bias", y.fc2_bias},
                             {"ffn_norm", y.ffn_norm},
                             {"ffn_norm_bias", y.ffn_norm_bias}};
  return find(of_layer, sizeof(of_layer) / sizeof(of_layer[0]));
}

int64_t bench_fold_workspace(const void* bench) {
  return static_cast<int64_t>(static_cast<const Bench*>(bench)->model->FoldWorkspaceBytes());
}

cuda::Fault bench_fold(const void* bench, const void* runs, int32_t run_count, const void* events,
                       int32_t most_events, void* workspace, void* stream) {
  return static_cast<const Bench*>(bench)->model->Fold(
      static_cast<const cuda::DeviceRun*>(runs), run_count,
      static_cast<const kernels::Event*>(events), most_events, workspace,
      static_cast<cuda::Stream>(stream));
}

// ---- bulk mode

int64_t bench_bulk_workspace(const void* bench, int32_t count, int32_t events) {
  return static_cast<int64_t>(cuda::BulkModel::WorkspaceBytes(
      static_cast<const Bench*>(bench)->model->dims(), count, events));
}

// `first` is [count + 1]; the outputs after the last events to [count][d].
cuda::Fault bench_bulk(const void* bench, const void* events, const void* first, int32_t count,
                       int32_t events_count, void* outputs, void* workspace, void* stream) {
  return static_cast<const Bench*>(bench)->bulk->Encode(
      static_cast<const kernels::Event*>(events), static_cast<const int32_t*>(first), count,
      events_count, nullptr, static_cast<float*>(outputs), workspace,
      static_cast<cuda::Stream>(stream));
}

// ---- ranking

int64_t bench_table_bytes(int32_t items, int32_t d) { return cuda::ItemTableBytes(items, d); }

// Makes the table of an embedding [items][d] in `memory`.
cuda::Fault bench_table(void* bench, const void* embedding, int32_t items, int32_t d,
                        void* memory) {
  return cuda::BuildItemTable(static_cast<const float*>(embedding), items, d, memory, nullptr,
                              &static_cast<Bench*>(bench)->table);
}

void bench_rank_memory(const void* bench, int32_t count, int32_t k, int64_t* host,
                       int64_t* device) {
  const cuda::RankMemory memory =
      cuda::RankMemoryFor(static_cast<const Bench*>(bench)->table, count, k);
  *host = memory.host_bytes;
  *device = memory.device_bytes;
}

// The k best for each of [count][d] queries: [count][k] of (score, item), [count] found.
cuda::Fault bench_rank(const void* bench, const void* queries, int32_t count, int32_t k, void* host,
                       void* device, void* stream, void* best, void* found) {
  const cuda::ItemTable& table = static_cast<const Bench*>(bench)->table;
  const auto plain = std::make_unique<kernels::TopKQuery[]>(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    plain[i] = {};
    plain[i].query = static_cast<const float*>(queries) + int64_t{i} * table.d;
    plain[i].k = k;
  }
  return cuda::Rank(table, plain.get(), count, k, host, device, static_cast<cuda::Stream>(stream),
                    static_cast<kernels::Scored*>(best), static_cast<int32_t*>(found));
}

// ---- ceilings

// `blocks` x 256 threads x `rounds` x 16 multiply-adds.
cuda::Fault bench_multiply_add(int32_t blocks, int32_t rounds, void* result, void* stream) {
  MultiplyAdd<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<float*>(result), rounds);
  return cuda::Describe(cudaGetLastError());
}

}  // extern "C"
