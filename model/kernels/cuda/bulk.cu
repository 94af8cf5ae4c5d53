#include "model/kernels/cuda/bulk.h"

#include <algorithm>
#include <vector>

#include "model/kernels/cuda/bulk_parts.h"
#include "model/kernels/cuda/bulk_ssd.h"
#include "model/kernels/cuda/device.h"

namespace tim4rec::cuda {
namespace {

using kernels::Dims;
using kernels::LayerWeights;
using kernels::Weights;

constexpr float kFfnNormEps = 1e-12f;

// Collects host arrays into one block of memory: each pointer is replaced by its place there, once
// the block's address is known.
class Collector {
 public:
  void Add(const float** pointer, int64_t count) {
    if (*pointer == nullptr) return;
    entries_.push_back({pointer, *pointer, floats_, count});
    floats_ += (count + 63) / 64 * 64;
  }

  int64_t floats() const { return floats_; }

  Fault Upload(float* device, Stream stream) {
    for (const Entry& entry : entries_) {
      const Fault fault = Describe(cudaMemcpyAsync(device + entry.at, entry.host,
                                                   sizeof(float) * static_cast<size_t>(entry.count),
                                                   cudaMemcpyHostToDevice, stream));
      if (fault != nullptr) return fault;
      *entry.pointer = device + entry.at;
    }
    return nullptr;
  }

 private:
  struct Entry {
    const float** pointer;
    const float* host;
    int64_t at, count;
  };

  std::vector<Entry> entries_;
  int64_t floats_ = 0;
};

void CollectLayer(const Dims& s, LayerWeights* w, Collector* all) {
  const int64_t d = s.d, e = s.e, h = s.h, k = s.k, m = s.m, f = s.f, l = s.window;
  const int64_t channels = s.conv_channels(), gates = s.window_gate_per_event ? l : 1;
  all->Add(&w->in_proj, d * s.projections());
  all->Add(&w->in_proj_bias, s.projections());
  all->Add(&w->conv, k * channels);
  all->Add(&w->conv_bias, channels);
  all->Add(&w->time_conv1, k * h);
  all->Add(&w->time_conv1_bias, h);
  all->Add(&w->time_conv2, k * h);
  all->Add(&w->time_conv2_bias, h);
  all->Add(&w->time_hidden, m);
  all->Add(&w->time_hidden_bias, m);
  all->Add(&w->time_scale, m * h);
  all->Add(&w->time_scale_bias, h);
  all->Add(&w->a, h);
  all->Add(&w->rate, h);
  all->Add(&w->dt_bias, h);
  all->Add(&w->skip, h);
  all->Add(&w->norm, e);
  all->Add(&w->out_proj, e * d);
  all->Add(&w->out_proj_bias, d);
  all->Add(&w->layer_norm, d);
  all->Add(&w->layer_norm_bias, d);
  all->Add(&w->fc1, d * f);
  all->Add(&w->fc1_bias, f);
  all->Add(&w->fc2, f * d);
  all->Add(&w->fc2_bias, d);
  all->Add(&w->ffn_norm, d);
  all->Add(&w->ffn_norm_bias, d);
  all->Add(&w->window_scale1, l * l);
  all->Add(&w->window_scale1_bias, l);
  all->Add(&w->window_scale2, l * l);
  all->Add(&w->window_scale2_bias, l);
  all->Add(&w->window_gate, l * gates);
  all->Add(&w->window_gate_bias, gates);
  all->Add(&w->window_norm, l);
  all->Add(&w->window_norm_bias, l);
}

void CollectModel(const Dims& s, Weights* w, Collector* all) {
  all->Add(&w->in_norm, s.d);
  all->Add(&w->in_norm_bias, s.d);
  all->Add(&w->query_hidden, s.m);
  all->Add(&w->query_hidden_bias, s.m);
  all->Add(&w->query_gate, int64_t{s.m} * 2 * s.d);
  all->Add(&w->query_gate_bias, int64_t{2} * s.d);
  all->Add(&w->window_norm, s.window);
  all->Add(&w->window_norm_bias, s.window);
}

// A call's memory.
struct Workspace {
  kernels::Event* events;  // of windows
  int32_t* place;
  float *gap_ms, *feature;
  float *x, *u;                       // [rows][D]
  float* projected;                   // [rows][2E+2N+H], or what the feed-forward makes, [rows][F]
  float *xbc, *y;                     // [rows][C], [rows][E]
  float *delta, *log_carry, *q, *r1;  // [rows][H]
  float* gates;                       // [rows][H]; of a window [layers][rows][H]
  float* windows;                     // [count][4][H][L]
  float *last_x, *last_u, *last_z, *last_y, *last_ffn;  // the last rows
};

size_t Carve(const Dims& s, int32_t count, int32_t rows, char* base, Workspace* at) {
  size_t used = 0;
  const auto take = [&](int64_t of, int64_t width) {
    char* place = base + used;
    used +=
        (static_cast<size_t>(of) * static_cast<size_t>(width) * sizeof(float) + 255) / 256 * 256;
    return reinterpret_cast<float*>(place);
  };
  const int64_t d = s.d, h = s.h;
  constexpr int64_t kEventFloats = sizeof(kernels::Event) / sizeof(float);
  at->events = reinterpret_cast<kernels::Event*>(take(rows, s.window > 0 ? kEventFloats : 0));
  at->place = reinterpret_cast<int32_t*>(take(rows, 1));
  at->gap_ms = take(rows, 1);
  at->feature = take(rows, 1);
  at->x = take(rows, d);
  at->u = take(rows, d);
  at->projected = take(rows, s.ffn ? std::max(s.projections(), s.f) : s.projections());
  at->xbc = take(rows, s.conv_channels());
  at->y = take(rows, s.e);
  at->delta = take(rows, h);
  at->log_carry = take(rows, h);
  at->q = take(rows, h);
  at->r1 = take(rows, h);
  at->gates = take(rows, s.window > 0 ? s.layers * h : h);
  at->windows = take(count, s.window > 0 ? 4 * h * s.window : 0);
  at->last_x = take(count, d);
  at->last_u = take(count, d);
  at->last_z = take(count, s.e);
  at->last_y = take(count, s.e);
  at->last_ffn = take(count, s.ffn ? s.f : 0);
  return used;
}

// The rows that a layer's second half works on.
struct Rows {
  int32_t count;
  float *x, *u, *y, *ffn;
  const float* z;
  int64_t z_stride;
};

// Rules 11 and 12: x becomes the layer's output.
Fault FinishLayer(const Dims& s, const LayerWeights& w, const Rows& rows, Stream stream) {
  const auto multiply = [&](const float* x, int64_t x_width, const float* weights,
                            const float* bias, int64_t outputs, float* y, bool hardswish,
                            const float* residual) {
    return bulk::Multiply({x, x_width, weights, bias, rows.count, static_cast<int32_t>(x_width),
                           static_cast<int32_t>(outputs), y, outputs, hardswish, residual},
                          stream);
  };
  Fault fault = bulk::GateAndNorm(s, w, rows.z, rows.z_stride, rows.count, rows.y, stream);
  if (fault != nullptr) return fault;
  fault = multiply(rows.y, s.e, w.out_proj, w.out_proj_bias, s.d, rows.u, false,
                   s.layers > 1 ? rows.x : nullptr);
  if (fault != nullptr) return fault;
  fault = bulk::Normalize(rows.u, w.layer_norm, w.layer_norm_bias, s.norm_eps, s.d, rows.count,
                          rows.x, stream);
  if (fault != nullptr || !s.ffn) return fault;
  fault = multiply(rows.x, s.d, w.fc1, w.fc1_bias, s.f, rows.ffn, true, nullptr);
  if (fault != nullptr) return fault;
  fault = multiply(rows.ffn, s.f, w.fc2, w.fc2_bias, s.d, rows.u, false, rows.x);
  if (fault != nullptr) return fault;
  return bulk::Normalize(rows.u, w.ffn_norm, w.ffn_norm_bias, kFfnNormEps, s.d, rows.count, rows.x,
                         stream);
}

}  // namespace

struct BulkModel::Parts {
  Dims dims;
  Weights weights;  // on the device, but `layers`, which is `layers` below
  std::vector<LayerWeights> layers;
  const float* embedding;
  void* memory = nullptr;
  LayerWeights* device_layers = nullptr;

