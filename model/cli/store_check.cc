#include "model/cli/store_check.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/engine/state_check.h"

namespace tim4rec {
namespace {

using ItemDay = std::pair<int64_t, std::string>;

class Checker {
 public:
  Checker(const RocksDbStore& store, const Engine& engine, const FaultVisitor& on_fault)
      : store_(store), engine_(engine), on_fault_(on_fault) {}

  absl::Status CheckAll() {
    absl::Status checked;
    absl::Status listed = store_.ForEachUser("", [&](std::string_view user_id) {
      checked = CheckUser(std::string(user_id));
      return checked.ok();
    });
    if (checked.ok()) checked = listed;
    if (checked.ok()) checked = CheckUse();
    return checked.ok() ? CheckStates("") : checked;
  }

  // The user's log, and that the model's checkpoint is its fold.
  absl::Status CheckUser(const std::string& user_id) {
    auto stored = store_.Get(user_id, engine_.fingerprint());
    if (!stored.ok()) return stored.status();  // a damaged record is found by CheckStates
    const std::optional<StateRecord>& state = *stored;

    const auto truncation = store_.ReadTruncation(user_id);
    if (absl::IsDataLoss(truncation.status())) {
      ++result.users;
      logs_readable_ = false;
      Fault(user_id, std::string(truncation.status().message()));
      return absl::OkStatus();
    }
    if (!truncation.ok()) return truncation.status();

    std::vector<FoldEvent> fold;
    std::optional<size_t> covered;  // how much of `fold` the checkpoint covers
    Lineage lineage;
    FoldPlace last;
    if (*truncation) {
      lineage = (*truncation)->lineage;
      last.position = lineage.watermark;
      result.removed_events += lineage.event_count;
    }
    std::set<Position> positions;
    const auto compare = [&] {
      if (state && lineage == state->lineage) covered = fold.size();
    };
    compare();
    absl::Status read = store_.Read(user_id, [&](std::string_view position, const Event& event) {
      CheckPlace(user_id, position, event, &last, &positions);
      ++result.events;
      CountUse(event);
      lineage.Extend(position, event.item_id);
      if (const auto item = engine_.catalog().Find(event.item_id)) {
        fold.push_back({*item, FoldTimeMs(event)});
      } else {
        ++result.unknown_items;
      }
      compare();
      return true;
    });
    if (lineage.event_count > 0 || !read.ok()) ++result.users;
    if (absl::IsDataLoss(read)) {
      logs_readable_ = false;
      Fault(user_id, std::string(read.message()));
      return absl::OkStatus();
    }
    if (!read.ok() || !state) return read;
    if (!covered) {
      // Of a user without events CheckStates tells.
      if (lineage.event_count > 0) ++result.stale_states;
      return absl::OkStatus();
    }
    std::string base;
    if (*truncation) {
      auto kept = store_.GetBase(user_id, engine_.fingerprint());
      if (absl::IsDataLoss(kept.status())) return absl::OkStatus();  // found by CheckStates
      if (!kept.ok()) return kept.status();
      if (*kept) base = std::move((*kept)->payload);
    }
    return Compare(user_id, *state, base, std::span(fold).first(*covered));
  }

  // Every checkpoint and base by itself, of one user or (empty) of all.
  absl::Status CheckStates(std::string_view only_user) {
    absl::Status looked;
    const absl::Status listed = store_.ForEachState([&](const StoredState& state) {
      if (!only_user.empty() && state.user_id != only_user) return true;
      if (state.record == nullptr) {
        Fault(state.user_id, absl::StrCat(state.base ? "the base" : "the checkpoint", " with key ",
                                          std::string(state.key_hex), " fails its checks"));
        return true;
      }
      if (state.base) {
        looked = CheckBase(state);
        return looked.ok();
      }
      if (state.fingerprint != engine_.fingerprint()) ++result.other_models_states;
      const auto truncation = store_.ReadTruncation(state.user_id);
      bool has_events = truncation.ok() && truncation->has_value();
      looked = store_.Read(state.user_id, [&](std::string_view, const Event&) {
        has_events = true;
        return false;
      });
      if (absl::IsDataLoss(looked))
        looked = absl::OkStatus();  // told by CheckUser
      else if (looked.ok() && !has_events) {
        Fault(state.user_id,
              absl::StrCat("the checkpoint of model ", std::string(state.fingerprint), " covers ",
                           state.record->lineage.event_count, " events, and the user has none"));
      }
      return looked.ok();
    });
    return looked.ok() ? listed : looked;
  }

  StoreCheck result;

 private:
  void Fault(std::string_view user_id, const std::string& fault) {
    ++result.faults;
    on_fault_(user_id, fault);
  }

  void CountUse(const Event& event) {
    const int64_t day = UseDayOf(event.timestamp_ms);
    if (day >= store_.first_use_day()) ++used_[{day, event.item_id}];
    newest_day_ = std::max(newest_day_, day);
  }

