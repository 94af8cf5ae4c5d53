// Folds and queries of fold.h against the scalar truth, byte for byte. A program of its own, built
// twice: by nvcc for a GPU, and as C++ for the device on the host. Usage:
//
//   fold_check [--seed N] [--models N] [--small 1]
//
// --small 1 takes small batches, as on the host: for compute-sanitizer.
// Exits 1 at the first difference, naming the seed, the sizes and the first byte that differs; 77
// where no GPU can be used.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "model/kernels/cuda/device.h"
#include "model/kernels/cuda/fold.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::gpu_test {
namespace {

using cuda::DeviceModel;
using cuda::DeviceQuery;
using cuda::DeviceRun;
using kernels::Event;
using kernels::StateHeader;

uint64_t seed_now = 0;
std::string what_now;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "fold_check: seed %llu, %s: %s\n", static_cast<unsigned long long>(seed_now),
               what_now.c_str(), what.c_str());
  std::exit(1);
}

void Require(cuda::Fault fault) {
  if (fault != nullptr) Fail(std::string("the device reports: ") + fault);
}

void Require(cudaError_t error) { Require(cuda::Describe(error)); }

// ---- device memory between guard bands, poisoned at first

class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    Require(cudaMalloc(reinterpret_cast<void**>(&base_), bytes + 2 * kGuard));
    Require(cudaMemset(base_, kPattern, bytes + 2 * kGuard));
  }
  ~Buffer() { cudaFree(base_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T = char>
  T* at(size_t byte = 0) {
    return reinterpret_cast<T*>(base_ + kGuard + byte);
  }

  void Write(const void* from, size_t bytes) {
    if (bytes > 0) Require(cudaMemcpy(at(), from, bytes, cudaMemcpyHostToDevice));
  }

  // What it holds; fails if a guard band was written.
  std::vector<char> Read(const char* name) {
    std::vector<char> all(bytes_ + 2 * kGuard);
    Require(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < kGuard; ++i) {
      if (all[i] != kPattern || all[kGuard + bytes_ + i] != kPattern) {
        Fail(std::string("bytes around ") + name + " were written");
      }
    }
    return {all.begin() + kGuard, all.end() - kGuard};
  }

  static constexpr size_t kGuard = 256;
  static constexpr char kPattern = 0x5a;

 private:
  const size_t bytes_;
  char* base_ = nullptr;
};

void Compare(const char* what, const std::vector<char>& actual, const std::vector<char>& expected,
             size_t record_bytes) {
  if (actual.size() != expected.size()) Fail("sizes differ");
  for (size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;
    float a = 0, e = 0;
    std::memcpy(&a, &actual[i / 4 * 4], sizeof(a));
    std::memcpy(&e, &expected[i / 4 * 4], sizeof(e));
    Fail(std::string(what) + " " + std::to_string(i / record_bytes) + " differs at byte " +
         std::to_string(i % record_bytes) + ": " + std::to_string(a) + ", expected " +
         std::to_string(e));
  }
}

// ---- users on both sides

class Users {
 public:
  Users(const Sizes& sizes, int64_t count, Random* random)
      : random_(*random),
        model_(MakeModel(sizes, random)),
        dims_(model_->dims),
        bytes_(static_cast<size_t>(RecordBytes(dims_))),
        stride_(bytes_ + 64),
        expected_(static_cast<size_t>(count) * stride_, Buffer::kPattern),
        slab_(expected_.size()),
        scratch_(static_cast<size_t>(dims_.window > 0 ? kernels::WindowScratchFloats(dims_)
                                                      : kernels::ScratchFloats(dims_)) +
                 16) {
    for (int64_t i = 0; i < count; ++i) std::memset(Record(i), 0, bytes_);
    slab_.Write(expected_.data(), expected_.size());
    clocks_.assign(static_cast<size_t>(count), 1'700'000'000'000);
    Require(DeviceModel::Create(dims_, model_->weights, &device_));
  }

  int64_t count() const { return static_cast<int64_t>(clocks_.size()); }

  // Folds runs of these lengths, of the users in a random order, on both sides and compares all
  // records. The launch may have up to `spare` events more.
  void Fold(const std::vector<int64_t>& lengths, uint64_t spare) {
    std::vector<int64_t> order(lengths.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    std::shuffle(order.begin(), order.end(), random_);
    std::vector<DeviceRun> runs;
    std::vector<Event> events;
    for (const int64_t user : order) {
      const auto length = static_cast<int32_t>(lengths[static_cast<size_t>(user)]);
      const auto first = static_cast<int32_t>(events.size());
      StateHeader* state =
          length == 0 ? nullptr : slab_.at<StateHeader>(static_cast<size_t>(user) * stride_);
      runs.push_back({state, first, length});
      for (const Event& event :
           RandomEvents(dims_, length, &clocks_[static_cast<size_t>(user)], &random_)) {
        events.push_back(event);
      }
      ScanScalar(user, events.data() + first, length);
    }
    Buffer device_runs(runs.size() * sizeof(DeviceRun));
    device_runs.Write(runs.data(), runs.size() * sizeof(DeviceRun));
    Buffer device_events(events.size() * sizeof(Event));
    device_events.Write(events.data(), events.size() * sizeof(Event));
    Buffer workspace(device_->FoldWorkspaceBytes());
    const auto most = static_cast<int32_t>(events.size() + random_() % (spare + 1));
    Require(device_->Fold(device_runs.at<DeviceRun>(), static_cast<int32_t>(runs.size()),
                          device_events.at<Event>(), most, workspace.at(), nullptr));
    Require(cudaDeviceSynchronize());
    Compare("record", slab_.Read("the records"), expected_, stride_);
    workspace.Read("the workspace");
  }

  // Queries of random users at random times, some of them left out.
  void Query(int64_t queries) {
    const auto d = static_cast<size_t>(dims_.d);
    std::vector<DeviceQuery> asked;
    std::vector<char> expected(static_cast<size_t>(queries) * d * sizeof(float), Buffer::kPattern);
    for (int64_t i = 0; i < queries; ++i) {
      const auto user = static_cast<int64_t>(random_() % clocks_.size());
      const auto* state = reinterpret_cast<const StateHeader*>(Record(user));
      const int64_t as_of = clocks_[static_cast<size_t>(user)] +
                            static_cast<int64_t>(random_() % 10'000'000'000) - 1000;
      const bool left_out = random_() % 5 == 0 || (dims_.window > 0 && state->folded_events == 0);
      asked.push_back(
          {left_out ? nullptr : slab_.at<StateHeader>(static_cast<size_t>(user) * stride_), as_of});
      if (left_out) continue;
      std::vector<float> query(d);
      if (dims_.window > 0) {
        kernels::EncodeWindow(dims_, model_->weights, state, Scratch(), query.data());
      } else {
        kernels::Query(dims_, model_->weights, state, as_of, Scratch(), query.data());
      }
      RequireNumbers(query.data(), d);
      std::memcpy(expected.data() + static_cast<size_t>(i) * d * sizeof(float), query.data(),
                  d * sizeof(float));
    }
    Buffer device_queries(asked.size() * sizeof(DeviceQuery));
    device_queries.Write(asked.data(), asked.size() * sizeof(DeviceQuery));
    Buffer out(expected.size());
    Buffer workspace(device_->QueryWorkspaceBytes(queries));
    Require(device_->Query(device_queries.at<DeviceQuery>(), static_cast<int32_t>(queries),
                           out.at<float>(), workspace.at(), nullptr));
    Require(cudaDeviceSynchronize());
    Compare("query", out.Read("the queries"), expected, d * sizeof(float));
    Compare("record", slab_.Read("the records"), expected_, stride_);
    workspace.Read("the workspace");
  }

 private:
  char* Record(int64_t user) { return expected_.data() + static_cast<size_t>(user) * stride_; }

  float* Scratch() {
    auto at = reinterpret_cast<uintptr_t>(scratch_.data());
    return reinterpret_cast<float*>((at + 15) / 16 * 16);
  }

  void ScanScalar(int64_t user, const Event* events, int64_t count) {
    auto* state = reinterpret_cast<StateHeader*>(Record(user));
    if (dims_.window > 0) return kernels::PushWindow(dims_, events, count, state);
    kernels::Scan(dims_, model_->weights, events, count, state, Scratch());
    // What is not a number may have any payload, and would hide differences.
    RequireNumbers(reinterpret_cast<const float*>(state + 1),
                   (bytes_ - sizeof(StateHeader)) / sizeof(float));
  }

  static void RequireNumbers(const float* values, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (!std::isfinite(values[i])) Fail("the scalar truth is not finite: choose other weights");
    }
  }

  Random& random_;
  std::unique_ptr<const Model> model_;
  const kernels::Dims& dims_;
  const size_t bytes_, stride_;
  std::vector<char> expected_;
  Buffer slab_;
  std::vector<float> scratch_;
  std::vector<int64_t> clocks_;
  std::unique_ptr<const DeviceModel> device_;
};

std::string Describe(const Sizes& s) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "D=%d expand=%d P=%d N=%d K=%d M=%d layers=%d V=%d ffn=%d write=%d decay=%d "
                "query=%d silu=%d window=%d gates=%d",
                s.d, s.expand, s.p, s.n, s.k, s.m, s.layers, s.items, s.ffn, s.time_write,
                s.time_decay, s.time_query, s.conv_silu, s.window, s.window_gate_per_event);
  return text;
}

