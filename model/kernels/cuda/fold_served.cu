// The fold of models of the sizes that are served.
#include "model/kernels/cuda/fold_launch-inl.h"

namespace tim4rec::cuda {

Fault FoldServed(const FoldModel& model, const FoldBatch& batch, Stream stream) {
  Folder folder(model, batch);
  if (folder.StartsStaged<1>()) return folder.Start<1, true>(stream);
  if (folder.StartsStaged<4>()) return folder.Start<4, true>(stream);
  if (folder.StartsStaged<8>()) return folder.Start<8, true>(stream);
  folder.StartTwice();
  return folder.Start<16, false>(stream);
}

}  // namespace tim4rec::cuda
