// Every instruction set gives the bits of the scalar truth: for any sizes, at any place of a batch,
// one event at a time or a run. Those that this CPU lacks are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "model/backends/builtin.h"
#include "model/backends/cpu/blocked_model.h"
#include "model/backends/packed_model.h"
#include "model/kernels/kernel_set.h"
#include "model/kernels/math.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using ::testing::HasSubstr;
using Record = std::vector<std::byte>;

// Restores the variable at the end.
class ForcedIsa {
 public:
  explicit ForcedIsa(const std::string& name) {
    const char* before = std::getenv(kVariable);
    if (before != nullptr) before_ = before;
    setenv(kVariable, name.c_str(), /*overwrite=*/1);
  }
  ~ForcedIsa() { setenv(kVariable, before_.c_str(), /*overwrite=*/1); }

 private:
  static constexpr char kVariable[] = "TIM4REC_FORCE_ISA";
  std::string before_;
};

std::vector<const kernels::KernelSet*> KernelSets() {
  const kernels::KernelSet* sets[kernels::kMaxKernelSets];
  const int count = kernels::SupportedKernelSets(sets);
  return {sets, sets + count};
}

absl::StatusOr<std::unique_ptr<Backend>> CpuBackend(const std::string& isa,
                                                    std::shared_ptr<const ModelPackage> package) {
  const ForcedIsa forced(isa);
  return BuiltinBackends().factories.at("cpu")(std::move(package));
}

std::shared_ptr<const ModelPackage> Package(const ModelConfig& config, uint64_t seed) {
  auto package = ModelPackage::FromContents(MakeTinyModel(config, seed));
  EXPECT_TRUE(package.ok()) << package.status();
  return *package;
}

std::vector<FoldEvent> RandomEvents(const ModelConfig& config, int64_t length, uint64_t seed) {
  const History history = RandomHistory(config, length, seed);
  std::vector<FoldEvent> events;
  for (size_t i = 0; i < history.items.size(); ++i) {
    events.push_back({history.items[i], history.timestamps_ms[i]});
  }
  return events;
}

Record Export(const Backend& backend, Slot slot) {
  Record record(static_cast<size_t>(backend.state_bytes()));
  EXPECT_TRUE(backend.Export(slot, record).ok());
  return record;
}

TEST(Isa, BestOfTheCpuServesWithoutForce) {
  const auto backend = CpuBackend("", Package(RandomStreamingConfig(1), 1));
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->isa(), KernelSets().empty() ? "scalar" : KernelSets()[0]->isa);
}

TEST(Isa, ForcedOneServes) {
  const auto package = Package(RandomStreamingConfig(1), 1);
  std::vector<std::string> names = {"scalar"};
  for (const kernels::KernelSet* set : KernelSets()) names.push_back(set->isa);
  for (const std::string& name : names) {
    const auto backend = CpuBackend(name, package);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->isa(), name);
  }
}

TEST(Isa, ForcedOneThatIsMissingIsRefused) {
  const auto package = Package(RandomStreamingConfig(1), 1);
  const absl::Status unknown = CpuBackend("avx1024", package).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()),
              HasSubstr("TIM4REC_FORCE_ISA is avx1024, allowed scalar, avx2, avx512"));
  for (const std::string name : {"avx2", "avx512"}) {
    bool supported = false;
    for (const kernels::KernelSet* set : KernelSets()) supported |= set->isa == name;
    if (supported) continue;
    const absl::Status missing = CpuBackend(name, package).status();
    EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(missing.message()), HasSubstr("which this CPU lacks; it has scalar"));
  }
}

class IsaBits : public ::testing::TestWithParam<const kernels::KernelSet*> {};

TEST_P(IsaBits, FunctionsEqualTheScalarOnes) {
  using kernels::Function;
  struct Case {
    Function function;
    float (*scalar)(float);
  };
  const Case cases[] = {
      {Function::kExp, kernels::Exp},           {Function::kLog1p, kernels::Log1p},
      {Function::kSoftplus, kernels::Softplus}, {Function::kSigmoid, kernels::Sigmoid},
      {Function::kSilu, kernels::Silu},         {Function::kHardswish, kernels::Hardswish}};
  constexpr uint32_t kStride = 1009;  // a prime: visits all exponents and varied mantissas
  std::vector<float> v(1 << 12), result(v.size());
  for (uint64_t bits = 0; bits <= UINT32_MAX;) {
    for (float& value : v) {
      value = kernels::FloatOf(static_cast<uint32_t>(bits));
      bits += kStride;
    }
    for (const Case& c : cases) {
      GetParam()->apply(c.function, v.data(), static_cast<int64_t>(v.size()), result.data());
      for (size_t i = 0; i < v.size(); ++i) {
        const float expected = c.scalar(v[i]);
        if (std::isnan(expected) && std::isnan(result[i])) continue;
        ASSERT_EQ(kernels::BitsOf(result[i]), kernels::BitsOf(expected))
            << "function " << static_cast<int>(c.function) << " of " << v[i];
      }
    }
  }
}

