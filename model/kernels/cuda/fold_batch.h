// Between fold.cu and the sources that compile the fold's kernels, each for its own sizes.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_BATCH_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_BATCH_H_

#include <cstddef>

#include "model/kernels/cuda/fold.h"
#include "model/kernels/cuda/fold_layout.h"

namespace tim4rec::cuda {

struct FoldModel {
  kernels::Dims dims;
  ModelPlaces places;
  const float *weights, *embedding;
  int32_t multiprocessors;
  size_t shared_bytes;  // that a block may have
};

// What DeviceModel::Fold gets; at least one run and one event.
struct FoldBatch {
  const DeviceRun* runs;
  int32_t run_count;
  const kernels::Event* events;
  int32_t most_events;
  const float* writes;  // of windows, see FoldArguments
  float* workspace;
};

// For models with IsServed.
Fault FoldServed(const FoldModel& model, const FoldBatch& batch, Stream stream);

// For any model.
Fault FoldLayers(const FoldModel& model, const FoldBatch& batch, Stream stream);
// What it needs as workspace.
size_t FoldLayersWorkspaceBytes(const kernels::Dims& dims);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_BATCH_H_
