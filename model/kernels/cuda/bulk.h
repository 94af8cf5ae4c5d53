// The bulk mode: query vectors of whole histories at once, on matrix units, for work whose states
// are not kept: above all the windows of published models (rules 14 to 17 of kernels.h), and
// histories of the others. Every product sum of rule 1 is a tf32 matrix product with float32 sums,
// the recurrence is bulk_ssd.h's; all else is float32. Results are not those of the exact kernels,
// bit for bit, and no state comes of them.
//
// PRECISION. The same as rounding the model's weights and activations to tf32 (2^-11): the tests
// hold the error of query vectors to at most 4 times that of scalar code whose weights alone are so
// rounded, over random models.
//
// On one kind of device a history has one answer, bit for bit, whatever else is in the batch.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_BULK_H_
#define TIM4REC_MODEL_KERNELS_CUDA_BULK_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "model/kernels/cuda/fault.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/kernels.h"

namespace tim4rec::cuda {

// A model's weights on the device as this mode reads them. Immutable: calls on several streams may
// overlap, each with its own workspace.
class BulkModel {
 public:
  // Copies all but the embedding to the current device, and waits for it. `embedding` is [V][D] in
  // device memory and stays in use.
  static Fault Create(const kernels::Dims& dims, const kernels::Weights& weights,
                      const float* embedding, std::unique_ptr<const BulkModel>* model);
  // Device memory that Create takes.
  static size_t BytesFor(const kernels::Dims& dims, const kernels::Weights& weights);
  ~BulkModel();
  BulkModel(const BulkModel&) = delete;
  BulkModel& operator=(const BulkModel&) = delete;

  // Device memory, 256-byte aligned, that the encoding of `count` histories of `events` events
  // needs, and so that of fewer; about 3.3 KB per event at D = 64.
  static size_t WorkspaceBytes(const kernels::Dims& dims, int32_t count, int32_t events);

  // Puts the encoding of `count` histories on the stream. All pointers are device memory. Event i
  // of history s is events[first[s] + i]; first is [count + 1], from 0 to the number of
  // `events_count` events; no history is empty, and none of a model with a window is longer than
  // it. as_of_ms [count] is read if the model has a query gate (null otherwise). Writes [count][D],
  // which may be pinned host memory.
  Fault Encode(const kernels::Event* events, const int32_t* first, int32_t count,
               int32_t events_count, const int64_t* as_of_ms, float* queries, void* workspace,
               Stream stream) const;

  // Of a model with a window: Encode of the windows of records, which may be asked for in pinned
  // host memory. Window s has first[s + 1] - first[s] events, min(folded_events, L) of its record.
  Fault EncodeWindows(const DeviceQuery* windows, const int32_t* first, int32_t count,
                      int32_t events_count, float* queries, void* workspace, Stream stream) const;

 private:
  BulkModel() = default;

  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_BULK_H_