std::vector<int64_t> RandomLengths(int64_t users, int64_t longest, Random* random) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < users; ++i) {
    const uint64_t kind = (*random)() % 8;
    lengths.push_back(kind == 0 ? 0
                      : kind <= 5
                          ? 1
                          : static_cast<int64_t>((*random)() % static_cast<uint64_t>(longest)));
  }
  return lengths;
}

// ---- the checks

void CheckSizes(const Sizes& sizes, int64_t most_users, Random* random) {
  what_now = Describe(sizes);
  const auto users = 1 + static_cast<int64_t>((*random)() % static_cast<uint64_t>(most_users));
  Users both(sizes, users, random);
  for (int round = 0; round < 2; ++round) both.Fold(RandomLengths(users, 40, random), 100);
  both.Query(1 + static_cast<int64_t>((*random)() % 20));
}

// Batches of every kind of launch: one row per block, a few, many; runs longer than a tile.
void CheckServed(int32_t d, const std::vector<int64_t>& batches, Random* random) {
  for (const int64_t users : batches) {
    Sizes sizes = ServedSizes(d);
    sizes.ffn = users != 9;
    what_now = Describe(sizes) + ", " + std::to_string(users) + " users";
    Users both(sizes, users, random);
    both.Fold(std::vector<int64_t>(static_cast<size_t>(users), 1), 0);
    both.Fold(RandomLengths(users, 50, random), 100);
    both.Query(users);
  }
}

