// The first CUDA device of this machine, over the CUDA runtime and the kernels of
// model/kernels/cuda. Only in programs built with nvcc.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_RUNTIME_DEVICE_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_RUNTIME_DEVICE_H_

#include <memory>

#include "model/backends/cuda/device.h"

namespace tim4rec::cuda {

// Starts the device: the driver's own text if there is none that can be used.
Fault OpenRuntimeDevice(std::unique_ptr<Device>* device);

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_RUNTIME_DEVICE_H_
