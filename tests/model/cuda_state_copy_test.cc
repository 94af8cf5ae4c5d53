#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "model/backends/cuda/state_copy.h"

namespace tim4rec::cuda {
namespace {

TEST(CudaStateCopy, GathersAndScattersRecords) {
  if (const Fault fault = StartDevice(); fault != nullptr) {
    GTEST_SKIP() << "no CUDA device can be used: " << fault;
  }
  EXPECT_EQ(GatherRecords(nullptr, nullptr, 0, 16, nullptr), nullptr) << "no records, no launch";
  constexpr uint64_t kSeed = 31;
  std::mt19937_64 random(kSeed);
  for (const int64_t record_bytes : {int64_t{16}, int64_t{4112}, int64_t{37'824}}) {
    constexpr int64_t kSlots = 500, kCount = 137;
    std::vector<uint64_t> slab(kSlots * record_bytes / 8);
    for (uint64_t& word : slab) word = random();
    std::vector<int32_t> slots(kSlots);
    std::iota(slots.begin(), slots.end(), 0);
    std::shuffle(slots.begin(), slots.end(), random);
    slots.resize(kCount);

    DeviceMemory device_slab, device_slots, device_packed;
    ASSERT_EQ(device_slab.Allocate(slab.size() * 8), nullptr);
    ASSERT_EQ(device_slots.Allocate(kCount * 4), nullptr);
    ASSERT_EQ(device_packed.Allocate(kCount * record_bytes), nullptr);
    ASSERT_EQ(device_slab.Upload(slab.data(), slab.size() * 8), nullptr);
    ASSERT_EQ(device_slots.Upload(slots.data(), kCount * 4), nullptr);
    const auto* indices = static_cast<const int32_t*>(device_slots.data());

    ASSERT_STREQ(
        GatherRecords(device_slab.data(), indices, kCount, record_bytes, device_packed.data()),
        nullptr);
    std::vector<uint64_t> packed(kCount * record_bytes / 8);
    ASSERT_EQ(device_packed.Download(packed.data(), packed.size() * 8), nullptr);
    const auto record = [record_bytes](std::vector<uint64_t>& from, int64_t index) {
      return from.data() + index * record_bytes / 8;
    };
    for (int64_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(std::memcmp(record(packed, i), record(slab, slots[i]), record_bytes), 0) << i;
    }

    for (uint64_t& word : packed) word = ~word;
    ASSERT_EQ(device_packed.Upload(packed.data(), packed.size() * 8), nullptr);
    ASSERT_STREQ(
        ScatterRecords(device_packed.data(), indices, kCount, record_bytes, device_slab.data()),
        nullptr);
    for (int64_t i = 0; i < kCount; ++i) {
      std::memcpy(record(slab, slots[i]), record(packed, i), record_bytes);
    }
    std::vector<uint64_t> after(slab.size());
    ASSERT_EQ(device_slab.Download(after.data(), after.size() * 8), nullptr);
    EXPECT_EQ(after, slab) << "seed " << kSeed << ", records of " << record_bytes;
  }
}

}  // namespace
}  // namespace tim4rec::cuda
