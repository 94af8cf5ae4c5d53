// Times of work on a GPU, for bench programs: events around graph replays.
#ifndef TIM4REC_TESTS_GPU_BENCH_TIMING_H_
#define TIM4REC_TESTS_GPU_BENCH_TIMING_H_

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/gpu/device_array.h"

namespace tim4rec::cuda {

inline constexpr int kSets = 4;  // of inputs, taken in turn

struct Times {
  double median, least, most;  // ms
};

// `run(i)` puts the i-th repetition on the stream; it is captured once per set and replayed.
inline Times Measure(cudaStream_t stream, int rounds, const std::function<void(int)>& run) {
  std::vector<cudaGraphExec_t> graphs(kSets);
  for (int set = 0; set < kSets; ++set) {
    cudaGraph_t graph;
    Check(Describe(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal)));
    run(set);
    Check(Describe(cudaStreamEndCapture(stream, &graph)));
    Check(Describe(cudaGraphInstantiate(&graphs[static_cast<size_t>(set)], graph, 0)));
    Check(Describe(cudaGraphDestroy(graph)));
  }
  cudaEvent_t begin, end;
  Check(Describe(cudaEventCreate(&begin)));
  Check(Describe(cudaEventCreate(&end)));
  std::vector<double> times;
  for (int round = -1; round < rounds; ++round) {  // the first one warms up
    Check(Describe(cudaEventRecord(begin, stream)));
    for (const cudaGraphExec_t graph : graphs) Check(Describe(cudaGraphLaunch(graph, stream)));
    Check(Describe(cudaEventRecord(end, stream)));
    Check(Describe(cudaEventSynchronize(end)));
    float ms = 0;
    Check(Describe(cudaEventElapsedTime(&ms, begin, end)));
    if (round >= 0) times.push_back(ms / kSets);
  }
  for (const cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back()};
}

inline void Print(const std::string& what, const Times& times, const std::string& more) {
  std::printf("{\"what\": \"%s\", \"ms\": %.4f, \"least\": %.4f, \"most\": %.4f%s}\n", what.c_str(),
              times.median, times.least, times.most, more.c_str());
  std::fflush(stdout);
}

inline std::string Number(const char* name, double value) {
  char text[96];
  std::snprintf(text, sizeof(text), ", \"%s\": %.6g", name, value);
  return text;
}

inline unsigned Processors() {
  int device = 0, processors = 0;
  Check(Describe(cudaGetDevice(&device)));
  Check(Describe(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)));
  return static_cast<unsigned>(processors);
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_TESTS_GPU_BENCH_TIMING_H_