  absl::Status CheckUse() {
    if (!store_.keeps_use()) {
      // A store of an older format has nothing to check, a damaged one says so.
      absl::Status readable = store_.ReadUse(0, [](const ItemUse&) { return false; });
      if (!absl::IsDataLoss(readable)) return readable;
      Fault("", std::string(readable.message()));
      return absl::OkStatus();
    }
    // What was removed, or cannot be read, may be counted too.
    const bool all_logged = logs_readable_ && !store_.truncated();
    const auto check = [&](const ItemDay& key, int64_t counted, int64_t logged) {
      if (counted == logged || (!all_logged && counted > logged)) {
        ++result.use_counts;
        return;
      }
      Fault("", absl::StrCat("item '", key.second, "' is counted ", counted, " times on day ",
                             key.first, ", and the logs have ", logged));
    };
    absl::Status read = store_.ReadUse(store_.first_use_day(), [&](const ItemUse& use) {
      const auto logged = used_.find({use.day, std::string(use.item_id)});
      check({use.day, std::string(use.item_id)}, use.events,
            logged == used_.end() ? 0 : logged->second);
      if (logged != used_.end()) used_.erase(logged);
      return true;
    });
    for (const auto& [key, logged] : used_) check(key, 0, logged);
    if (IsUseDay(newest_day_) && newest_day_ - kUseDays > store_.first_use_day()) {
      Fault("", absl::StrCat("days before ", newest_day_ - kUseDays,
                             " are still counted, and the newest event is of day ", newest_day_));
    }
    if (!absl::IsDataLoss(read)) return read;
    Fault("", std::string(read.message()));
    return absl::OkStatus();
  }

  absl::Status CheckBase(const StoredState& state) {
    ++result.bases;
    const auto truncation = store_.ReadTruncation(state.user_id);
    if (absl::IsDataLoss(truncation.status())) return absl::OkStatus();  // told by CheckUser
    if (!truncation.ok()) return truncation.status();
    const std::string model(state.fingerprint);
    const bool ours = state.fingerprint == engine_.fingerprint();
    if (!*truncation || !((*truncation)->lineage == state.record->lineage)) {
      Fault(state.user_id,
            absl::StrCat("the base of model ", model, " covers ", state.record->lineage.event_count,
                         " events that are not those that retention removed"));
    } else if (const auto bytes = static_cast<size_t>(engine_.backend().state_bytes());
               ours && state.record->payload.size() != bytes) {
      Fault(state.user_id, absl::StrCat("the base of model ", model, " has ",
                                        state.record->payload.size(), " bytes, not ", bytes));
    }
    return absl::OkStatus();
  }

  void CheckPlace(const std::string& user_id, std::string_view position, const Event& event,
                  FoldPlace* last, std::set<Position>* positions) {
    const auto named = [&] {
      return absl::StrCat("the event of item '", event.item_id, "' at ", event.timestamp_ms,
                          " ms ");
    };
    if (position != PositionOf(event)) Fault(user_id, named() + "is not at its own position");
    if (!positions->emplace(position).second) Fault(user_id, named() + "is there twice");
    FoldPlace place = FoldPlaceOf(event);
    if (place <= *last) Fault(user_id, named() + "shares its place in the fold order");
    *last = std::move(place);
  }

  absl::Status Compare(const std::string& user_id, const StateRecord& state, std::string_view base,
                       std::span<const FoldEvent> events) {
    if (!base.empty() && base.size() != static_cast<size_t>(engine_.backend().state_bytes())) {
      return absl::OkStatus();  // found by CheckStates
    }
    const auto folded = FoldFrom(engine_, base, events);
    if (!folded.ok()) return folded.status();
    const std::string difference = FirstDifference(engine_.config(), *folded, state.payload);
    if (difference.empty()) {
      ++result.equal_states;
    } else {
      Fault(user_id, absl::StrCat("the checkpoint after ", state.lineage.event_count,
                                  " events differs from the fold of the log: ", difference));
    }
    return absl::OkStatus();
  }

  const RocksDbStore& store_;
  const Engine& engine_;
  const FaultVisitor& on_fault_;
  bool logs_readable_ = true;  // all of those read so far
  std::map<ItemDay, int64_t> used_;
  int64_t newest_day_ = std::numeric_limits<int64_t>::min();
};

}  // namespace

absl::StatusOr<StoreCheck> CheckStore(const RocksDbStore& store, const Engine& engine,
                                      const std::string& only_user, const FaultVisitor& on_fault) {
  Checker checker(store, engine, on_fault);
  absl::Status checked;
  if (only_user.empty()) {
    checked = checker.CheckAll();
  } else {
    checked = checker.CheckUser(only_user);
    if (checked.ok()) checked = checker.CheckStates(only_user);
  }
  if (!checked.ok()) return checked;
  return checker.result;
}

}  // namespace tim4rec
