// How much shared memory the fold's kernels take, without a GPU: what their launches rely on.
#include <gtest/gtest.h>

#include "model/kernels/cuda/fold_launch-inl.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::cuda {
namespace {

constexpr size_t kKib = 1024;
// Of a multiprocessor, as the programming guide's table has it; each block takes one more KiB, and
// one block may have at most all but that.
constexpr size_t kAmpere = 164 * kKib, kHopper = 228 * kKib;

template <int kRows, bool kStaged>
size_t Served() {
  const size_t bytes = FoldSharedBytes<ServedShape, kRows, kStaged>({}, /*ffn=*/true, false);
  std::printf("%d rows%s: %zu bytes\n", kRows, kStaged ? ", staged" : "", bytes);
  return bytes + kKib;
}

TEST(FoldMemory, TwoBlocksOfManyRowsShareAMultiprocessor) {
  EXPECT_LE(2 * (Served<16, false>()), kAmpere);
}

TEST(FoldMemory, StagedWeightsFit) {
  EXPECT_LE((Served<1, true>()), kAmpere);
  EXPECT_LE((Served<4, true>()), kHopper);
  EXPECT_LE((Served<8, true>()), kHopper);
}

TEST(FoldMemory, WideModelsKeepTilesOfManyRowsShared) {
  AnyShape shape;
  SetShape(gpu_test::DimsOf(gpu_test::ServedSizes(256)), &shape);
  const size_t bytes = FoldSharedBytes<AnyShape, 16, false>(shape, /*ffn=*/true, false);
  std::printf("16 rows of D=256: %zu bytes\n", bytes);
  EXPECT_LE(bytes + kKib, kAmpere);
}

}  // namespace
}  // namespace tim4rec::cuda
