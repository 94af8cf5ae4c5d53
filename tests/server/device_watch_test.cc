#include "server/app/device_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "model/backends/builtin.h"
#include "tests/model/cuda/scalar_device.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using cuda::DeviceScript;
using testing::ElementsAre;
using testing::HasSubstr;

ModelHandle NewModel(uint64_t seed, const BackendFactory& factory) {
  auto model = std::make_shared<LoadedModel>();
  model->package = *ModelPackage::FromContents(MakeTinyModel(seed));
  model->version = absl::StrCat("m", seed);
  BackendRegistry registry;
  registry.factories["it"] = factory;
  model->engine = *Engine::Create(model->package, registry, "it");
  return model;
}

BackendFactory OnDevice(DeviceScript* script) {
  return [script](auto package) {
    return CreateCudaBackendOn(std::make_unique<cuda::ScalarDevice>(script), package,
                               cuda::SmallOptions());
  };
}

void FoldOne(const ModelHandle& model) {
  Backend& backend = model->engine->backend();
  const Slot slot = *backend.Allocate();
  const std::vector<FoldEvent> events = {{1, 10}, {2, 20}};
  const Run run = {slot, events};
  (void)backend.Advance({&run, 1});
}

TEST(DeviceWatch, CountsWhatTheDevicesOfAllModelsDo) {
  DeviceScript script, other_script;
  Metrics metrics;
  std::vector<std::string> lost;
  Models models(NewModel(1, OnDevice(&script)));
  DeviceWatch watch(&models, &metrics, [&](const LoadedModel& model, const std::string& fault) {
    lost.push_back(model.version + ": " + fault);
  });
  watch.Look();
  const double folds = metrics.device_fold.rows->Value();
  EXPECT_GT(folds, 0);  // the backend's check of itself, and the engine's probe
  EXPECT_GT(metrics.device_rank.launches->Value(), 0);
  EXPECT_GT(metrics.device_query.seconds->Value(), 0);
  EXPECT_EQ(metrics.device_states->Value(), 0);
  EXPECT_GT(metrics.device_states_limit->Value(), 1000);
  EXPECT_EQ(metrics.device_memory_bytes->Value(), static_cast<double>(script.memory_bytes));
  FoldOne(models.serving());
  watch.Look();
  watch.Look();
  EXPECT_EQ(metrics.device_fold.rows->Value(), folds + 1);
  EXPECT_EQ(metrics.device_states->Value(), 1);
  EXPECT_GT(metrics.lookups_on_device->Value(), 0);
  EXPECT_GT(metrics.device_bytes_out->Value(), 0);

  // A second model's work is added, and the first one's stays when it goes.
  const ModelHandle first = models.serving();
  const ModelHandle second = NewModel(2, OnDevice(&other_script));
  ASSERT_TRUE(models.Add(second).ok());
  models.SetServing(second);
  FoldOne(second);
  watch.Look();
  EXPECT_EQ(metrics.device_states->Value(), 2);
  const double both = metrics.device_fold.rows->Value();
  EXPECT_GT(both, folds + 2);
  models.Remove(first.get());
  watch.Look();
  EXPECT_EQ(metrics.device_fold.rows->Value(), both);
  EXPECT_EQ(metrics.device_states->Value(), 1);

  EXPECT_EQ(watch.fault(), "");
  other_script.FailFrom(DeviceScript::kFold, 0);
  FoldOne(second);
  watch.Look();
  watch.Look();
  EXPECT_THAT(lost, ElementsAre("m2: an illegal memory access was encountered"));
  EXPECT_THAT(watch.fault(), HasSubstr("illegal memory access"));
  EXPECT_EQ(metrics.device_lost->Value(), 1);
  EXPECT_EQ(metrics.device_states->Value(), 0);
}

TEST(DeviceWatch, HasNothingToSayOfTheCpu) {
  Metrics metrics;
  Models models(NewModel(1, BuiltinBackends().factories.at("cpu")));
  DeviceWatch watch(&models, &metrics, [](const LoadedModel&, const std::string&) { FAIL(); });
  watch.Look();
  EXPECT_EQ(watch.fault(), "");
  EXPECT_EQ(metrics.device_memory_bytes->Value(), 0);
  EXPECT_EQ(metrics.device_fold.launches->Value(), 0);
}

}  // namespace
}  // namespace tim4rec
