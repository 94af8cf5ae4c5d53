#include "model/backends/cuda/bulk_bound.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "model/kernels/math.h"

namespace tim4rec::cuda {
namespace {

// As mma.h's, which only kernel sources include: to ten bits after the point, ties away from zero.
float RoundToTf32(float x) { return kernels::FloatOf((kernels::BitsOf(x) + 0x1000U) & ~0x1fffU); }

// Memory for kernels, aligned to 16 bytes.
struct alignas(16) Piece {
  std::byte bytes[16];
};
std::vector<Piece> Pieces(int64_t bytes) {
  return std::vector<Piece>(static_cast<size_t>(bytes + 15) / sizeof(Piece));
}

std::vector<float> Encode(const kernels::Dims& dims, const kernels::Weights& weights,
                          const ProbeCase& probe) {
  std::vector<kernels::Event> events;
  for (size_t i = 0; i < probe.items.size(); ++i) {
    events.push_back({probe.items[i], probe.timestamps_ms[i]});
  }
  auto record = Pieces(static_cast<int64_t>(sizeof(kernels::StateHeader)) + 12 * dims.window);
  auto scratch = Pieces(4 * kernels::WindowScratchFloats(dims));
  auto* const state = reinterpret_cast<kernels::StateHeader*>(record.data());
  kernels::PushWindow(dims, events.data(), static_cast<int64_t>(events.size()), state);
  std::vector<float> query(static_cast<size_t>(dims.d));
  kernels::EncodeWindow(dims, weights, state, reinterpret_cast<float*>(scratch.data()),
                        query.data());
  return query;
}

}  // namespace

RoundedModel::RoundedModel(const kernels::Dims& dims, const kernels::Weights& weights)
    : weights_(weights), layers_(weights.layers, weights.layers + dims.layers) {
  weights_.layers = layers_.data();
  const auto round = [this](const float** values, int64_t count) {
    if (*values == nullptr) return;
    std::vector<float>& rounded = rounded_.emplace_back(*values, *values + count);
    std::transform(rounded.begin(), rounded.end(), rounded.begin(), RoundToTf32);
    *values = rounded.data();
  };
  for (kernels::LayerWeights& layer : layers_) {
    round(&layer.in_proj, int64_t{dims.d} * dims.projections());
    round(&layer.out_proj, int64_t{dims.e} * dims.d);
    round(&layer.fc1, int64_t{dims.d} * dims.f);
    round(&layer.fc2, int64_t{dims.f} * dims.d);
  }
}

double RelativeError(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

double BulkQueryBound(const kernels::Dims& dims, const kernels::Weights& weights,
                      std::span<const ProbeCase> probe) {
  const RoundedModel rounded(dims, weights);
  double largest = 0;
  for (const ProbeCase& one : probe) {
    largest = std::max(
        largest, RelativeError(Encode(dims, rounded.weights(), one), Encode(dims, weights, one)));
  }
  return 4 * (largest + 0x1p-11);
}

}  // namespace tim4rec::cuda
