// What this machine can do now, measured beside what our kernels do.
#ifndef TIM4REC_TESTS_BENCH_CEILINGS_H_
#define TIM4REC_TESTS_BENCH_CEILINGS_H_

#include <cstdint>

namespace tim4rec {

// float32 operations of fused multiply-adds in registers (two each), with the vectors of `isa`:
// "avx512", "avx2"; else of one value at a time. Returns the number of operations done.
int64_t MultiplyAddInRegisters(const char* isa);

// Copies `bytes` between two buffers larger than any cache; returns the bytes read and written.
int64_t CopyMemory();

// Reads one of them; returns the bytes read.
int64_t ReadMemory();

// Seconds of processor time that this thread has used.
double ThreadSeconds();

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_BENCH_CEILINGS_H_
