// How a batch is folded at the sizes that are served: which kernel, how many blocks.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAUNCH_INL_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAUNCH_INL_H_

#include "model/kernels/cuda/fold_batch.h"
#include "model/kernels/cuda/fold_kernel-inl.h"

namespace tim4rec::cuda {

template <int kRows, bool kStaged>
size_t FoldSharedBytes(bool ffn) {
  int64_t floats = PlaceTile({}, kRows).floats;
  if (kStaged) floats += StageFloats({}, ffn, 0) + StageFloats({}, ffn, 1);
  return IndexBytes<kRows>() + sizeof(float) * static_cast<size_t>(floats);
}

class Folder {
 public:
  Folder(const FoldModel& model, const FoldBatch& batch)
      : multiprocessors_(model.multiprocessors), shared_bytes_(model.shared_bytes) {
    a_ = {};
    a_.dims = model.dims;
    a_.at = model.places;
    a_.weights = model.weights;
    a_.embedding = model.embedding;
    a_.runs = batch.runs;
    a_.run_count = batch.run_count;
    a_.events = batch.events;
    a_.writes = batch.writes;
    // One block per multiprocessor, and no more than there are runs to share.
    blocks_ = Least(batch.run_count, multiprocessors_);
    rows_ = (batch.most_events + blocks_ - 1) / blocks_;
  }

  // The few rows of a small batch wait for weights, which are then staged.
  template <int kRows>
  bool StartsStaged() const {
    return rows_ <= kRows && SharedBytes<kRows, true>() <= shared_bytes_;
  }

  template <int kRows, bool kStaged>
  Fault Start(Stream stream) const {
    const Grid grid = {static_cast<unsigned>(blocks_), kFoldThreads, SharedBytes<kRows, kStaged>()};
    return Launch(FoldRuns<kRows, kStaged>, grid, stream, a_);
  }

  // Two blocks share a multiprocessor: one waits for memory while the other computes.
  void StartTwice() {
    if (rows_ > 16) blocks_ = Least(a_.run_count, 2 * multiprocessors_);
  }

 private:
  static int32_t Least(int32_t x, int32_t y) { return x < y ? x : y; }

  template <int kRows, bool kStaged>
  size_t SharedBytes() const {
    return FoldSharedBytes<kRows, kStaged>(a_.dims.ffn);
  }

  FoldArguments a_;
  const int32_t multiprocessors_;
  const size_t shared_bytes_;
  int32_t blocks_ = 0, rows_ = 0;  // of a block
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_LAUNCH_INL_H_
