#include "model/kernels/rank_table.h"

#include <cmath>
#include <cstring>

namespace tim4rec::kernels {
namespace {

constexpr float kSmallestScale = 0x1p-80f;

// Sums of squares in float64 err by far less than this.
constexpr double kRoundedUp = 1 + 1e-6;

}  // namespace

int64_t RankCodes(int32_t items, int32_t d) {
  return (static_cast<int64_t>(items) + 15) / 16 * 16 * ((static_cast<int64_t>(d) + 3) / 4 * 4);
}

int64_t RankScales(int32_t items) { return (static_cast<int64_t>(items) + 15) / 16 * 16; }

RankTable QuantizeItems(const float* embedding, int32_t items, int32_t d, uint8_t* codes,
                        float* scales) {
  const int64_t groups = (static_cast<int64_t>(d) + 3) / 4;
  std::memset(codes, 128, static_cast<size_t>(RankCodes(items, d)));
  std::memset(scales, 0, sizeof(float) * static_cast<size_t>(RankScales(items)));
  double residual = 0, code_norm = 0;
  float largest_scale = 0;
  for (int32_t item = 0; item < items; ++item) {
    const float* row = embedding + static_cast<int64_t>(item) * d;
    float largest = 0;
    for (int32_t i = 0; i < d; ++i) {
      const float magnitude = std::fabs(row[i]);
      if (magnitude > largest) largest = magnitude;
    }
    float scale = largest / 127.0f;
    if (scale < kSmallestScale) scale = kSmallestScale;
    if (scale > largest_scale) largest_scale = scale;
    scales[item] = scale;
    uint8_t* block = codes + static_cast<int64_t>(item / 16) * groups * 64 + item % 16 * 4;
    double difference_squares = 0, code_squares = 0;
    for (int32_t i = 0; i < d; ++i) {
      const double exact = static_cast<double>(row[i]) / static_cast<double>(scale);
      double code = std::nearbyint(exact);
      if (code > 127) code = 127;
      if (code < -127) code = -127;
      block[i / 4 * 64 + i % 4] = static_cast<uint8_t>(static_cast<int>(code) + 128);
      difference_squares += (exact - code) * (exact - code);
      code_squares += code * code;
    }
    if (difference_squares > residual) residual = difference_squares;
    if (code_squares > code_norm) code_norm = code_squares;
  }
  RankTable table = {};
  table.items = items;
  table.d = d;
  table.embedding = embedding;
  table.codes = codes;
  table.scales = scales;
  table.residual = static_cast<float>(std::sqrt(residual) * kRoundedUp + 1e-6);
  table.code_norm = static_cast<float>(std::sqrt(code_norm) * kRoundedUp);
  table.largest_scale = largest_scale;
  return table;
}

}  // namespace tim4rec::kernels
