#include "model/reference/dropout.h"

#include <cmath>
#include <limits>

namespace tim4rec {

DropoutImpl::DropoutImpl(double p) : dropped_(std::llround(p * 65536)) {}

torch::Tensor DropoutImpl::forward(const torch::Tensor& x) const {
  if (!is_training() || dropped_ == 0) return x;
  const int64_t words = (x.numel() + 3) / 4;
  const auto bits = torch::empty({words}, x.options().dtype(torch::kInt64).requires_grad(false))
                        .random_(std::numeric_limits<int64_t>::min(), c10::optional<int64_t>())
                        .view(torch::kInt16)
                        .slice(0, 0, x.numel())
                        .view(x.sizes());
  const auto kept = bits.ge(dropped_ - 32768).to(x.scalar_type());
  return x * kept.mul_(65536.0 / static_cast<double>(65536 - dropped_));
}

}  // namespace tim4rec
