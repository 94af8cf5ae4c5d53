#include "server/pipeline/model_use.h"

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "store/item_use.h"

namespace tim4rec {
namespace {

class ModelUse final : public UseObserver {
 public:
  explicit ModelUse(std::shared_ptr<const Engine> engine) : engine_(std::move(engine)) {}

  void Begin() override { engine_->boosts().Begin(); }
  void End() override { engine_->boosts().Swap(); }
  void Changed(std::span<const ItemUse> changes, int64_t first_day) override {
    std::vector<ItemUseChange> known;
    known.reserve(changes.size());
    for (const ItemUse& use : changes) {
      const auto item = engine_->catalog().Find(use.item_id);
      if (item) known.push_back({*item, use.day, use.events});
    }
    engine_->boosts().Add(known, first_day);
  }

 private:
  const std::shared_ptr<const Engine> engine_;
};

}  // namespace

absl::Status FollowUse(RocksDbStore& store, double user_share, LoadedModel* model) {
  if (model->package->trend() == nullptr) return absl::OkStatus();
  model->engine->boosts().SetUserShare(user_share);
  model->use = std::make_shared<ModelUse>(model->engine);
  return store.ObserveUse(model->use);
}

}  // namespace tim4rec
