// How much shared memory the fold's kernels take, without a GPU: what their launches rely on.
#include <gtest/gtest.h>

#include "model/kernels/cuda/fold_launch-inl.h"
#include "model/kernels/cuda/layer_chunk.h"
#include "model/kernels/cuda/layer_product-inl.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::cuda {
namespace {

constexpr size_t kKib = 1024;
// Of a multiprocessor, as the programming guide's table has it; each block takes one more KiB, and
// one block may have at most all but that.
constexpr size_t kAmpere = 164 * kKib, kHopper = 228 * kKib;

template <int kRows, bool kStaged>
size_t Served() {
  const size_t bytes = FoldSharedBytes<kRows, kStaged>(/*ffn=*/true);
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

TEST(FoldMemory, ThreeProductsShareAMultiprocessor) {
  for (const size_t bytes : {ProductTile<1>::kSharedBytes, ProductTile<8>::kSharedBytes}) {
    std::printf("a product: %zu bytes\n", bytes);
    EXPECT_LE(3 * (bytes + kKib), kAmpere);
    EXPECT_LE(4 * (bytes + kKib), kHopper);
  }
}

TEST(FoldMemory, WideModelsKeepTilesOfManyRowsShared) {
  const int32_t rows = StateTileRows(gpu_test::DimsOf(gpu_test::ServedSizes(256)));
  std::printf("D=256: %d rows in a tile\n", rows);
  EXPECT_GE(rows, 12);
  EXPECT_LE(2 * (kTileSharedBytes + kKib), kAmpere);
}

}  // namespace
}  // namespace tim4rec::cuda
