// RocksDbStore: how often items are used, counted with every write of events.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"
#include "store/item_use.h"
#include "store/record_codec.h"
#include "store/rocksdb_rep.h"

namespace tim4rec {
namespace {

constexpr int64_t kDayMs = 86'400'000;
constexpr size_t kToldTogether = 1024;    // counts in one call of an observer
constexpr size_t kPutTogether = 4 << 20;  // bytes in one batch of an upgrade

std::string UseBegin() { return UseKey(std::numeric_limits<int32_t>::min()); }

auto Key(const ItemUse& use) { return std::pair(use.day, use.item_id); }

}  // namespace

int64_t UseDayOf(int64_t timestamp_ms) {
  return timestamp_ms / kDayMs - (timestamp_ms % kDayMs < 0 ? 1 : 0);
}

bool IsUseDay(int64_t day) {
  return day >= std::numeric_limits<int32_t>::min() && day <= std::numeric_limits<int32_t>::max();
}

void UseChanges::Add(int64_t timestamp_ms, std::string_view item_id, int64_t events) {
  const int64_t day = UseDayOf(timestamp_ms);
  if (IsUseDay(day)) changes_.push_back({day, item_id, events});
  summed_ = false;
}

std::span<const ItemUse> UseChanges::Summed() {
  if (std::exchange(summed_, true)) return changes_;
  if (changes_.size() > 1) {
    std::sort(changes_.begin(), changes_.end(),
              [](const ItemUse& a, const ItemUse& b) { return Key(a) < Key(b); });
    size_t last = 0;
    for (size_t i = 1; i < changes_.size(); ++i) {
      if (Key(changes_[i]) == Key(changes_[last])) {
        changes_[last].events += changes_[i].events;
      } else {
        changes_[++last] = changes_[i];
      }
    }
    changes_.resize(last + 1);
  }
  return changes_;
}

rocksdb::Status RocksDbStore::Rep::WriteCounted(const rocksdb::WriteOptions& write,
                                                UseChanges& changes, rocksdb::WriteBatch& batch) {
  if (!counted) return db->Write(write, &batch);
  std::span<const ItemUse> use = changes.Summed();
  rocksdb::ColumnFamilyHandle* family = families[kUseFamily];
  const WriteGate::Writing writing(use_gate);
  int64_t first_day = first_use_day;
  std::unique_lock raising(raise_mutex, std::defer_lock);
  const int64_t wanted = use.empty() ? kNoUseDay : use.back().day - kUseDays;
  rocksdb::Status collected;
  if (wanted > first_day) {
    raising.lock();
    first_day = std::max<int64_t>(first_use_day, wanted);
    // From the very first on: writes beside an earlier raise may have left counts behind it.
    collected = batch.Put(family, kFirstUseDayKey, EncodeUseDay(first_day));
    if (collected.ok() && IsUseDay(first_day)) {
      collected = batch.DeleteRange(family, UseBegin(), UseKey(first_day));
    }
  }
  use = use.subspan(std::partition_point(use.begin(), use.end(),
                                         [&](const ItemUse& u) { return u.day < first_day; }) -
                    use.begin());
  for (size_t i = 0; i < use.size() && collected.ok();) {
    const int64_t day = use[i].day;
    std::string row;
    for (; i < use.size() && use[i].day == day; ++i) AppendUse(use[i].item_id, use[i].events, row);
    collected = batch.Merge(family, UseKey(day), row);
  }
  if (!collected.ok()) return collected;
  const rocksdb::Status written = db->Write(write, &batch);
  if (!written.ok()) return written;
  if (raising.owns_lock()) first_use_day = first_day;
  if (use.empty()) return written;
  for (const auto& observer : Observers()) observer->Changed(use, first_day);
  return written;
}

std::vector<std::shared_ptr<UseObserver>> RocksDbStore::Rep::Observers() {
  std::vector<std::shared_ptr<UseObserver>> living;
  const std::lock_guard lock(observers_mutex);
  std::erase_if(observers, [&](const std::weak_ptr<UseObserver>& observer) {
    if (auto lives = observer.lock()) living.push_back(std::move(lives));
    return observer.expired();
  });
  return living;
}

std::unique_ptr<rocksdb::Iterator> RocksDbStore::Rep::UseIterator() const {
  rocksdb::ReadOptions read;
  read.fill_cache = false;  // read once, from end to end
  return std::unique_ptr<rocksdb::Iterator>(db->NewIterator(read, families[kUseFamily]));
}

absl::Status RocksDbStore::Rep::VisitUse(std::unique_ptr<rocksdb::Iterator> iterator,
                                         int64_t from_day, const UseVisitor& visitor) const {
  from_day = std::max<int64_t>(from_day, first_use_day);
  if (from_day > std::numeric_limits<int32_t>::max()) return absl::OkStatus();
  iterator->Seek(UseKey(std::max<int64_t>(from_day, std::numeric_limits<int32_t>::min())));
  const std::string end = UseEnd();
  for (; iterator->Valid() && StdView(iterator->key()) < end; iterator->Next()) {
    const std::optional<int64_t> day = DecodeUseKey(StdView(iterator->key()));
    UseReader use(StdView(iterator->value()));
    while (day && use.Next()) {
      if (!visitor({*day, use.item_id(), use.events()})) return absl::OkStatus();
    }
    if (!day || !use.ok()) {
      return absl::DataLossError(absl::StrCat(
          "the counts with key ", absl::BytesToHexString(View(StdView(iterator->key()))),
          " are damaged: they are counted anew when the store is opened to write"));
    }
  }
  return StatusOf(iterator->status(), "read how often items were used");
}

absl::StatusOr<int64_t> RocksDbStore::Rep::CountLogs(
    std::map<int64_t, absl::flat_hash_map<std::string, int64_t>>& counts) const {
  int64_t first_day = kNoUseDay;
  rocksdb::ReadOptions read;
  read.total_order_seek = true;
  read.fill_cache = false;
  std::unique_ptr<rocksdb::Iterator> events(db->NewIterator(read, families[kEventsFamily]));
  Event event;
  std::string_view position;
  for (events->SeekToFirst(); events->Valid(); events->Next()) {
    const std::string_view key = StdView(events->key());
    if (!DecodeEvent(key, StdView(events->value()), event, position)) continue;
    const int64_t day = UseDayOf(event.timestamp_ms);
    if (!IsUseDay(day) || day < first_day) continue;
    ++counts[day][event.item_id];
    if (day - kUseDays <= first_day) continue;
    first_day = day - kUseDays;
    counts.erase(counts.begin(), counts.lower_bound(first_day));
  }
  if (!events->status().ok()) return StatusOf(events->status(), "count the events");
  return first_day;
}

absl::Status RocksDbStore::Rep::CheckUse() {
  first_use_day = kNoUseDay;
  std::string value;
  const rocksdb::Status found = db->Get({}, families[kUseFamily], kFirstUseDayKey, &value);
  if (found.IsNotFound()) return absl::NotFoundError("not all logs are counted");
  if (!found.ok()) return StatusOf(found, "read the first day of counts");
  const std::optional<int64_t> day = DecodeUseDay(value);
  if (!day) return absl::DataLossError("the first day of counts is damaged");
  absl::Status read = VisitUse(UseIterator(), kNoUseDay, [](const ItemUse&) { return true; });
  if (read.ok()) first_use_day = *day;
  return read;
}

absl::Status RocksDbStore::Rep::OpenUse() {
  counted = false;
  use_fault = absl::OkStatus();
  if (families.size() <= kUseFamily) return absl::OkStatus();
  const absl::Status checked = CheckUse();
  if (!checked.ok() && !absl::IsNotFound(checked) && !absl::IsDataLoss(checked)) return checked;
  if (checked.ok()) {
    counted = true;
    return checked;
  }
  if (read_only) {
    if (absl::IsDataLoss(checked)) use_fault = checked;
    return absl::OkStatus();
  }
  if (absl::Status anew = CountAnew(); !absl::IsDataLoss(anew)) {
    if (anew.ok() && absl::IsDataLoss(checked)) recounts.fetch_add(1, std::memory_order_relaxed);
    return anew;
  } else {
    use_fault = anew;
  }
  return absl::OkStatus();
}

// By a new family: compactions of damaged tables would stop all writes.
absl::Status RocksDbStore::Rep::EmptyUseFamily() {
  {
    const std::unique_ptr<rocksdb::Iterator> any = UseIterator();
    any->SeekToFirst();
    if (!any->Valid() && any->status().ok()) return absl::OkStatus();
  }
  rocksdb::Status dropped = db->DropColumnFamily(families[kUseFamily]);
  if (!dropped.ok()) return StatusOf(dropped, "drop the counts of the items' use");
  dropped = db->DestroyColumnFamilyHandle(families[kUseFamily]);
  if (!dropped.ok()) return StatusOf(dropped, "let go of the counts of the items' use");
  families.pop_back();
  return CreateUseFamily();
}

// The first day is written last: what has none is counted from the beginning when it is opened.
absl::Status RocksDbStore::Rep::CountAnew() {
  if (absl::Status emptied = EmptyUseFamily(); !emptied.ok()) return emptied;
  std::map<int64_t, absl::flat_hash_map<std::string, int64_t>> counts;
  const auto first_day = CountLogs(counts);
  if (!first_day.ok()) return first_day.status();
  rocksdb::WriteBatch batch;
  rocksdb::WriteOptions write;
  rocksdb::Status status;
  for (const auto& [day, items] : counts) {
    std::string row;
    for (const auto& [item_id, events] : std::map(items.begin(), items.end())) {
      AppendUse(item_id, events, row);
    }
    if (status.ok()) status = batch.Put(families[kUseFamily], UseKey(day), row);
    if (!status.ok() || batch.GetDataSize() < kPutTogether) continue;
    status = db->Write(write, &batch);
    batch.Clear();
  }
  if (status.ok()) {
    status = batch.Put(families[kUseFamily], kFirstUseDayKey, EncodeUseDay(*first_day));
  }
  if (status.ok() && truncated) status = batch.Put(families[kMetaFamily], kTruncatedKey, "");
  if (status.ok()) {
    status = batch.Put(families[kMetaFamily], kFormatKey, EncodeFormatVersion(FormatVersion()));
  }
  write.sync = true;
  if (status.ok()) status = db->Write(write, &batch);
  if (!status.ok()) return StatusOf(status, "count the items' use");
  first_use_day = *first_day;
  counted = true;
  return absl::OkStatus();
}

absl::Status RocksDbStore::Rep::TellAll(UseObserver& observer,
                                        std::unique_ptr<rocksdb::Iterator> iterator) const {
  std::vector<ItemUse> told;
  std::vector<std::string> names;  // what `told` points to
  names.reserve(kToldTogether);
  const auto tell = [&] {
    observer.Changed(told, first_use_day);
    told.clear();
    names.clear();
  };
  absl::Status read = VisitUse(std::move(iterator), kNoUseDay, [&](const ItemUse& use) {
    names.emplace_back(use.item_id);
    told.push_back({use.day, names.back(), use.events});
    if (told.size() == kToldTogether) tell();
    return true;
  });
  if (!read.ok()) return read;
  tell();
  observer.End();
  return absl::OkStatus();
}

bool RocksDbStore::keeps_use() const { return rep_->counted; }

int64_t RocksDbStore::first_use_day() const { return rep_->first_use_day; }

absl::Status RocksDbStore::ReadUse(int64_t from_day, const UseVisitor& visitor) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  if (!rep_->use_fault.ok()) return rep_->use_fault;
  if (rep_->counted) return rep_->VisitUse(rep_->UseIterator(), from_day, visitor);
  std::map<int64_t, absl::flat_hash_map<std::string, int64_t>> counts;
  if (auto first_day = rep_->CountLogs(counts); !first_day.ok()) return first_day.status();
  for (const auto& [day, items] : counts) {
    if (day < from_day) continue;
    std::map<std::string_view, int64_t> ordered(items.begin(), items.end());
    for (const auto& [item_id, events] : ordered) {
      if (!visitor({day, item_id, events})) return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

absl::Status RocksDbStore::ObserveUse(const std::shared_ptr<UseObserver>& observer) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  if (!rep_->use_fault.ok()) return rep_->use_fault;
  std::unique_ptr<rocksdb::Iterator> iterator;
  {
    // What was written before is in the iterator, what comes after is told.
    const WriteGate::Closed closed(rep_->use_gate);
    iterator = rep_->UseIterator();
    observer->Begin();
    const std::lock_guard lock(rep_->observers_mutex);
    rep_->observers.push_back(observer);
  }
  return rep_->TellAll(*observer, std::move(iterator));
}

}  // namespace tim4rec