// Folds the same runs on both, twice, and compares every record.
void ExpectSameFolds(const std::string& isa, std::shared_ptr<const ModelPackage> package,
                     uint64_t seed, const std::vector<int64_t>& lengths) {
  const ModelConfig& config = package->config();
  SCOPED_TRACE(testing::Message() << isa << ", seed " << seed << ", " << lengths.size()
                                  << " users\n"
                                  << config.ToJson());
  const auto scalar = CpuBackend("scalar", package), simd = CpuBackend(isa, package);
  ASSERT_TRUE(scalar.ok() && simd.ok());
  ASSERT_EQ((*scalar)->isa(), "scalar");
  ASSERT_EQ((*simd)->isa(), isa);
  std::vector<std::vector<FoldEvent>> events;
  std::vector<tim4rec::Run> runs;
  for (size_t user = 0; user < lengths.size(); ++user) {
    events.push_back(RandomEvents(config, lengths[user], seed + user));
    ASSERT_EQ(*(*scalar)->Allocate(), *(*simd)->Allocate());
  }
  for (size_t user = lengths.size(); user-- > 0;) {
    runs.push_back({static_cast<Slot>(user), events[user]});
  }
  for (int round = 0; round < 2; ++round) {
    ASSERT_TRUE((*scalar)->Advance(runs).ok());
    ASSERT_TRUE((*simd)->Advance(runs).ok());
    for (size_t user = 0; user < lengths.size(); ++user) {
      const auto slot = static_cast<Slot>(user);
      ASSERT_EQ(Export(**simd, slot), Export(**scalar, slot)) << "user " << user;
      if (lengths[user] == 0) continue;
      // Of a window, the query is the fold.
      const QueryRequest request = {slot, events[user].back().timestamp_ms + 1'000'000};
      std::vector<float> query(static_cast<size_t>(config.hidden_size)), expected(query);
      ASSERT_TRUE((*scalar)->Query({&request, 1}, expected).ok());
      ASSERT_TRUE((*simd)->Query({&request, 1}, query).ok());
      ASSERT_EQ(query, expected) << "user " << user;
    }
  }
}

TEST_P(IsaBits, FoldsOfAnySizesEqualTheScalarOnes) {
  for (uint64_t seed = 401; seed <= 460; ++seed) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> lengths(1 + random() % 60);
    for (int64_t& length : lengths) {
      length = random() % 4 != 0 ? 1 : static_cast<int64_t>(random() % 40);
    }
    ASSERT_NO_FATAL_FAILURE(ExpectSameFolds(
        GetParam()->isa, Package(RandomStreamingConfig(seed), seed), seed, lengths));
  }
}

TEST_P(IsaBits, FoldsOfTheServedSizesEqualTheScalarOnes) {
  for (const int64_t hidden_size : {64, 256}) {
    ModelConfig config;
    config.n_items = 100;
    config.hidden_size = hidden_size;
    config.time.mean = 5;
    config.time.stddev = 3;
    const auto package = Package(config, 7);
    for (const int64_t users : {1, 2, 3, 5, 7, 24, 25, 50}) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameFolds(GetParam()->isa, package, 7,
                                              std::vector<int64_t>(static_cast<size_t>(users), 1)));
    }
    ASSERT_NO_FATAL_FAILURE(ExpectSameFolds(GetParam()->isa, package, 8, {100, 0, 1, 23, 1}));
  }
}

TEST_P(IsaBits, FoldsWriteNothingButTheirRecords) {
  const kernels::KernelSet& set = *GetParam();
  for (uint64_t seed = 501; seed <= 520; ++seed) {
    const ModelConfig config = RandomStreamingConfig(seed);
    const auto model = PackedModel::Create(Package(config, seed), /*pack_items=*/false);
    const kernels::Dims& dims = model->dims();
    const BlockedModel blocked(dims, model->weights());
    static constexpr size_t kGuard = 256, kUsers = 3;
    static constexpr std::byte kPattern{0xa5};
    const auto bytes = static_cast<size_t>(StateLayout::Of(config).bytes);
    const auto scratch_bytes = sizeof(float) * static_cast<size_t>(set.fold_scratch_floats(dims));
    const size_t stride = bytes + kGuard;
    Record records(kGuard + kUsers * stride, kPattern);
    Record scratch(kGuard + scratch_bytes + kGuard, kPattern);
    std::vector<kernels::Event> events;
    for (const FoldEvent& event : RandomEvents(config, 70, seed)) {
      events.push_back({event.item, event.timestamp_ms});
    }
    std::vector<kernels::FoldRun> runs;
    for (size_t user = 0; user < kUsers; ++user) {
      std::byte* record = records.data() + kGuard + user * stride;
      std::memset(record, 0, bytes);
      runs.push_back({reinterpret_cast<kernels::StateHeader*>(record), events.data() + user,
                      user == 1 ? 1 : 60});
    }
    set.fold(dims, model->weights(), blocked.layers(), runs.data(), kUsers,
             reinterpret_cast<float*>(scratch.data() + kGuard));
    const auto expect_guard = [](const std::byte* at) {
      for (size_t i = 0; i < kGuard; ++i) ASSERT_EQ(at[i], kPattern) << i;
    };
    expect_guard(records.data());
    for (size_t user = 0; user < kUsers; ++user) {
      expect_guard(records.data() + kGuard + user * stride + bytes);
    }
    expect_guard(scratch.data());
    expect_guard(scratch.data() + kGuard + scratch_bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Supported, IsaBits, ::testing::ValuesIn(KernelSets()),
                         [](const auto& info) { return std::string(info.param->isa); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(IsaBits);

}  // namespace
}  // namespace tim4rec
