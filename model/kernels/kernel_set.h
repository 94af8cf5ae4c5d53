// The same arithmetic as kernels.h, compiled for one instruction set each and computed for many
// rows at once: SIMD runs across outputs, lanes of a head or items, so that every result has the
// bits of scalar.cc.
#ifndef TIM4REC_MODEL_KERNELS_KERNEL_SET_H_
#define TIM4REC_MODEL_KERNELS_KERNEL_SET_H_

#include <cstdint>

#include "model/kernels/kernels.h"
#include "model/kernels/rank_table.h"

namespace tim4rec::kernels {

// A Linear in blocks of 16 outputs: weights [ceil(outputs/16)][inputs][16] and bias, zeros after
// the last output, 64-byte aligned.
struct BlockedLinear {
  const float* weights;
  const float* bias;
};

// What Fold reads of a layer besides its LayerWeights; parts that the model lacks are null.
struct BlockedLayer {
  BlockedLinear in_proj, out_proj, fc1, fc2, time_scale;
  // [kTileRows][H]: the layer's value of each head, repeated.
  const float *dt_bias, *a, *rate;
};

// Rows (events) that Fold takes through the model together: enough that the weights, read once per
// tile, cost little.
inline constexpr int32_t kTileRows = 48;

// `packed` is [inputs][outputs] as in LayerWeights; `blocked` has BlockedFloats values.
int64_t BlockedFloats(int64_t inputs, int64_t outputs);
void PackBlocks(const float* packed, int64_t inputs, int64_t outputs, float* blocked);

// Events to fold, in order, into a record; several runs have different records.
struct FoldRun {
  StateHeader* state;
  const Event* events;
  int64_t count;  // 0 changes nothing
  // What modulates the events' writes, from WindowWrites; null but for windows.
  const float* writes = nullptr;
};

enum class Function { kExp, kLog1p, kSoftplus, kSigmoid, kSilu, kHardswish };

struct KernelSet {
  const char* isa;

  // Scratch of Fold, in floats; 64-byte aligned memory is fastest.
  int64_t (*fold_scratch_floats)(const Dims& dims);
  void (*fold)(const Dims& dims, const Weights& weights, const BlockedLayer* layers,
               const FoldRun* runs, int64_t count, float* scratch);

  // kernels::TopK for several queries in one pass over the table: query i's best, best first, to
  // best[i] [k]; their number to found[i]. Cost: V D bytes read once, and a few thousand scores per
  // query.
  int64_t (*rank_scratch_floats)(int32_t d, int64_t count);
  void (*rank)(const RankTable& table, const TopKQuery* queries, int64_t count, Scored* const* best,
               int32_t* found, float* scratch);

  // result[i] = function(v[i]), for tests: a result that is not a number has any payload.
  void (*apply)(Function function, const float* v, int64_t n, float* result);
};

// The instruction sets compiled into this binary that this CPU has, best first; at most
// kMaxKernelSets, their number is returned. Scalar code is not among them.
inline constexpr int kMaxKernelSets = 4;
int SupportedKernelSets(const KernelSet* (&sets)[kMaxKernelSets]);

}  // namespace tim4rec::kernels

#endif  // TIM4REC_MODEL_KERNELS_KERNEL_SET_H_
