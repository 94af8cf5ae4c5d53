// Folding and queries on a device: kernels.h's arithmetic, bit for bit, for batches of users whose
// records lie in device memory. Plain C++: includers need no CUDA header.
//
// All pointers in DeviceRun, DeviceQuery and in the calls are device pointers; runs, events and
// queries may be pinned host memory that the device can read. Every call starts kernels on the
// stream and returns: it allocates nothing, waits for nothing and may be captured in a graph, which
// then reads runs, events and queries anew at every replay. What is wrong with a launch is
// returned; a fault while it runs is sticky and reported by the runtime's next calls.
//
// What does not follow the contract (a null or misaligned record, an item outside the table, events
// that do not lie as described) is undefined: the caller checks, as for kernels::Scan.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FOLD_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FOLD_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "model/kernels/cuda/fault.h"
#include "model/kernels/kernels.h"

namespace tim4rec::cuda {

// Events to fold, in order, into a record: StateLayout's bytes, 16-byte aligned.
struct alignas(16) DeviceRun {
  kernels::StateHeader* state;  // not looked at where `count` is 0
  int32_t first_event;          // index into the call's events
  int32_t count;                // 0 changes nothing
};

// A query vector to make of a record at a time. The record must hold at least one event where the
// model has a window.
struct alignas(16) DeviceQuery {
  const kernels::StateHeader* state;  // null: nothing is made, the query's place stays as it is
  int64_t as_of_ms;                   // a model with a window does not look at it
};

// A model on the device: weights in the layout that the kernels read, the item embeddings included
// (4 V D bytes), once. Immutable: calls on several streams may overlap, each with its own
// workspace.
class DeviceModel {
 public:
  // Copies everything to the current device and waits for it: `weights` may go away. On a fault
  // nothing stays allocated; running out of memory is one, device_bytes tells what was needed.
  static Fault Create(const kernels::Dims& dims, const kernels::Weights& weights,
                      std::unique_ptr<const DeviceModel>* model);
  // Device memory that Create would take.
  static size_t BytesFor(const kernels::Dims& dims);
  // No call may be under way.
  ~DeviceModel();
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  const kernels::Dims& dims() const;
  size_t device_bytes() const;
  // The item embeddings [V][D] on the device.
  const float* embedding() const;

  // Bytes of device memory, 256-byte aligned, that Fold needs: 0 for the sizes that one kernel
  // takes (ServedShape), else about 64 MiB.
  static size_t FoldWorkspaceBytesFor(const kernels::Dims& dims);
  size_t FoldWorkspaceBytes() const;
  // The same for Query of up to `count` queries: 0 but for models with a window.
  size_t QueryWorkspaceBytes(int64_t count) const;

  // Folds runs into their records, which must be distinct. The events of the runs lie one after the
  // other: runs[0].first_event is 0, runs[i+1].first_event is runs[i].first_event + runs[i].count
  // (a batch is filled up with runs of no events, in that order too). `most_events`, which is not
  // less than the events of all runs, sets how many blocks are started: for a graph that is
  // replayed with other runs, the most that they may have. The bits do not depend on it, nor on the
  // order of the runs. For a model with a window, events are pushed into it.
  Fault Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
             int32_t most_events, void* workspace, Stream stream) const;

  // queries[i]'s vector to out[i] [D]; `out` is 16-byte aligned. For a model with a window, encodes
  // it: cost as folding its events; count * L is below 2^31.
  Fault Query(const DeviceQuery* queries, int32_t count, float* out, void* workspace,
              Stream stream) const;

 private:
  DeviceModel() = default;

  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FOLD_H_