// Few rows per block on average, so that weights are staged, and one block with a long run.
void CheckStaged(Random* random) {
  for (const int64_t longest : {5, 20, 40}) {
    what_now = "served sizes, a run of " + std::to_string(longest) + " among short ones";
    Users both(ServedSizes(64), 8, random);
    std::vector<int64_t> lengths(8, longest == 5 ? 0 : 1);
    lengths[0] = longest;
    for (int round = 0; round < 2; ++round) both.Fold(lengths, 0);
  }
}

// More events than are taken through a model together, in one run that goes on from chunk to chunk
// among short ones; a launch that may have more of them than there are.
void CheckChunks(Random* random) {
  Sizes sizes;
  sizes.d = sizes.p = 4;
  sizes.expand = 1;
  sizes.n = sizes.m = 2;
  what_now = Describe(sizes) + ", many events";
  Users both(sizes, 60, random);
  std::vector<int64_t> lengths = RandomLengths(60, 20, random);
  lengths[7] = 8192;
  both.Fold(lengths, 0);
  lengths[7] = 0;
  both.Fold(lengths, 15'000);
  both.Query(20);
}

// No block's shared memory holds a row of a tile.
void CheckWide(Random* random) {
  Sizes sizes;
  sizes.d = 128;
  sizes.expand = 16;
  sizes.p = 1;
  sizes.n = 2;
  sizes.layers = 1;
  sizes.ffn = false;
  what_now = Describe(sizes);
  Users both(sizes, 3, random);
  both.Fold({1, 0, 3}, 0);
  both.Query(2);
}

int Main(int argc, char** argv) {
  uint64_t seed = std::random_device()();
  int64_t models = 12;
#ifdef TIM4REC_HOST_DEVICE
  bool large = false;
#else
  bool large = true;
#endif
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 10);
    if (flag == "--small") large = false;
    if (flag == "--models") models = std::strtoll(argv[i + 1], nullptr, 10);
  }
  std::printf("fold_check: --seed %llu --models %lld\n", static_cast<unsigned long long>(seed),
              static_cast<long long>(models));
#ifndef TIM4REC_HOST_DEVICE
  if (const cuda::Fault fault = cuda::Describe(cudaFree(nullptr)); fault != nullptr) {
    std::printf("no CUDA device can be used: %s\n", fault);
    return 77;
  }
#endif
  seed_now = seed;
  Random random(seed);
#ifdef TIM4REC_HOST_DEVICE
  host_device::SetSeed(seed);
#endif
  using Batches = std::vector<int64_t>;
  const Batches many = {1, 2, 32, 133, 600, 1000, 4096};
  CheckServed(64, large ? many : Batches{1, 9, 60, 150}, &random);
  CheckStaged(&random);
  std::printf("served sizes: ok\n");
  CheckServed(256, large ? many : Batches{1, 16}, &random);
  CheckWide(&random);
  std::printf("wide: ok\n");
  CheckChunks(&random);
  std::printf("chunks: ok\n");
  for (int64_t i = 0; i < models; ++i) CheckSizes(RandomSizes(&random), 40, &random);
  std::printf("random sizes: ok\n");
  for (int64_t i = 0; i < models; ++i) CheckSizes(RandomWindowSizes(&random), 20, &random);
  std::printf("windows: ok\n");
  return 0;
}

}  // namespace
}  // namespace tim4rec::gpu_test

int main(int argc, char** argv) { return tim4rec::gpu_test::Main(argc, argv); }
