// The fold of models of any sizes.
#include "model/kernels/cuda/fold_launch-inl.h"

namespace tim4rec::cuda {

Fault FoldAny(const FoldModel& model, const FoldBatch& batch, Stream stream) {
  Folder<AnyShape> folder(model, batch);
  if (folder.rows() > 4 && folder.Fits<16, false>()) return folder.Start<16, false>(stream);
  if (folder.rows() > 1 && folder.Fits<4, false>()) return folder.Start<4, false>(stream);
  if (!folder.Fits<1, false>()) folder.UseWorkspace(batch.workspace);
  return folder.Start<1, false>(stream);
}

size_t FoldAnyWorkspaceBytes(const FoldModel& model) {
  AnyShape shape;
  SetShape(model.dims, &shape);
  if (FoldSharedBytes<AnyShape, 1, false>(shape, model.dims.ffn, false) <= model.shared_bytes) {
    return 0;
  }
  return sizeof(float) * static_cast<size_t>(model.multiprocessors) *
         static_cast<size_t>(PlaceTile(shape, 1).floats);
}

}  // namespace tim4rec::cuda
