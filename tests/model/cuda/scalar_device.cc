#include "tests/model/cuda/scalar_device.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace tim4rec::cuda {
namespace {

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "ScalarDevice: %s\n", what);
  std::abort();
}

}  // namespace

const char* DeviceScript::NameOf(int call) {
  static constexpr const char* kNames[kCalls] = {
      "Memory", "Allocate", "AllocateHost", "LoadModel", "Copy",     "CopyRecords",  "Fold",
      "Query",  "Rank",     "After",        "Wait",      "LoadBulk", "EncodeWindows"};
  return kNames[call];
}

void DeviceScript::FailFrom(Call call, int64_t at) {
  const std::lock_guard lock(mutex);
  fail_call = call;
  fail_at = call < 0 ? 0 : counts[call] + at;
}

int64_t DeviceScript::count(Call call) {
  const std::lock_guard lock(mutex);
  return counts[call];
}

Fault DeviceScript::Called(Call call) {
  const std::lock_guard lock(mutex);
  const int64_t index = counts[call]++;
  const bool now = call == fail_call && index >= fail_at;
  if (now && (call == kAllocate || call == kAllocateHost || call == kLoadBulk)) {
    return "out of memory";
  }
  failed = failed || now;
  return failed ? "an illegal memory access was encountered" : nullptr;
}

ScalarDevice::~ScalarDevice() {
  if (!device_.empty() || !pinned_.empty()) Die("memory is not freed");
}

Fault ScalarDevice::Called(DeviceScript::Call call) {
  const Fault fault = script_->Called(call);
  if (fault != nullptr && std::string_view(fault) != "out of memory") {
    // Nothing that is there may be trusted any more.
    for (auto& [at, block] : device_) std::memset(block.at, 0x5a, block.bytes);
    for (LaneState& lane : lanes_) {
      lane.done += lane.work.size();
      lane.work.clear();
    }
  }
  return fault;
}

bool ScalarDevice::Holds(const std::map<std::byte*, Block>& blocks, const void* at, int64_t bytes) {
  auto* const first = static_cast<std::byte*>(const_cast<void*>(at));
  auto found = blocks.upper_bound(first);
  if (found == blocks.begin()) return false;
  --found;
  return first + bytes <= found->second.at + found->second.bytes;
}

void* ScalarDevice::Add(std::map<std::byte*, Block>* blocks, size_t bytes) {
  Block block;
  block.memory = std::make_unique<std::byte[]>(bytes + 256);
  void* at = block.memory.get();
  size_t space = bytes + 256;
  block.at = static_cast<std::byte*>(std::align(256, bytes, at, space));
  block.bytes = bytes;
  std::memset(block.at, 0xa5, bytes);  // undefined at first
  std::byte* const key = block.at;
  blocks->emplace(key, std::move(block));
  return key;
}

void ScalarDevice::CheckDevice(const void* at, int64_t bytes) {
  if (!Holds(device_, at, bytes)) Die("not device memory");
}

void ScalarDevice::CheckPinned(const void* at, int64_t bytes) {
  if (!Holds(pinned_, at, bytes)) Die("not pinned memory");
}

void ScalarDevice::CheckRecord(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) Die("a record is not aligned to 16 bytes");
  CheckDevice(at, static_cast<int64_t>(sizeof(kernels::StateHeader)) +
                      (dims_.window > 0 ? 12 * int64_t{dims_.window}
                                        : 4 * (dims_.output_offset + dims_.d)));
}

Fault ScalarDevice::Memory(MemoryInfo* memory) {
  const std::lock_guard lock(mutex_);
  *memory = {script_->memory_bytes - used_bytes_, script_->memory_bytes};
  return Called(DeviceScript::kMemory);
}

Fault ScalarDevice::Allocate(size_t bytes, void** memory) {
  const std::lock_guard lock(mutex_);
  *memory = nullptr;
  if (const Fault fault = Called(DeviceScript::kAllocate); fault != nullptr) return fault;
  if (used_bytes_ + static_cast<int64_t>(bytes) > script_->memory_bytes) return "out of memory";
  used_bytes_ += static_cast<int64_t>(bytes);
  *memory = Add(&device_, bytes);
  return nullptr;
}

void ScalarDevice::Free(void* memory) {
  const std::lock_guard lock(mutex_);
  const auto found = device_.find(static_cast<std::byte*>(memory));
  if (found == device_.end()) {
    if (memory != nullptr) Die("free of what is not device memory");
    return;
  }
  used_bytes_ -= static_cast<int64_t>(found->second.bytes);
  device_.erase(found);
}

