// What every launch interface of this folder speaks of. Plain C++: no CUDA header is needed.
#ifndef TIM4REC_MODEL_KERNELS_CUDA_FAULT_H_
#define TIM4REC_MODEL_KERNELS_CUDA_FAULT_H_

struct CUstream_st;  // the runtime's own name

namespace tim4rec::cuda {

// Null if all went well, else a text with static lifetime: the runtime's or driver's own for what
// went wrong, or what the caller must change.
using Fault = const char*;

// A cudaStream_t; null is the default stream.
using Stream = CUstream_st*;

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_KERNELS_CUDA_FAULT_H_
