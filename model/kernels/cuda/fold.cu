#include "model/kernels/cuda/fold.h"

#include <utility>
#include <vector>

#include "model/kernels/cuda/fold_batch.h"
#include "model/kernels/cuda/window-inl.h"
#include "model/kernels/gap.h"

namespace tim4rec::cuda {
namespace {

using kernels::Dims;

constexpr unsigned kQueryThreads = 128;
constexpr unsigned kWindowThreads = 256;
constexpr unsigned kPlanThreads = 1024;

size_t RoundUp256(size_t bytes) { return (bytes + 255) / 256 * 256; }

size_t EmbeddingBytes(const Dims& dims) {
  return RoundUp256(sizeof(float) * static_cast<size_t>(dims.items) * static_cast<size_t>(dims.d));
}

// ---- queries of recurrent records: a block each

__global__ void QueryRecords(const Dims dims, const ModelPlaces at, const float* weights,
                             const DeviceQuery* queries, float* out) {
  const DeviceQuery query = queries[blockIdx.x];
  if (query.state == nullptr) return;
  const auto threads = static_cast<int32_t>(blockDim.x), t = static_cast<int32_t>(threadIdx.x);
  const float* output = reinterpret_cast<const float*>(query.state + 1) + dims.output_offset;
  out += blockIdx.x * int64_t{dims.d};
  if (!dims.time_query) {
    for (int32_t d = t; d < dims.d; d += threads) out[d] = output[d];
    return;
  }
  auto* hidden = SharedMemory<float>();  // [M]
  const float ms = kernels::GapMs(dims, *query.state, query.as_of_ms);
  const float feature = (kernels::Log1p(ms * dims.inv_tau0) - dims.gap_mean) * dims.inv_gap_stddev;
  for (int32_t m = t; m < dims.m; m += threads) {
    hidden[m] = kernels::Silu(kernels::FusedMultiplyAdd(weights[at.query_hidden + m], feature,
                                                        weights[at.query_hidden_bias + m]));
  }
  __syncthreads();
  const float *gate = weights + at.query_gate, *bias = weights + at.query_gate_bias;
  for (int32_t d = t; d < dims.d; d += threads) {
    float scale = bias[d], shift = bias[dims.d + d];
    for (int32_t m = 0; m < dims.m; ++m) {
      scale = kernels::FusedMultiplyAdd(gate[m * 2 * dims.d + d], hidden[m], scale);
      shift = kernels::FusedMultiplyAdd(gate[(m * 2 + 1) * dims.d + d], hidden[m], shift);
    }
    out[d] = kernels::FusedMultiplyAdd(output[d], 1.0f + scale, shift);
  }
}

}  // namespace

struct DeviceModel::Parts {
  FoldModel model = {};
  size_t bytes = 0;
  float* weights = nullptr;
  float* embedding = nullptr;
  bool served = false;
  size_t fold_workspace_bytes = 0;
  int64_t record_floats = 0;  // of a window's scratch record

  ~Parts() {
    cudaFree(weights);
    cudaFree(embedding);
  }

  const Dims& dims() const { return model.dims; }

  Fault Fold(const FoldBatch& batch, Stream stream) const {
    if (batch.run_count <= 0 || batch.most_events <= 0) return nullptr;
    return served ? FoldServed(model, batch, stream) : FoldLayers(model, batch, stream);
  }

  // In bytes from the workspace's beginning.
  EncodePlaces PlaceEncoding(int64_t count) const {
    EncodePlaces at = {};
    size_t used = 0;
    const auto take = [&](size_t bytes_each, int64_t each) {
      const size_t place = used;
      used += RoundUp256(bytes_each * static_cast<size_t>(each) * static_cast<size_t>(count));
      return place;
    };
    const Dims& d = dims();
    const int64_t l = d.window;
    at.runs = take(sizeof(DeviceRun), 1);
    at.events = take(sizeof(kernels::Event), l);
    at.writes = take(sizeof(float), d.layers * l * d.h);
    at.records = take(sizeof(float), record_floats);
    at.scratch = take(sizeof(float), int64_t{4} * d.h * RowStride(d.window));
    at.fold = used;
    at.bytes = used + fold_workspace_bytes;
    return at;
  }