Fault ScalarDevice::AllocateHost(size_t bytes, void** memory) {
  const std::lock_guard lock(mutex_);
  *memory = nullptr;
  if (const Fault fault = Called(DeviceScript::kAllocateHost); fault != nullptr) return fault;
  *memory = Add(&pinned_, bytes);
  return nullptr;
}

void ScalarDevice::FreeHost(void* memory) {
  const std::lock_guard lock(mutex_);
  if (memory != nullptr && pinned_.erase(static_cast<std::byte*>(memory)) == 0) {
    Die("free of what is not pinned memory");
  }
}

int64_t ScalarDevice::ModelBytes(const kernels::Dims& dims) const {
  return 4 * kernels::PackedItemFloats(dims.items, dims.d);
}

void ScalarDevice::Keep(const float** weights, int64_t count) {
  if (*weights == nullptr) return;
  *weights = kept_.emplace_back(*weights, *weights + count).data();
}

Fault ScalarDevice::LoadModel(const kernels::Dims& dims, const kernels::Weights& weights) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kLoadModel); fault != nullptr) return fault;
  dims_ = dims;
  weights_ = weights;
  const int64_t d = dims.d, e = dims.e, h = dims.h, k = dims.k, m = dims.m, f = dims.f;
  const int64_t l = dims.window, gate = dims.window_gate_per_event ? l : 1;
  const int64_t channels = dims.conv_channels(), projections = dims.projections();
  kernels::Weights& w = weights_;
  for (const auto& [part, count] :
       std::vector<std::pair<const float**, int64_t>>{{&w.embedding, dims.items * d},
                                                      {&w.in_norm, d},
                                                      {&w.in_norm_bias, d},
                                                      {&w.query_hidden, m},
                                                      {&w.query_hidden_bias, m},
                                                      {&w.query_gate, 2 * m * d},
                                                      {&w.query_gate_bias, 2 * d},
                                                      {&w.window_norm, l},
                                                      {&w.window_norm_bias, l}}) {
    Keep(part, count);
  }
  layers_.assign(weights.layers, weights.layers + dims.layers);
  w.layers = layers_.data();
  for (kernels::LayerWeights& y : layers_) {
    for (const auto& [part, count] :
         std::vector<std::pair<const float**, int64_t>>{{&y.in_proj, d * projections},
                                                        {&y.in_proj_bias, projections},
                                                        {&y.conv, k * channels},
                                                        {&y.conv_bias, channels},
                                                        {&y.time_conv1, k * h},
                                                        {&y.time_conv1_bias, h},
                                                        {&y.time_conv2, k * h},
                                                        {&y.time_conv2_bias, h},
                                                        {&y.time_hidden, m},
                                                        {&y.time_hidden_bias, m},
                                                        {&y.time_scale, m * h},
                                                        {&y.time_scale_bias, h},
                                                        {&y.a, h},
                                                        {&y.rate, h},
                                                        {&y.dt_bias, h},
                                                        {&y.skip, h},
                                                        {&y.norm, e},
                                                        {&y.out_proj, e * d},
                                                        {&y.out_proj_bias, d},
                                                        {&y.layer_norm, d},
                                                        {&y.layer_norm_bias, d},
                                                        {&y.fc1, d * f},
                                                        {&y.fc1_bias, f},
                                                        {&y.fc2, f * d},
                                                        {&y.fc2_bias, d},
                                                        {&y.ffn_norm, d},
                                                        {&y.ffn_norm_bias, d},
                                                        {&y.window_scale1, l * l},
                                                        {&y.window_scale1_bias, l},
                                                        {&y.window_scale2, l * l},
                                                        {&y.window_scale2_bias, l},
                                                        {&y.window_gate, l * gate},
                                                        {&y.window_gate_bias, gate},
                                                        {&y.window_norm, l},
                                                        {&y.window_norm_bias, l}}) {
      Keep(part, count);
    }
  }
  packed_items_.resize(static_cast<size_t>(kernels::PackedItemFloats(dims.items, dims.d)));
  kernels::PackItems(weights.embedding, dims.items, dims.d, packed_items_.data());
  used_bytes_ += ModelBytes(dims);
  return nullptr;
}

