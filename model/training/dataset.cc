#include "model/training/dataset.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

// Which rows survive the filter. Each removal may push others below the limit, so it repeats.
std::vector<bool> CoreRows(const InteractionTable& table, int64_t min_count) {
  std::vector<bool> kept(table.rows.size(), true);
  std::vector<int64_t> user_events(table.user_ids.size());
  std::vector<int64_t> item_events(table.item_ids.size());
  for (const Interaction& row : table.rows) {
    ++user_events[row.user];
    ++item_events[row.item];
  }
  bool removed = true;
  while (removed) {
    removed = false;
    // Counts of the previous round decide, so that users and items are judged at the same moment.
    const auto user_before = user_events;
    const auto item_before = item_events;
    for (size_t i = 0; i < table.rows.size(); ++i) {
      const Interaction& row = table.rows[i];
      if (!kept[i]) continue;
      if (user_before[row.user] >= min_count && item_before[row.item] >= min_count) continue;
      kept[i] = false;
      removed = true;
      --user_events[row.user];
      --item_events[row.item];
    }
  }
  return kept;
}

void SortByTime(UserHistory* history) {
  std::vector<int64_t> order(history->items.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return history->timestamps_ms[a] < history->timestamps_ms[b];
  });
  UserHistory sorted{history->user, {}, {}};
  sorted.items.reserve(order.size());
  sorted.timestamps_ms.reserve(order.size());
  for (const int64_t i : order) {
    sorted.items.push_back(history->items[i]);
    sorted.timestamps_ms.push_back(history->timestamps_ms[i]);
  }
  *history = std::move(sorted);
}

void Describe(const std::vector<ItemDescription>& descriptions, std::vector<Item>* items) {
  std::unordered_map<std::string, const ItemDescription*> by_id;
  for (const ItemDescription& description : descriptions) {
    by_id.try_emplace(description.id, &description);
  }
  for (size_t i = 1; i < items->size(); ++i) {
    Item& item = (*items)[i];
    const auto found = by_id.find(item.id);
    if (found == by_id.end()) continue;
    item.title = found->second->title;
    item.categories = found->second->categories;
  }
}

}  // namespace

absl::StatusOr<Dataset> BuildDataset(const InteractionTable& table, int64_t min_count,
                                     const std::vector<ItemDescription>& descriptions) {
  const std::vector<bool> kept = CoreRows(table, min_count);
  Dataset data;
  data.items.resize(1);
  std::vector<int32_t> user_index(table.user_ids.size(), -1);
  std::vector<int32_t> item_index(table.item_ids.size(), -1);
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (!kept[i]) continue;
    const Interaction& row = table.rows[i];
    if (user_index[row.user] < 0) {
      user_index[row.user] = static_cast<int32_t>(data.users.size());
      data.users.push_back({table.user_ids[row.user], {}, {}});
    }
    if (item_index[row.item] < 0) {
      item_index[row.item] = static_cast<int32_t>(data.items.size());
      data.items.push_back({table.item_ids[row.item], "", {}, 0});
    }
    UserHistory& history = data.users[user_index[row.user]];
    history.items.push_back(item_index[row.item]);
    history.timestamps_ms.push_back(row.timestamp_ms);
    ++data.n_events;
  }
  if (data.n_events == 0) {
    return absl::InvalidArgumentError(
        table.rows.empty() ? std::string("the file has no interactions")
                           : absl::StrCat("none of the ", table.rows.size(),
                                          " interactions is left after removing ",
                                          "users and items with fewer than ", min_count,
                                          " of them; lower the minimum count"));
  }
  for (UserHistory& history : data.users) {
    SortByTime(&history);
    for (int64_t i = 0; i < history.train_size(); ++i) {
      ++data.items[history.items[i]].train_events;
    }
  }
  Describe(descriptions, &data.items);
  return data;
}

ItemTimeline TimelineOf(const Dataset& data) {
  std::vector<std::vector<int64_t>> days(data.items.size());
  for (const UserHistory& history : data.users) {
    for (int64_t i = 0; i < history.train_size(); ++i) {
      days[history.items[i]].push_back(DayOf(history.timestamps_ms[i]));
    }
  }
  return ItemTimeline(std::move(days));
}

KnownHistories HistoriesInCatalog(const InteractionTable& table, const ItemCatalog& catalog) {
  KnownHistories result;
  result.users.reserve(table.user_ids.size());
  for (const std::string& user : table.user_ids) result.users.push_back({user, {}, {}});
  std::vector<int32_t> index(table.item_ids.size());
  for (size_t i = 0; i < index.size(); ++i) index[i] = catalog.Find(table.item_ids[i]).value_or(0);
  for (const Interaction& row : table.rows) {
    if (index[row.item] == 0) {
      ++result.unknown_events;
      continue;
    }
    result.users[row.user].items.push_back(index[row.item]);
    result.users[row.user].timestamps_ms.push_back(row.timestamp_ms);
  }
  for (UserHistory& history : result.users) SortByTime(&history);
  return result;
}

}  // namespace tim4rec