  Fault Encode(const DeviceQuery* queries, int32_t count, float* out, void* workspace,
               Stream stream) const {
    auto* base = static_cast<char*>(workspace);
    const EncodePlaces at = PlaceEncoding(count);
    const auto floats = [&](size_t place) { return reinterpret_cast<float*>(base + place); };
    const WindowArguments a = {dims(),
                               model.places,
                               weights,
                               queries,
                               count,
                               reinterpret_cast<DeviceRun*>(base + at.runs),
                               reinterpret_cast<kernels::Event*>(base + at.events),
                               floats(at.writes),
                               floats(at.records),
                               record_floats,
                               floats(at.scratch)};
    const auto blocks = static_cast<unsigned>(count);
    Fault fault = Launch(PlanWindows, {1, kPlanThreads, kPlanThreads * sizeof(int32_t)}, stream, a);
    if (fault != nullptr) return fault;
    fault = Launch(WriteWindows, {blocks, kWindowThreads, 0}, stream, a);
    if (fault != nullptr) return fault;
    FoldBatch batch = {};
    batch.runs = a.runs;
    batch.run_count = count;
    batch.events = a.events;
    batch.most_events = count * dims().window;
    batch.writes = a.writes;
    batch.workspace = floats(at.fold);
    fault = Fold(batch, stream);
    if (fault != nullptr) return fault;
    return Launch(CopyOutputs, {blocks, kQueryThreads, 0}, stream, a, out);
  }
};

size_t DeviceModel::BytesFor(const Dims& dims) {
  ModelPlaces places;
  return EmbeddingBytes(dims) +
         RoundUp256(sizeof(float) * static_cast<size_t>(PlaceWeights(dims, &places)));
}

Fault DeviceModel::Create(const Dims& dims, const kernels::Weights& weights,
                          std::unique_ptr<const DeviceModel>* model) {
  std::unique_ptr<DeviceModel> made(new DeviceModel);
  made->parts_ = std::make_unique<Parts>();
  Parts& parts = *made->parts_;
  FoldModel& folded = parts.model;
  folded.dims = dims;
  parts.served = IsServed(dims);
  parts.bytes = BytesFor(dims);
  const int64_t record = static_cast<int64_t>(sizeof(kernels::StateHeader) / sizeof(float)) +
                         dims.output_offset + dims.d;
  parts.record_floats = (record + 3) / 4 * 4;

  int device = 0, shared_bytes = 0;
  if (const Fault fault = Describe(cudaGetDevice(&device)); fault != nullptr) return fault;
  Fault fault = Describe(
      cudaDeviceGetAttribute(&folded.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  if (fault != nullptr) return fault;
  fault = Describe(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (fault != nullptr) return fault;
  folded.shared_bytes = static_cast<size_t>(shared_bytes);
  parts.fold_workspace_bytes = FoldWorkspaceBytesFor(dims);

  const auto floats = static_cast<size_t>(PlaceWeights(dims, &folded.places));
  std::vector<float> packed(floats);
  PackWeights(dims, weights, folded.places, packed.data());
  const auto upload = [](float** to, const float* from, size_t bytes, size_t rounded) -> Fault {
    const cudaError_t error = cudaMalloc(reinterpret_cast<void**>(to), rounded);
    if (error != cudaSuccess) return Describe(error);
    return Describe(cudaMemcpy(*to, from, bytes, cudaMemcpyHostToDevice));
  };
  fault = upload(&parts.weights, packed.data(), floats * sizeof(float),
                 RoundUp256(floats * sizeof(float)));
  if (fault != nullptr) return fault;
  fault = upload(&parts.embedding, weights.embedding,
                 sizeof(float) * static_cast<size_t>(dims.items) * static_cast<size_t>(dims.d),
                 EmbeddingBytes(dims));
  if (fault != nullptr) return fault;
  folded.weights = parts.weights;
  folded.embedding = parts.embedding;
  *model = std::move(made);
  return nullptr;
}

DeviceModel::~DeviceModel() = default;

const Dims& DeviceModel::dims() const { return parts_->dims(); }
size_t DeviceModel::device_bytes() const { return parts_->bytes; }
const float* DeviceModel::embedding() const { return parts_->embedding; }

size_t DeviceModel::FoldWorkspaceBytesFor(const Dims& dims) {
  return IsServed(dims) ? 0 : RoundUp256(FoldLayersWorkspaceBytes(dims));
}

size_t DeviceModel::FoldWorkspaceBytes() const { return parts_->fold_workspace_bytes; }

size_t DeviceModel::QueryWorkspaceBytes(int64_t count) const {
  return parts_->dims().window > 0 ? parts_->PlaceEncoding(count).bytes : 0;
}

Fault DeviceModel::Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
                        int32_t most_events, void* workspace, Stream stream) const {
  if (run_count <= 0) return nullptr;
  if (parts_->dims().window > 0) {
    return Launch(PushWindows, {static_cast<unsigned>(run_count), kWindowThreads, 0}, stream,
                  parts_->dims(), runs, events);
  }
  FoldBatch batch = {};
  batch.runs = runs;
  batch.run_count = run_count;
  batch.events = events;
  batch.most_events = most_events;
  batch.workspace = static_cast<float*>(workspace);
  return parts_->Fold(batch, stream);
}

Fault DeviceModel::Query(const DeviceQuery* queries, int32_t count, float* out, void* workspace,
                         Stream stream) const {
  if (count <= 0) return nullptr;
  const Dims& dims = parts_->dims();
  if (dims.window > 0) return parts_->Encode(queries, count, out, workspace, stream);
  const Grid grid = {static_cast<unsigned>(count), kQueryThreads,
                     sizeof(float) * static_cast<size_t>(dims.m)};
  return Launch(QueryRecords, grid, stream, dims, parts_->model.places, parts_->weights, queries,
                out);
}

}  // namespace tim4rec::cuda