int64_t ScalarDevice::BulkBytes(const kernels::Dims& dims, const kernels::Weights& /*weights*/,
                                int32_t most_events) const {
  return int64_t{1000} * dims.d + int64_t{64} * dims.d * most_events;
}

Fault ScalarDevice::LoadBulk(const kernels::Dims& dims, const kernels::Weights& weights,
                             int32_t most_events) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kLoadBulk); fault != nullptr) return fault;
  if (dims.window == 0 || most_events < dims.window) Die("not one window");
  const int64_t bytes = BulkBytes(dims, weights, most_events);
  const bool refused = script_->count(DeviceScript::kLoadBulk) <= script_->refused_loads;
  if (refused || used_bytes_ + bytes > script_->memory_bytes) return "out of memory";
  used_bytes_ += bytes;
  rounded_.emplace(dims_, weights_);
  most_encoded_ = most_events;
  return nullptr;
}

void ScalarDevice::Put(Lane lane, std::function<void()> work) {
  lanes_[static_cast<int>(lane)].work.push_back(std::move(work));
  ++lanes_[static_cast<int>(lane)].launches;
}

void ScalarDevice::RunUpTo(int lane, uint64_t position) {
  LaneState& state = lanes_[lane];
  while (state.done < position) {
    const std::function<void()> work = std::move(state.work.front());
    state.work.pop_front();
    work();
    ++state.done;
  }
}

Fault ScalarDevice::Copy(Lane lane, void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kCopy); fault != nullptr) return fault;
  const auto count = static_cast<int64_t>(bytes);
  const bool up = Holds(device_, to, count);
  CheckDevice(up ? to : from, count);
  CheckPinned(up ? from : to, count);
  Put(lane, [=] { std::memcpy(to, from, bytes); });
  return nullptr;
}

Fault ScalarDevice::CopyRecords(Lane lane, const RecordCopy* copies, int64_t count,
                                int64_t record_bytes) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kCopyRecords); fault != nullptr) return fault;
  if (record_bytes % 16 != 0) Die("records are not multiples of 16 bytes");
  std::set<void*> places;
  for (int64_t i = 0; i < count; ++i) {
    if (!places.insert(copies[i].to).second) Die("two records for one place");
  }
  Put(lane, [this, record_bytes, list = std::vector<RecordCopy>(copies, copies + count)] {
    const auto bytes = static_cast<size_t>(record_bytes);
    for (const RecordCopy& copy : list) {
      if (!Holds(device_, copy.to, record_bytes)) CheckPinned(copy.to, record_bytes);
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, bytes);
        continue;
      }
      if (!Holds(device_, copy.from, record_bytes)) CheckPinned(copy.from, record_bytes);
      std::memcpy(copy.to, copy.from, bytes);
    }
  });
  return nullptr;
}

Fault ScalarDevice::Fold(const DeviceRun* runs, int32_t run_count, const kernels::Event* events,
                         int32_t most_events) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kFold); fault != nullptr) return fault;
  if (run_count < 1 || run_count > kMostRuns || most_events > kMostEvents) Die("a fold too large");
  CheckPinned(runs, int64_t{sizeof(*runs)} * run_count);
  CheckPinned(events, int64_t{sizeof(*events)} * most_events);
  Put(Lane::kFold, [=, this] {
    std::vector<float> scratch(static_cast<size_t>(kernels::ScratchFloats(dims_)));
    std::set<void*> records;
    int32_t next = 0;
    for (const DeviceRun* run = runs; run < runs + run_count; ++run) {
      if (run->first_event != next) Die("events of runs do not follow one another");
      next += run->count;
      if (next > most_events) Die("more events than were said");
      if (run->count == 0) continue;
      CheckRecord(run->state);
      if (!records.insert(run->state).second) Die("two runs for one record");
      const kernels::Event* first = events + run->first_event;
      if (dims_.window > 0) {
        kernels::PushWindow(dims_, first, run->count, run->state);
      } else {
        kernels::Scan(dims_, weights_, first, run->count, run->state, scratch.data());
      }
      if (script_->wrong_fold) reinterpret_cast<uint8_t*>(run->state)[40] ^= 1;
    }
  });
  return nullptr;
}

