#include "model/kernels/math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>

namespace tim4rec::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr uint32_t kStride = 1009;  // a prime: visits all exponents and varied mantissas

// Distance to the exact value in units of its last place as a float32.
double UlpError(float actual, double exact) {
  if (std::isinf(actual)) {
    return exact > 0x1.ffffffp127 ? 0 : std::numeric_limits<double>::infinity();
  }
  int exponent = -126;
  if (exact != 0) exponent = std::max(std::ilogb(exact), -126);
  return std::abs(static_cast<double>(actual) - exact) / std::ldexp(1.0, exponent - 23);
}

// The largest error over floats of every magnitude within [low, high].
double WorstError(float (*function)(float), const std::function<double(double)>& exact, float low,
                  float high) {
  double worst = 0;
  float worst_at = 0;
  for (uint64_t bits = 0; bits <= UINT32_MAX; bits += kStride) {
    const float x = FloatOf(static_cast<uint32_t>(bits));
    if (!(x >= low && x <= high)) continue;
    const double error = UlpError(function(x), exact(x));
    if (error > worst) {
      worst = error;
      worst_at = x;
    }
  }
  std::printf("worst error %.3f ulp at %.9g\n", worst, static_cast<double>(worst_at));
  return worst;
}

double ExactSigmoid(double x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}
double ExactSoftplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

TEST(KernelMath, ExpIsWithinItsBound) {
  EXPECT_LE(WorstError(
                Exp, [](double x) { return std::exp(x); }, -kInf, kInf),
            2);
}

TEST(KernelMath, Log1pIsWithinItsBound) {
  EXPECT_LE(WorstError(
                Log1p, [](double x) { return std::log1p(x); }, 0, kInf),
            2);
}

TEST(KernelMath, SoftplusIsWithinItsBound) {
  EXPECT_LE(WorstError(Softplus, ExactSoftplus, -kInf, kInf), 2);
}

TEST(KernelMath, SigmoidIsWithinItsBound) {
  EXPECT_LE(WorstError(Sigmoid, ExactSigmoid, -kInf, kInf), 3);
}

TEST(KernelMath, SiluIsWithinItsBound) {
  // Below -103 the sigmoid is a denormal or 0, and x times its rounding is what is left.
  EXPECT_LE(WorstError(
                Silu, [](double x) { return x * ExactSigmoid(x); }, -87, kInf),
            5);
  for (float x = -1000; x < -87; x += 0.25f) EXPECT_NEAR(Silu(x), 0, 1e-35);
}

TEST(KernelMath, HardswishIsWithinItsBound) {
  const auto exact = [](double x) { return x * std::clamp(x + 3, 0.0, 6.0) / 6; };
  EXPECT_LE(WorstError(Hardswish, exact, -2, kInf), 3);
  for (float x = -5; x < -2; x += 0x1p-12f) EXPECT_NEAR(Hardswish(x), exact(x), 4e-7);
}

TEST(KernelMath, HandlesTheEnds) {
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(kInf), kInf);
  EXPECT_EQ(Exp(-kInf), 0);
  EXPECT_EQ(Exp(89), kInf);
  EXPECT_EQ(Exp(-104), 0);
  EXPECT_GT(Exp(-103), 0) << "denormals are kept";
  EXPECT_EQ(Log1p(0), 0);
  EXPECT_EQ(Log1p(kInf), kInf);
  EXPECT_EQ(Log1p(1e-45f), 1e-45f);
  EXPECT_EQ(Softplus(kInf), kInf);
  EXPECT_EQ(Softplus(-kInf), 0);
  EXPECT_EQ(Sigmoid(kInf), 1);
  EXPECT_EQ(Sigmoid(-kInf), 0);
  EXPECT_EQ(Sigmoid(0), 0.5f);
  EXPECT_EQ(Silu(kInf), kInf);
  EXPECT_EQ(Hardswish(kInf), kInf);
  for (auto function : {Exp, Log1p, Softplus, Sigmoid, Silu, Hardswish}) {
    EXPECT_TRUE(std::isnan(function(kNaN)));
  }
}

TEST(KernelMath, ExpIsMonotonicAroundZero) {
  for (float x = -2; x < 2; x = std::nextafter(x + 1e-5f, 3.0f)) {
    EXPECT_LE(Exp(x), Exp(x + 1e-5f)) << x;
  }
}

}  // namespace
}  // namespace tim4rec::kernels
