// A device that computes with the scalar truth in main memory, and fails where a test says so.
#ifndef TIM4REC_TESTS_MODEL_CUDA_SCALAR_DEVICE_H_
#define TIM4REC_TESTS_MODEL_CUDA_SCALAR_DEVICE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/backends/cuda/bulk_bound.h"
#include "model/backends/cuda/cuda_backend.h"
#include "model/backends/cuda/device.h"

namespace tim4rec::cuda {

// For a few states on the device, and every ranking there.
inline CudaOptions SmallOptions() {
  return {.reserve_bytes = 1 << 20, .state_chunk_bytes = 1 << 20, .least_device_scores = 1};
}

// A published model whose states are windows of ten events.
inline ModelConfig WindowedConfig() {
  ModelConfig config;
  config.variant = Variant::kPublished;
  config.n_items = 61;
  config.hidden_size = 16;
  config.head_dim = 8;
  config.d_state = 8;
  config.time_write = config.time_decay = config.time_query = false;
  config.is_time = true;
  config.max_item_list_length = 10;
  return config;
}

// What a test says to a device and reads of it; outlives it. Thread-safe.
struct DeviceScript {
  enum Call {
    kMemory,
    kAllocate,
    kAllocateHost,
    kLoadModel,
    kCopy,
    kCopyRecords,
    kFold,
    kQuery,
    kRank,
    kAfter,
    kWait,
    kLoadBulk,       // the bulk mode's, which the others never are
    kEncodeWindows,  // likewise
  };
  static constexpr int kCalls = 13;
  static const char* NameOf(int call);

  // From the `at`th call (0: the next one) of that kind on, every call of any kind fails. An
  // allocation fails alone, for want of memory.
  void FailFrom(Call call, int64_t at);
  void FailNoMore() { FailFrom(static_cast<Call>(-1), 0); }
  // How often each was called.
  int64_t count(Call call);

  int64_t memory_bytes = 64 << 20;
  int refused_loads = 0;      // so many LoadBulk, for want of memory
  bool wrong_fold = false;    // one bit of each folded state
  bool wrong_encode = false;  // of the bulk mode: one value, by three tenths of the vector's length

  // The device's.
  Fault Called(Call call);

  std::mutex mutex;
  std::array<int64_t, kCalls> counts = {};
  int fail_call = -1;
  int64_t fail_at = 0;
  bool failed = false;
};

// As the real device, puts off what is on a lane until somebody waits for it, and then does it in
// order; memory that is not its own, or not pinned, ends the test.
class ScalarDevice final : public Device {
 public:
  explicit ScalarDevice(DeviceScript* script) : script_(script) {}
  ~ScalarDevice() override;

  const char* name() const override { return "scalar"; }
  Fault Memory(MemoryInfo* memory) override;
  Fault Allocate(size_t bytes, void** memory) override;
  void Free(void* memory) override;
  Fault AllocateHost(size_t bytes, void** memory) override;
  void FreeHost(void* memory) override;
  int64_t ModelBytes(const kernels::Dims& dims) const override;
  Fault LoadModel(const kernels::Dims& dims, const kernels::Weights& weights) override;
  int64_t BulkBytes(const kernels::Dims& dims, const kernels::Weights& weights,
                    int32_t most_events) const override;
  Fault LoadBulk(const kernels::Dims& dims, const kernels::Weights& weights,
                 int32_t most_events) override;
  Fault Copy(Lane lane, void* to, const void* from, size_t bytes) override;
  Fault CopyRecords(Lane lane, const RecordCopy* copies, int64_t count,
                    int64_t record_bytes) override;
  Fault Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
             int32_t most_events) override;
  Fault Query(const DeviceQuery* requests, int32_t count, float* queries) override;
  // By the scalar truth with rounded weights: within the bulk mode's bound, and not exact.
  Fault EncodeWindows(const DeviceQuery* requests, const int32_t* first, int32_t count,
                      float* queries) override;
  Fault Rank(const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
             kernels::Scored* best, int32_t* found) override;
  Fault After(Lane lane, Lane first) override;
  Fault Wait(Lane lane, double* seconds) override;

 private:
  void Put(Lane lane, std::function<void()> work);
  void RunUpTo(int lane, uint64_t position);
  // All of [at, at + bytes) is device memory, or pinned.
  void CheckDevice(const void* at, int64_t bytes);
  void CheckPinned(const void* at, int64_t bytes);
  void CheckRecord(const void* at);
  Fault Called(DeviceScript::Call call);

  // Makes it point to a copy.
  void Keep(const float** weights, int64_t count);

  struct Block {
    std::unique_ptr<std::byte[]> memory;
    std::byte* at;
    size_t bytes;
  };
  static bool Holds(const std::map<std::byte*, Block>& blocks, const void* at, int64_t bytes);
  static void* Add(std::map<std::byte*, Block>* blocks, size_t bytes);

  DeviceScript* const script_;
  std::recursive_mutex mutex_;  // guards what follows
  std::map<std::byte*, Block> device_, pinned_;
  int64_t used_bytes_ = 0;
  struct LaneState {
    std::deque<std::function<void()>> work;
    uint64_t done = 0;  // of all that was ever put there
    int64_t launches = 0;
  };
  std::array<LaneState, kLanes> lanes_;

  kernels::Dims dims_ = {};
  kernels::Weights weights_ = {};  // copies in kept_
  std::vector<kernels::LayerWeights> layers_;
  std::deque<std::vector<float>> kept_;
  std::vector<float> packed_items_;
  std::optional<RoundedModel> rounded_;  // with the bulk mode
  int32_t most_encoded_ = 0;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_TESTS_MODEL_CUDA_SCALAR_DEVICE_H_
