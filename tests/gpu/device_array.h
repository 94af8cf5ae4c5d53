// For programs that check kernels on the host device and, made by nvcc alone, on a GPU: device
// memory with guard bands, and checks that end the program.
#ifndef TIM4REC_TESTS_GPU_DEVICE_ARRAY_H_
#define TIM4REC_TESTS_GPU_DEVICE_ARRAY_H_

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/kernels/cuda/device.h"

namespace tim4rec::cuda {

#ifdef TIM4REC_HOST_DEVICE
inline constexpr bool kOnGpu = false;
#else
inline constexpr bool kOnGpu = true;
#endif

// Whether to take the sizes for a GPU: not on the host, nor with TIM4REC_TEST_SMALL in the
// environment, for compute-sanitizer.
inline bool TakesLarge() { return kOnGpu && std::getenv("TIM4REC_TEST_SMALL") == nullptr; }

inline void Expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

inline void Check(Fault fault) {
  if (fault != nullptr) Expect(false, std::string("the device says: ") + fault);
}

// Device memory, all bits set at first (floats are NaN), between guard bands. Moves keep data().
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    Check(Describe(cudaMalloc(&base_, bytes() + 2 * kGuard)));
    Check(Describe(cudaMemset(base_, kPattern, kGuard)));
    Check(Describe(cudaMemset(static_cast<char*>(base_) + kGuard + bytes(), kPattern, kGuard)));
    if (kOnGpu) Check(Describe(cudaMemset(data(), 0xff, bytes())));  // else fresh memory is so
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (values.empty()) return;
    Check(Describe(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice)));
  }
  DeviceArray(DeviceArray&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), count_(other.count_) {}
  DeviceArray& operator=(DeviceArray&&) = delete;
  ~DeviceArray() {
    if (base_ == nullptr) return;
    CheckGuards();
    cudaFree(base_);
  }

  T* data() const { return reinterpret_cast<T*>(static_cast<char*>(base_) + kGuard); }

  std::vector<T> Download() const {
    std::vector<T> values(count_);
    Check(Describe(cudaDeviceSynchronize()));
    if (count_ == 0) return values;
    Check(Describe(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost)));
    return values;
  }

  void CheckGuards() const {
    unsigned char guards[2 * kGuard];
    const char* end = static_cast<const char*>(base_) + kGuard + bytes();
    Check(Describe(cudaDeviceSynchronize()));
    Check(Describe(cudaMemcpy(guards, base_, kGuard, cudaMemcpyDeviceToHost)));
    Check(Describe(cudaMemcpy(guards + kGuard, end, kGuard, cudaMemcpyDeviceToHost)));
    for (const unsigned char byte : guards) Expect(byte == kPattern, "a guard band was written");
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kPattern = 0xa5;

  size_t bytes() const { return count_ * sizeof(T); }

  void* base_ = nullptr;
  size_t count_;
};

// Whether there is a device to use; says why not.
inline bool HasDevice() {
#ifndef TIM4REC_HOST_DEVICE
  int devices = 0;
  if (const Fault fault = Describe(cudaGetDeviceCount(&devices)); fault != nullptr) {
    std::printf("skipped: no CUDA device can be used: %s\n", fault);
    return false;
  }
#endif
  return true;
}

struct NamedTest {
  const char* name;
  std::function<void(std::mt19937_64&)> run;
};

// Runs all, each with a generator of its own. What fails ends the program with status 1.
inline int RunTests(const std::vector<NamedTest>& tests) {
  const char* given = std::getenv("TIM4REC_TEST_SEED");
  const uint64_t seed =
      given == nullptr ? std::random_device()() : std::strtoull(given, nullptr, 10);
  std::printf("TIM4REC_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  for (const NamedTest& test : tests) {
    std::printf("%s ", test.name);
    std::fflush(stdout);
    std::mt19937_64 random(seed);
    const std::clock_t start = std::clock();
    test.run(random);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    std::printf("passed in %.1f s of CPU\n", seconds);
  }
  return 0;
}

}  // namespace tim4rec::cuda

#endif  // TIM4REC_TESTS_GPU_DEVICE_ARRAY_H_