  ~Parts() {
    cudaFree(memory);
    cudaFree(device_layers);
  }
};

size_t BulkModel::BytesFor(const Dims& dims, const Weights& weights) {
  Weights model = weights;
  std::vector<LayerWeights> layers(weights.layers, weights.layers + dims.layers);
  Collector all;
  CollectModel(dims, &model, &all);
  for (LayerWeights& layer : layers) CollectLayer(dims, &layer, &all);
  return sizeof(float) * static_cast<size_t>(all.floats()) + sizeof(LayerWeights) * layers.size();
}

Fault BulkModel::Create(const Dims& dims, const Weights& weights, const float* embedding,
                        std::unique_ptr<const BulkModel>* model) {
  std::unique_ptr<BulkModel> made(new BulkModel);
  made->parts_ = std::make_unique<Parts>();
  Parts& parts = *made->parts_;
  parts.dims = dims;
  parts.weights = weights;
  parts.layers.assign(weights.layers, weights.layers + dims.layers);
  parts.weights.layers = parts.layers.data();
  parts.embedding = embedding;
  Collector all;
  CollectModel(dims, &parts.weights, &all);
  for (LayerWeights& layer : parts.layers) CollectLayer(dims, &layer, &all);
  Fault fault =
      Describe(cudaMalloc(&parts.memory, sizeof(float) * static_cast<size_t>(all.floats())));
  if (fault == nullptr) fault = all.Upload(static_cast<float*>(parts.memory), nullptr);
  const size_t layer_bytes = sizeof(LayerWeights) * parts.layers.size();
  void* layers = nullptr;
  if (fault == nullptr) fault = Describe(cudaMalloc(&layers, layer_bytes));
  parts.device_layers = static_cast<LayerWeights*>(layers);
  if (fault == nullptr) {
    fault = Describe(cudaMemcpy(layers, parts.layers.data(), layer_bytes, cudaMemcpyHostToDevice));
  }
  if (fault == nullptr) fault = Describe(cudaDeviceSynchronize());
  if (fault != nullptr) return fault;
  *model = std::move(made);
  return nullptr;
}

BulkModel::~BulkModel() = default;

size_t BulkModel::WorkspaceBytes(const Dims& dims, int32_t count, int32_t events) {
  Workspace at;
  return Carve(dims, count, events, nullptr, &at);
}

Fault BulkModel::EncodeWindows(const DeviceQuery* windows, const int32_t* first, int32_t count,
                               int32_t events_count, float* queries, void* workspace,
                               Stream stream) const {
  if (count == 0) return nullptr;
  const Dims& s = parts_->dims;
  if (s.window == 0) return "EncodeWindows needs a model with a window";
  Workspace at;
  Carve(s, count, events_count, static_cast<char*>(workspace), &at);
  const Fault fault = bulk::UnpackWindows(s, windows, first, count, at.events, stream);
  if (fault != nullptr) return fault;
  return Encode(at.events, first, count, events_count, nullptr, queries, workspace, stream);
}

Fault BulkModel::Encode(const kernels::Event* events, const int32_t* first, int32_t count,
                        int32_t events_count, const int64_t* as_of_ms, float* queries,
                        void* workspace, Stream stream) const {
  if (count == 0) return nullptr;
  const Dims& s = parts_->dims;
  if (s.time_query && as_of_ms == nullptr) return "Encode needs the queries' times";
  Workspace at;
  Carve(s, count, events_count, static_cast<char*>(workspace), &at);
  const bulk::Histories histories = {events,   first,     count,     events_count,
                                     at.place, at.gap_ms, at.feature};
  Fault fault = bulk::Place(s, histories, stream);
  if (fault == nullptr) {
    fault = bulk::Embed(s, parts_->weights, parts_->embedding, histories, at.x, stream);
  }
  if (fault == nullptr && s.window > 0) {
    fault = bulk::GateWindows(s, parts_->weights.window_norm, parts_->weights.window_norm_bias,
                              parts_->device_layers, histories, at.windows, at.gates, stream);
  }
  const int64_t projections = s.projections();
  for (int32_t layer = 0; layer < s.layers && fault == nullptr; ++layer) {
    const LayerWeights& w = parts_->layers[static_cast<size_t>(layer)];
    fault = bulk::Multiply({at.x, s.d, w.in_proj, w.in_proj_bias, events_count, s.d,
                            s.projections(), at.projected, projections, false, nullptr},
                           stream);
    if (fault != nullptr) break;
    float* gate = at.gates + (s.window > 0 ? int64_t{layer} * events_count * s.h : 0);
    fault = bulk::Mix(s, w, histories,
                      {at.projected, at.xbc, at.delta, at.log_carry, at.q, at.r1, gate}, stream);
    if (fault != nullptr) break;
    BulkSsd ssd = {};
    ssd.count = count;
    ssd.h = s.h;
    ssd.p = s.p;
    ssd.n = s.n;
    ssd.first = first;
    ssd.x = at.xbc;
    ssd.b = at.xbc + s.e;
    ssd.c = ssd.b + s.n;
    ssd.stride = s.conv_channels();
    ssd.delta = at.delta;
    ssd.log_carry = at.log_carry;
    ssd.skip = w.skip;
    ssd.y = at.y;
    ssd.y_stride = s.e;
    fault = RunBulkSsd(ssd, stream);
    if (fault != nullptr) break;
    if (layer + 1 < s.layers) {
      fault = FinishLayer(
          s, w, {events_count, at.x, at.u, at.y, at.projected, at.projected, projections}, stream);
      continue;
    }
    // Nothing reads the last layer's other rows.
    fault = bulk::GatherLast(histories, at.x, s.d, s.d, at.last_x, stream);
    if (fault == nullptr) {
      fault = bulk::GatherLast(histories, at.projected, projections, s.e, at.last_z, stream);
    }
    if (fault == nullptr) fault = bulk::GatherLast(histories, at.y, s.e, s.e, at.last_y, stream);
    if (fault == nullptr) {
      fault = FinishLayer(
          s, w, {count, at.last_x, at.last_u, at.last_y, at.last_ffn, at.last_z, s.e}, stream);
    }
  }
  if (fault != nullptr) return fault;
  if (s.time_query) {
    return bulk::MakeQueries(s, parts_->weights, histories, as_of_ms, at.last_x, queries, stream);
  }
  return Describe(cudaMemcpyAsync(
      queries, at.last_x, sizeof(float) * static_cast<size_t>(count) * static_cast<size_t>(s.d),
      cudaMemcpyDefault, stream));
}

}  // namespace tim4rec::cuda
