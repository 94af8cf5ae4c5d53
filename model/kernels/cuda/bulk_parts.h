// The launches of which the bulk mode is made; see bulk.h. All pointers are device memory; rows are
// events, one after the other.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_BULK_PARTS_H_
#define TIM4REC_MODEL_KERNELS_CUDA_BULK_PARTS_H_

#include <cstdint>

#include "model/kernels/cuda/fault.h"
#include "model/kernels/cuda/fold.h"
#include "model/kernels/kernels.h"

namespace tim4rec::cuda::bulk {

// y = x w + bias, then what `then` says. w is [inputs][outputs].
struct Product {
  const float* x;
  int64_t x_stride;
  const float *w, *bias;
  int32_t rows, inputs, outputs;
  float* y;
  int64_t y_stride;
  bool hardswish;
  const float* residual;  // added, rows as y's; null: nothing is
};
Fault Multiply(const Product& product, Stream stream);

// Histories and their events.
struct Histories {
  const kernels::Event* events;
  const int32_t* first;  // [count + 1]
  int32_t count, rows;
  int32_t* place;           // [rows]: the event's index in its history
  float *gap_ms, *feature;  // [rows]: rule 5
};
Fault Place(const kernels::Dims& dims, const Histories& histories, Stream stream);
// The events of records' windows, events[first[s]] … those of window s; requests may be pinned host
// memory.
Fault UnpackWindows(const kernels::Dims& dims, const DeviceQuery* windows, const int32_t* first,
                    int32_t count, kernels::Event* events, Stream stream);
// Rule 6: x [rows][D].
Fault Embed(const kernels::Dims& dims, const kernels::Weights& weights, const float* embedding,
            const Histories& histories, float* x, Stream stream);

// A layer's values before the recurrence.
struct Mixed {
  const float* projected;    // [rows][2E+2N+H]
  float* xbc;                // [rows][C]: convolved
  float *delta, *log_carry;  // [rows][H]
  float *q, *r1;             // [rows][H], scratch of the write gate
  float* gate;               // [rows][H]: r of a window; scratch otherwise
};
// Rules 7 to 9.
Fault Mix(const kernels::Dims& dims, const kernels::LayerWeights& w, const Histories& histories,
          const Mixed& mixed, Stream stream);

// Rule 11's gate and norm, in place: y [rows][E]; z's rows are z_stride apart.
Fault GateAndNorm(const kernels::Dims& dims, const kernels::LayerWeights& w, const float* z,
                  int64_t z_stride, int32_t rows, float* y, Stream stream);
// LayerNorm of u [rows][D] to x.
Fault Normalize(const float* u, const float* w, const float* bias, float eps, int32_t d,
                int32_t rows, float* x, Stream stream);
// to[s] = the first `width` values of the last row of history s.
Fault GatherLast(const Histories& histories, const float* from, int64_t stride, int32_t width,
                 float* to, Stream stream);

// Rules 14 to 16: gates [layers][rows][H]. Scratch: [count][4][H][L].
Fault GateWindows(const kernels::Dims& dims, const float* norm, const float* norm_bias,
                  const kernels::LayerWeights* layers /* device */, const Histories& histories,
                  float* scratch, float* gates, Stream stream);

// The query gate: x [count][D] to queries.
Fault MakeQueries(const kernels::Dims& dims, const kernels::Weights& weights,
                  const Histories& histories, const int64_t* as_of_ms, const float* x,
                  float* queries, Stream stream);

}  // namespace tim4rec::cuda::bulk

#endif  // TIM4REC_MODEL_KERNELS_CUDA_BULK_PARTS_H_