Fault ScalarDevice::Query(const DeviceQuery* requests, int32_t count, float* queries) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kQuery); fault != nullptr) return fault;
  if (count < 1 || count > kMostQueries) Die("too many queries");
  CheckPinned(requests, int64_t{sizeof(*requests)} * count);
  CheckPinned(queries, 4 * int64_t{count} * dims_.d);
  Put(Lane::kQuery, [=, this] {
    std::vector<float> scratch(static_cast<size_t>(
        std::max(kernels::ScratchFloats(dims_), kernels::WindowScratchFloats(dims_))));
    for (int32_t i = 0; i < count; ++i) {
      CheckRecord(requests[i].state);
      float* query = queries + int64_t{i} * dims_.d;
      if (dims_.window > 0) {
        kernels::EncodeWindow(dims_, weights_, requests[i].state, scratch.data(), query);
      } else {
        kernels::Query(dims_, weights_, requests[i].state, requests[i].as_of_ms, scratch.data(),
                       query);
      }
    }
  });
  return nullptr;
}

Fault ScalarDevice::EncodeWindows(const DeviceQuery* requests, const int32_t* first, int32_t count,
                                  float* queries) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kEncodeWindows); fault != nullptr) return fault;
  if (!rounded_) Die("the bulk mode is not loaded");
  if (count < 1 || count > kMostQueries) Die("too many windows");
  if (first[0] != 0 || first[count] > most_encoded_) Die("more events than was said");
  CheckPinned(requests, int64_t{sizeof(*requests)} * count);
  CheckPinned(first, int64_t{sizeof(*first)} * (count + 1));
  CheckPinned(queries, 4 * int64_t{count} * dims_.d);
  Put(Lane::kQuery, [=, this] {
    std::vector<float> scratch(static_cast<size_t>(kernels::WindowScratchFloats(dims_)));
    for (int32_t i = 0; i < count; ++i) {
      CheckRecord(requests[i].state);
      const int64_t events = std::min<int64_t>(requests[i].state->folded_events, dims_.window);
      if (events < 1 || first[i + 1] - first[i] != events) Die("a window has other events");
      float* query = queries + int64_t{i} * dims_.d;
      kernels::EncodeWindow(dims_, rounded_->weights(), requests[i].state, scratch.data(), query);
      if (!script_->wrong_encode) continue;
      double squares = 0;
      for (int32_t d = 0; d < dims_.d; ++d) squares += double{query[d]} * query[d];
      query[0] += static_cast<float>(0.3 * std::sqrt(squares));
    }
  });
  return nullptr;
}

Fault ScalarDevice::Rank(const kernels::TopKQuery* queries, int32_t count, int32_t most_k,
                         kernels::Scored* best, int32_t* found) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kRank); fault != nullptr) return fault;
  if (count < 1 || count > kMostRankings) Die("too many rankings");
  CheckDevice(best, int64_t{sizeof(*best)} * count * most_k);
  CheckDevice(found, int64_t{sizeof(*found)} * count);
  Put(Lane::kRank, [=, this, list = std::vector<kernels::TopKQuery>(queries, queries + count)] {
    for (int32_t i = 0; i < count; ++i) {
      const kernels::TopKQuery& query = list[i];
      if (query.candidates_only) Die("candidates are the host's");
      if (query.k < 1 || query.k > most_k) Die("a k above the most");
      CheckDevice(query.query, 4 * dims_.d);
      if (query.excluded_count > 0) CheckDevice(query.excluded, 4 * query.excluded_count);
      if (query.eligible != nullptr) CheckDevice(query.eligible, (dims_.items + 63) / 64 * 8);
      if (query.boost != nullptr) CheckDevice(query.boost, (dims_.items + 63) / 64 * 256);
      found[i] = kernels::TopK(packed_items_.data(), dims_.items, dims_.d, query,
                               best + int64_t{i} * most_k);
    }
  });
  return nullptr;
}

Fault ScalarDevice::After(Lane lane, Lane first) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kAfter); fault != nullptr) return fault;
  const LaneState& state = lanes_[static_cast<int>(first)];
  Put(lane, [this, first, position = state.done + state.work.size()] {
    RunUpTo(static_cast<int>(first), position);
  });
  return nullptr;
}

Fault ScalarDevice::Wait(Lane lane, double* seconds) {
  const std::lock_guard lock(mutex_);
  if (const Fault fault = Called(DeviceScript::kWait); fault != nullptr) return fault;
  LaneState& state = lanes_[static_cast<int>(lane)];
  RunUpTo(static_cast<int>(lane), state.done + state.work.size());
  *seconds = 1e-6 * static_cast<double>(std::exchange(state.launches, 0));
  return nullptr;
}

}  // namespace tim4rec::cuda
