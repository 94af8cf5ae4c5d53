// The pipeline over a backend whose states may differ in their last bits.
#include "tests/model/tiny_model.h"
#include "tests/server/pipeline_fixture.h"

namespace tim4rec {
namespace {

class InexactBackend : public PipelineTest {
 protected:
  Event At(int64_t second, const std::string& item) const {
    return {.item_id = item, .timestamp_ms = kNow - 1'000'000 + 1000 * second, .event_id = ""};
  }
  // The same model over the same store.
  void ServeWith(const std::string& backend) {
    pipeline_.reset();
    models_ = std::make_unique<Models>(NewModel("m", MakeTinyModel(7), backend));
    Start();
  }
};

TEST_F(InexactBackend, ServesButStoresNoState) {
  ServeWith("torch");
  options_.max_resident_users = 2;
  options_.checkpoint_interval = absl::Milliseconds(1);
  Start();
  for (const std::string user : {"a", "b", "c", "d"}) {
    Record(user, {At(1, "item1"), At(2, "item2")});
    EXPECT_EQ(Recommend(user).items.size(), 10u);
  }
  EXPECT_GT(metrics_.evictions->Value(), 0);
  EXPECT_EQ(Recommend("a").tier, Tier::kRebuilt);
  // It has nothing that could equal the fold byte for byte.
  auto verify = std::make_unique<TestJob>();
  verify->user_id = "a";
  verify->verify_user.emplace();
  verify = Submit(std::move(verify));
  verify->Wait();
  EXPECT_EQ(verify->status.code(), absl::StatusCode::kFailedPrecondition) << verify->status;
  ASSERT_TRUE(pipeline_->Drain().ok());
  for (const std::string user : {"a", "b", "c", "d"}) EXPECT_EQ(Stored(user), "no checkpoint");
  EXPECT_EQ(metrics_.checkpoints->Value(), 0);
}

TEST_F(InexactBackend, GoesOnFromExactCheckpointsAndLeavesThemAlone) {
  Record("u", {At(1, "item1"), At(2, "item2")});
  const RecommendCommand exact = Recommend("u");
  ASSERT_TRUE(pipeline_->Drain().ok());
  const std::string stored = Stored("u");
  EXPECT_EQ(stored, Folded({At(1, "item1"), At(2, "item2")}));

  ServeWith("torch");
  const RecommendCommand inexact = Recommend("u");
  EXPECT_EQ(inexact.tier, Tier::kStored);
  ASSERT_EQ(inexact.items.size(), exact.items.size());
  for (size_t i = 0; i < exact.items.size(); ++i) {
    EXPECT_EQ(inexact.items[i].item, exact.items[i].item);
    EXPECT_NEAR(inexact.items[i].score, exact.items[i].score, 1e-4);
  }
  Record("u", {At(3, "item3")});
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), stored);

  ServeWith("cpu");
  EXPECT_EQ(Recommend("u").tier, Tier::kStored);
  ASSERT_TRUE(pipeline_->Drain().ok());
  EXPECT_EQ(Stored("u"), Folded({At(1, "item1"), At(2, "item2"), At(3, "item3")}));
}

}  // namespace
}  // namespace tim4rec
