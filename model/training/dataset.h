// What a model is trained and measured on: users' ordered histories over a catalogue of items,
// under the protocol of the project (k-core, leave one out).
#ifndef TIM4REC_MODEL_TRAINING_DATASET_H_
#define TIM4REC_MODEL_TRAINING_DATASET_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/training/interactions.h"
#include "model/weights/item_timeline.h"
#include "model/weights/package.h"

namespace tim4rec {

enum class Split { kValid, kTest };

// One user's events in fold order: by timestamp, ties in file order.
struct UserHistory {
  std::string user;
  std::vector<int32_t> items;  // 1 … V-1
  std::vector<int64_t> timestamps_ms;

  int64_t size() const { return static_cast<int64_t>(items.size()); }
  // Leave one out: the last event is the test target, the one before it the validation target, the
  // rest is for training. A user with fewer than 3 events is trained on whole and not evaluated.
  bool evaluated() const { return size() >= 3; }
  int64_t train_size() const { return evaluated() ? size() - 2 : size(); }
  int64_t target(Split split) const { return size() - (split == Split::kTest ? 1 : 2); }
};

struct Dataset {
  std::vector<Item> items;  // [V]; 0 is padding, then by first appearance; train_events counted
  std::vector<UserHistory> users;  // by first appearance
  int64_t n_events = 0;
};

// Removes users and items with fewer than `min_count` events, repeatedly, until none is left to
// remove (0 and 1: nothing is), and orders what stays. INVALID_ARGUMENT if nothing stays.
// `descriptions` (may be empty) gives titles and categories by item id; others are ignored.
absl::StatusOr<Dataset> BuildDataset(const InteractionTable& table, int64_t min_count,
                                     const std::vector<ItemDescription>& descriptions);

// Of the training events alone: no held-out event can change it.
ItemTimeline TimelineOf(const Dataset& data);

// The users' histories of a file as a model sees them: no filter, items by the catalogue's index,
// events with items it does not know left out and counted. Users by first appearance, also those
// without any known item.
struct KnownHistories {
  std::vector<UserHistory> users;
  int64_t unknown_events = 0;
};
KnownHistories HistoriesInCatalog(const InteractionTable& table, const ItemCatalog& catalog);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_DATASET_H_
