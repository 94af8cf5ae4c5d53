#include "store/rocksdb_store.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/utilities/checkpoint.h"
#include "rocksdb/write_batch.h"
#include "store/info_log.h"
#include "store/record_codec.h"
#include "store/rocksdb_options.h"
#include "store/rocksdb_rep.h"
#include "store/wal_tail.h"

namespace tim4rec {
namespace {

constexpr char kProbeFile[] = "/PROBE";   // no name of RocksDB's
constexpr size_t kProbeBytes = 64 << 10;  // opening writes about as much
constexpr char kWritesStopped[] = "writes are stopped until compaction catches up";
constexpr std::chrono::seconds kReopenPatience(1);

absl::Status OpenError(const rocksdb::Status& status, const std::string& dir) {
  const std::string text = status.ToString();
  const auto has = [&](const char* part) { return text.find(part) != std::string::npos; };
  if (status.IsIOError() && (has("lock hold") || (has("lock") && has("temporarily unavailable")))) {
    return absl::UnavailableError(
        absl::StrCat("store ", dir,
                     " is in use by another process or by this one: stop that process or choose "
                     "another directory (",
                     text, ")"));
  }
  if (has("create_if_missing is false")) {
    return absl::NotFoundError(absl::StrCat("store ", dir, " does not exist"));
  }
  if (status.IsInvalidArgument()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store ", dir, " was written by another program or by a newer version (", text, ")"));
  }
  return StatusOf(status, absl::StrCat("open store ", dir));
}

absl::Status CheckLatePlace(const Event& event) {
  if (event.late.rank == 0 && event.late.position.empty()) return absl::OkStatus();
  if (IsLatePlace(event.late.position, event.late.rank, PositionOf(event))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("late: rank ", event.late.rank, " behind ",
                                                 absl::BytesToHexString(View(event.late.position)),
                                                 " is no place behind the event's own position"));
}

absl::Status CheckEvents(std::span<const UserEvents> batch) {
  for (const UserEvents& user : batch) {
    if (absl::Status id = CheckId("user_id", user.user_id); !id.ok()) return id;
    for (const Event& event : user.events) {
      if (absl::Status id = CheckId("item_id", event.item_id); !id.ok()) return id;
      if (!event.event_id.empty()) {
        if (absl::Status id = CheckId("event_id", event.event_id); !id.ok()) return id;
      }
      if (absl::Status place = CheckLatePlace(event); !place.ok()) return place;
    }
  }
  return absl::OkStatus();
}

// After a power loss the new directory itself must still be there, which RocksDB leaves to us.
rocksdb::Status SyncParent(rocksdb::Env* env, std::string dir) {
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  const size_t slash = dir.rfind('/');
  const std::string parent = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : dir.substr(0, slash);
  std::unique_ptr<rocksdb::Directory> directory;
  rocksdb::Status status = env->NewDirectory(parent, &directory);
  return status.ok() ? directory->Fsync() : status;
}

}  // namespace

std::string Quoted(std::string_view id) {
  return absl::StrCat("'", absl::Utf8SafeCEscape(View(id)), "'");
}

absl::Status StatusOf(const rocksdb::Status& status, std::string_view action) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(View(action), ": ", status.ToString());
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) {
    return absl::ResourceExhaustedError(absl::StrCat(message, " (free some disk space)"));
  }
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotSupported()) return absl::FailedPreconditionError(message);
  if (status.IsInvalidArgument()) return absl::InvalidArgumentError(message);
  return absl::UnavailableError(message);
}

absl::Status CheckId(std::string_view field, std::string_view id) {
  if (!id.empty() && id.size() <= kMaxIdBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(View(field), " has ", id.size(), " bytes, expected 1 to ", kMaxIdBytes));
}

absl::Status CheckStateKey(std::string_view user_id, std::string_view fingerprint) {
  if (absl::Status id = CheckId("user_id", user_id); !id.ok()) return id;
  if (IsFingerprint(fingerprint)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("fingerprint ", Quoted(fingerprint), " is not ",
                                                 kFingerprintDigits, " lower-case hex digits"));
}

void RocksDbStore::Rep::Close() {
  if (db == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* family : families) db->DestroyColumnFamilyHandle(family);
  families.clear();
  db->Close();
  db.reset();
}

RocksDbStore::Rep::Use RocksDbStore::Rep::Reading() const {
  Use use{std::shared_lock(mutex), absl::OkStatus()};
  if (db == nullptr) {
    use.status = absl::UnavailableError(
        absl::StrCat("store ", dir, " is closed after a disk error and will be opened anew"));
  }
  return use;
}

RocksDbStore::Rep::Use RocksDbStore::Rep::Writing() const {
  Use use = Reading();
  if (use.status.ok() && read_only) {
    use.status =
        absl::FailedPreconditionError(absl::StrCat("store ", dir, " was opened read-only"));
  }
  return use;
}

rocksdb::Status RocksDbStore::Rep::OpenDatabase(
    const rocksdb::DBOptions& options,
    const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors) {
  rocksdb::DB* opened = nullptr;
  const rocksdb::Status status =
      read_only ? rocksdb::DB::OpenForReadOnly(options, dir, descriptors, &families, &opened)
                : rocksdb::DB::Open(options, dir, descriptors, &families, &opened);
  db.reset(opened);
  return status;
}

// Each log by itself, newest first, then all of them: an older log can only be torn if nothing in a
// newer one was synced, and logs that were synced when they were closed are guarded by the
// manifest.
rocksdb::Status RocksDbStore::Rep::OpenWithoutZeroTails(
    const rocksdb::DBOptions& options,
    const std::vector<rocksdb::ColumnFamilyDescriptor>& descriptors, rocksdb::Status refused) {
  const std::vector<ZeroTail> tails = FindZeroTails(dir);
  std::vector<std::span<const ZeroTail>> choices;
  for (const ZeroTail& tail : tails) choices.push_back({&tail, 1});
  if (tails.size() > 1) choices.push_back(tails);
  for (const std::span<const ZeroTail> choice : choices) {
    const bool cut = std::all_of(choice.begin(), choice.end(), Cut);
    if (cut && OpenDatabase(options, descriptors).ok()) return rocksdb::Status::OK();
    for (const ZeroTail& tail : choice) {
      if (!Restore(tail)) return rocksdb::Status::IOError("could not restore the log", tail.file);
    }
  }
  return refused;
}

absl::Status RocksDbStore::Rep::CheckFormat() {
  std::string value;
  const rocksdb::Status found = db->Get({}, families[kMetaFamily], kFormatKey, &value);
  if (found.IsNotFound()) {
    std::unique_ptr<rocksdb::Iterator> events(db->NewIterator({}, families[kEventsFamily]));
    events->SeekToFirst();
    if (events->Valid() || !events->status().ok()) {
      return absl::DataLossError(
          absl::StrCat("store ", dir, " has events but no format version: restore a backup"));
    }
    if (read_only) return absl::OkStatus();
    rocksdb::WriteOptions write;
    write.sync = true;
    return StatusOf(
        db->Put(write, families[kMetaFamily], kFormatKey, EncodeFormatVersion(FormatVersion())),
        "write format version");
  }
  if (!found.ok()) return StatusOf(found, "read format version");
  const std::optional<FormatVersion> format = DecodeFormatVersion(value);
  if (!format) {
    return absl::DataLossError(
        absl::StrCat("store ", dir, " has a damaged format version: restore a backup"));
  }
  if (format->min_reader > kFormatVersion) {
    return absl::InvalidArgumentError(absl::StrCat(
        "store ", dir, " has format version ", format->version, " and needs a program that reads ",
        format->min_reader, ", this one reads up to ", kFormatVersion, ": use a newer program"));
  }
  if (format->version < kFirstCountedFormat) {
    truncated = format->version >= kFirstTruncatedFormat;
    return absl::OkStatus();
  }
  const rocksdb::Status cut = db->Get({}, families[kMetaFamily], kTruncatedKey, &value);
  if (!cut.ok() && !cut.IsNotFound()) return StatusOf(cut, "read whether logs are truncated");
  truncated = cut.ok();
  return absl::OkStatus();
}

absl::Status RocksDbStore::Rep::CreateUseFamily() {
  rocksdb::ColumnFamilyHandle* family = nullptr;
  const auto descriptor = ColumnFamilies(options)[kUseFamily];
  const rocksdb::Status created =
      db->CreateColumnFamily(descriptor.options, descriptor.name, &family);
  if (created.ok()) families.push_back(family);
  return StatusOf(created, "create the family of counts");
}

// RocksDB does not go on after most failed writes. Opened anew, the log is what the disk has.
absl::Status RocksDbStore::Rep::OpenAnew(const absl::Status& cause) {
  rocksdb::Env* env = options.env == nullptr ? rocksdb::Env::Default() : options.env;
  const rocksdb::Status disk =
      rocksdb::WriteStringToFile(env, std::string(kProbeBytes, '?'), dir + kProbeFile, true);
  if (!disk.ok()) return StatusOf(disk, "write a probe to the disk");
  (void)env->DeleteFile(dir + kProbeFile);
  std::unique_lock lock(mutex, std::defer_lock);
  const auto give_up = std::chrono::steady_clock::now() + kReopenPatience;
  while (!lock.try_lock()) {
    if (std::chrono::steady_clock::now() > give_up) return cause;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Close();
  generation.fetch_add(1);
  absl::Status opened = Open();
  for (const auto& observer : Observers()) {
    // Whoever follows the counts is not left behind them: the store stays closed.
    if (opened.ok()) opened = use_fault;
    if (!opened.ok()) break;
    observer->Begin();
    opened = TellAll(*observer, UseIterator());
  }
  if (!opened.ok()) Close();
  return opened;
}

absl::Status RocksDbStore::Rep::FindPresent(const std::vector<std::string>& keys,
                                            std::vector<bool>& present) const {
  constexpr size_t kGroup = 256;  // bounds the values held at once
  present.assign(keys.size(), false);
  std::vector<rocksdb::Slice> slices(std::min(kGroup, keys.size()));
  std::vector<rocksdb::PinnableSlice> values(slices.size());
  std::vector<rocksdb::Status> statuses(slices.size());
  for (size_t begin = 0; begin < keys.size(); begin += kGroup) {
    const size_t count = std::min(kGroup, keys.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      slices[i] = keys[begin + i];
      values[i].Reset();
    }
    db->MultiGet({}, families[kEventsFamily], count, slices.data(), values.data(), statuses.data());
    for (size_t i = 0; i < count; ++i) {
      if (!statuses[i].ok() && !statuses[i].IsNotFound()) {
        return StatusOf(statuses[i], absl::StrCat("look for duplicates of the events of user ",
                                                  Quoted(*UserOfKey(keys[begin + i]))));
      }
      present[begin + i] = statuses[i].ok();
    }
  }
  return absl::OkStatus();
}

std::unique_ptr<rocksdb::Iterator> RocksDbStore::Rep::UserIterator(
    ColumnFamily family, const std::string& prefix, const rocksdb::Slice& end) const {
  rocksdb::ReadOptions read;
  read.prefix_same_as_start = true;
  read.iterate_upper_bound = &end;
  std::unique_ptr<rocksdb::Iterator> iterator(db->NewIterator(read, families[family]));
  iterator->Seek(prefix);
  return iterator;
}

// Whether the values can be decoded does not matter here: erasing must work on damaged records.
absl::Status RocksDbStore::Rep::DeletePrefix(ColumnFamily family, const std::string& prefix,
                                             rocksdb::WriteBatch& batch, uint64_t& count,
                                             const KeyValueVisitor& deleted) const {
  const std::string end = PrefixEnd(prefix);
  const rocksdb::Slice end_slice(end);
  auto iterator = UserIterator(family, prefix, end_slice);
  rocksdb::Status status;
  for (; iterator->Valid() && status.ok(); iterator->Next()) {
    if (iterator->key().size() > prefix.size()) ++count;
    if (deleted != nullptr) deleted(StdView(iterator->key()), StdView(iterator->value()));
    status = batch.Delete(families[family], iterator->key());
  }
  if (status.ok()) status = iterator->status();
  return StatusOf(status, "find what to delete");
}

RocksDbStore::RocksDbStore(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}
RocksDbStore::~RocksDbStore() = default;

absl::StatusOr<std::unique_ptr<RocksDbStore>> RocksDbStore::Open(
    const std::string& dir, const RocksDbStoreOptions& options) {
  auto rep = std::make_unique<Rep>();
  rep->dir = dir;
  rep->options = options;
  rep->read_only = options.read_only;
  if (absl::Status opened = rep->Open(); !opened.ok()) return opened;
  return std::unique_ptr<RocksDbStore>(new RocksDbStore(std::move(rep)));
}

absl::Status RocksDbStore::Rep::Open() {
  rocksdb::DBOptions db_options = DatabaseOptions(options);
  auto descriptors = ColumnFamilies(options);
  const bool existed = db_options.env->FileExists(dir + "/CURRENT").ok();
  if (!existed && (options.read_only || !options.create_if_missing)) {
    return absl::NotFoundError(absl::StrCat("store ", dir, " does not exist"));
  }
  if (options.create_if_missing && !read_only) {
    (void)db_options.env->CreateDirIfMissing(dir);  // for the log; if this fails, so does opening
  }
  db_options.info_log = NewInfoLog(dir);
  std::vector<std::string> names;
  if (existed && rocksdb::DB::ListColumnFamilies(db_options, dir, &names).ok() &&
      std::find(names.begin(), names.end(), descriptors[kUseFamily].name) == names.end()) {
    descriptors.pop_back();
  }
  rocksdb::Status opened = OpenDatabase(db_options, descriptors);
  if (opened.IsCorruption() && !options.read_only) {
    opened = OpenWithoutZeroTails(db_options, descriptors, opened);
  }
  if (!opened.ok()) return OpenError(opened, dir);
  if (!existed) {
    if (absl::Status s = StatusOf(SyncParent(db_options.env, dir), "sync parent directory");
        !s.ok()) {
      return s;
    }
  }
  if (absl::Status format = CheckFormat(); !format.ok()) return format;
  if (families.size() <= kUseFamily && !read_only) {
    if (absl::Status created = CreateUseFamily(); !created.ok()) return created;
  }
  return OpenUse();
}

absl::StatusOr<std::vector<std::vector<AppendOutcome>>> RocksDbStore::Append(
    std::span<const UserEvents> batch, Durability durability) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  if (absl::Status s = CheckEvents(batch); !s.ok()) return s;

  std::vector<std::string> keys;
  for (const UserEvents& user : batch) {
    for (const Event& event : user.events) {
      AppendEventKey(user.user_id, event, keys.emplace_back());
    }
  }
  const auto fail = [&](const rocksdb::Status& status, std::string_view action) {
    rep_->append_failures.fetch_add(1, std::memory_order_relaxed);
    return StatusOf(status, action);
  };
  std::vector<bool> present;
  if (absl::Status s = rep_->FindPresent(keys, present); !s.ok()) {
    rep_->append_failures.fetch_add(1, std::memory_order_relaxed);
    return s;
  }

  std::vector<std::vector<AppendOutcome>> outcomes;
  outcomes.reserve(batch.size());
  absl::flat_hash_set<absl::string_view> added;
  rocksdb::WriteBatch writes;
  UseChanges counts;
  std::string value;
  size_t i = 0;
  for (const UserEvents& user : batch) {
    std::vector<AppendOutcome>& user_outcomes = outcomes.emplace_back();
    user_outcomes.reserve(user.events.size());
    const auto truncation = rep_->ReadTruncation(user.user_id);
    if (!truncation.ok()) {
      rep_->append_failures.fetch_add(1, std::memory_order_relaxed);
      return truncation.status();
    }
    for (const Event& event : user.events) {
      const std::string& key = keys[i];
      const bool stored = present[i++];
      if (!stored && *truncation &&
          key.substr(UserPrefixBytes(key)) <= (*truncation)->lineage.watermark) {
        user_outcomes.push_back(AppendOutcome::kExpired);
        continue;
      }
      const bool absent = !stored && (keys.size() == 1 || added.insert(View(key)).second);
      user_outcomes.push_back(absent ? AppendOutcome::kAdded : AppendOutcome::kDuplicate);
      if (!absent) continue;
      value.clear();
      AppendEventValue(key, event, value);
      if (rocksdb::Status s = writes.Put(rep_->families[kEventsFamily], key, value); !s.ok()) {
        return fail(s, "collect events");
      }
      counts.Add(event, 1);
    }
  }
  if (keys.empty()) return outcomes;

  rocksdb::Status written;
  if (writes.Count() > 0) {
    // A synced write syncs every log that is not synced yet, so the copies that made some events
    // of this call duplicates are durable too.
    rocksdb::WriteOptions write;
    write.sync = durability == Durability::kSynced;
    written = rep_->WriteCounted(write, counts, writes);
  } else if (durability == Durability::kSynced) {
    written = rep_->db->SyncWAL();
  }
  if (!written.ok()) return fail(written, "append events");
  return outcomes;
}

absl::Status RocksDbStore::Read(std::string_view user_id, const Visitor& visitor) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  if (absl::Status id = CheckId("user_id", user_id); !id.ok()) return id;
  const std::string start = UserPrefix(user_id);
  const std::string end = PrefixEnd(start);
  const rocksdb::Slice end_slice(end);
  auto iterator = rep_->UserIterator(kEventsFamily, start, end_slice);
  // Events are visited as their keys come, late ones wait for the place where they are folded,
  // which is always further on.
  std::multimap<FoldPlace, std::pair<Position, Event>> late;
  const auto visit_late = [&](std::string_view before) {
    while (!late.empty() && (before.empty() || late.begin()->first.position < before)) {
      const auto [position, event] = std::move(late.extract(late.begin()).mapped());
      if (!visitor(position, event)) return false;
    }
    return true;
  };
  Event event;
  std::string_view position;
  for (; iterator->Valid(); iterator->Next()) {
    const std::string_view key = StdView(iterator->key());
    if (key.size() == start.size() && rep_->truncated) continue;  // the truncation
    if (!DecodeEvent(key, StdView(iterator->value()), event, position)) {
      return absl::DataLossError(
          absl::StrCat("user ", Quoted(user_id), ": the stored event with key ",
                       absl::BytesToHexString(View(key)),
                       " fails its checksum: restore a backup, or delete the user"));
    }
    if (event.late.rank > 0) {
      late.emplace(event.late, std::pair(Position(position), event));
    } else if (!visit_late(position) || !visitor(position, event)) {
      return absl::OkStatus();
    }
  }
  if (!iterator->status().ok()) {
    return StatusOf(iterator->status(), absl::StrCat("read the events of user ", Quoted(user_id)));
  }
  visit_late("");
  return absl::OkStatus();
}

absl::Status RocksDbStore::ForEachUser(std::string_view after,
                                       const std::function<bool(std::string_view)>& visitor) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  rocksdb::ReadOptions read;
  read.total_order_seek = true;
  std::unique_ptr<rocksdb::Iterator> iterator(
      rep_->db->NewIterator(read, rep_->families[kEventsFamily]));
  if (after.empty()) {
    iterator->SeekToFirst();
  } else {
    iterator->Seek(PrefixEnd(UserPrefix(after)));
  }
  while (iterator->Valid()) {
    const std::optional<std::string_view> user_id = UserOfKey(StdView(iterator->key()));
    if (!user_id) {
      return absl::DataLossError(absl::StrCat(
          "malformed event key ", absl::BytesToHexString(absl::string_view(
                                      iterator->key().data(), iterator->key().size()))));
    }
    const std::string end = PrefixEnd(UserPrefix(*user_id));
    if (!visitor(*user_id)) return absl::OkStatus();
    iterator->Seek(end);
  }
  return StatusOf(iterator->status(), "list users");
}

absl::Status RocksDbStore::ForEachState(
    const std::function<bool(const StoredState&)>& visitor) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  rocksdb::ReadOptions read;
  read.total_order_seek = true;
  std::unique_ptr<rocksdb::Iterator> iterator(
      rep_->db->NewIterator(read, rep_->families[kStatesFamily]));
  StateRecord record;
  for (iterator->SeekToFirst(); iterator->Valid(); iterator->Next()) {
    const std::string_view key = StdView(iterator->key());
    const std::string key_hex = absl::BytesToHexString(View(key));
    StoredState state;
    state.key_hex = key_hex;
    if (!FingerprintOfKey(key).empty()) {
      state.user_id = *UserOfKey(key);
      state.fingerprint =
          std::string_view(key_hex).substr(2 * UserPrefixBytes(key), kFingerprintDigits);
      state.base = IsBaseKey(key);
    }
    if (DecodeState(key, StdView(iterator->value()), record)) state.record = &record;
    if (!visitor(state)) return absl::OkStatus();
  }
  return StatusOf(iterator->status(), "list states");
}

absl::StatusOr<std::optional<StateRecord>> RocksDbStore::Get(std::string_view user_id,
                                                             std::string_view fingerprint) const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return use.status;
  if (absl::Status s = CheckStateKey(user_id, fingerprint); !s.ok()) return s;
  const std::string key = StateKey(user_id, fingerprint);
  rocksdb::PinnableSlice value;
  const rocksdb::Status found = rep_->db->Get({}, rep_->families[kStatesFamily], key, &value);
  if (found.IsNotFound()) return std::nullopt;
  if (!found.ok() && !found.IsCorruption()) {
    return StatusOf(found, absl::StrCat("read the state of user ", Quoted(user_id)));
  }
  StateRecord record;
  if (!found.ok() || !DecodeState(key, StdView(value), record)) {
    rep_->corrupt_states.fetch_add(1, std::memory_order_relaxed);
    return std::nullopt;
  }
  return record;
}

absl::Status RocksDbStore::Put(std::span<const UserState> states) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  rocksdb::WriteBatch writes;
  std::string value;
  for (const UserState& state : states) {
    if (absl::Status s = CheckStateKey(state.user_id, state.fingerprint); !s.ok()) return s;
    const std::string key = StateKey(state.user_id, state.fingerprint);
    value.clear();
    AppendStateValue(key, *state.record, value);
    if (rocksdb::Status s = writes.Put(rep_->families[kStatesFamily], key, value); !s.ok()) {
      return StatusOf(s, "collect states");
    }
  }
  rocksdb::WriteOptions write;
  write.disableWAL = true;  // the event log rebuilds what a crash takes
  return StatusOf(rep_->db->Write(write, &writes), "write states");
}

absl::Status RocksDbStore::Flush() {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  return StatusOf(rep_->db->Flush({}, rep_->families[kStatesFamily]), "flush states");
}

// By users, since finding the states by reading through them would read them all.
absl::Status RocksDbStore::DeleteStates(std::string_view fingerprint) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  constexpr int kGroup = 1024;
  rocksdb::WriteOptions write;
  write.disableWAL = true;
  rocksdb::WriteBatch writes;
  absl::Status status;
  const auto flush = [&] {
    status = StatusOf(rep_->db->Write(write, &writes), "delete states");
    writes.Clear();
    return status.ok();
  };
  const absl::Status listed = ForEachUser("", [&](std::string_view user_id) {
    status = CheckStateKey(user_id, fingerprint);
    if (!status.ok()) return false;
    rocksdb::ColumnFamilyHandle* family = rep_->families[kStatesFamily];
    rocksdb::Status collected = writes.Delete(family, StateKey(user_id, fingerprint));
    if (collected.ok() && rep_->truncated) {
      collected = writes.Delete(family, BaseKey(user_id, fingerprint));
    }
    status = StatusOf(collected, "collect states to delete");
    return status.ok() && (writes.Count() < kGroup || flush());
  });
  if (status.ok()) status = listed;
  if (!status.ok() || !flush()) return status;
  return Flush();
}

absl::StatusOr<DeletedUser> RocksDbStore::DeleteUser(std::string_view user_id) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  if (absl::Status id = CheckId("user_id", user_id); !id.ok()) return id;
  const std::string prefix = UserPrefix(user_id);
  rocksdb::WriteBatch writes;
  DeletedUser deleted;
  UseChanges counts;
  std::deque<Event> events;  // a damaged one stays counted: nobody knows its item
  absl::Status found =
      rep_->DeletePrefix(kEventsFamily, prefix, writes, deleted.events,
                         [&](std::string_view key, std::string_view value) {
                           std::string_view position;
                           if (!DecodeEvent(key, value, events.emplace_back(), position))
                             return events.pop_back();
                           counts.Add(events.back(), -1);
                         });
  found.Update(rep_->DeletePrefix(kStatesFamily, prefix, writes, deleted.states));
  if (!found.ok()) return found;
  // Through the log, unlike the states' own writes: replayed after a crash, the deletion covers
  // whatever of the states had reached the disk before it.
  rocksdb::WriteOptions write;
  write.sync = true;
  if (absl::Status s = StatusOf(rep_->WriteCounted(write, counts, writes), "delete user");
      !s.ok()) {
    return s;
  }
  return deleted;
}

absl::StatusOr<Backup> RocksDbStore::CreateBackup(const std::string& dir) {
  const Rep::Use use = rep_->Writing();
  if (!use.status.ok()) return use.status;
  rocksdb::Env* env = rep_->db->GetEnv();
  if (env->FileExists(dir).ok()) {
    return absl::AlreadyExistsError(absl::StrCat("backup ", dir, " exists: name a new directory"));
  }
  rocksdb::Checkpoint* opened = nullptr;
  rocksdb::Status status = rocksdb::Checkpoint::Create(rep_->db.get(), &opened);
  const std::unique_ptr<rocksdb::Checkpoint> checkpoint(opened);
  // Flushes first, which takes in the states, and copies the log of what comes meanwhile.
  if (status.ok()) status = checkpoint->CreateCheckpoint(dir);
  if (status.ok()) status = SyncParent(env, dir);
  std::vector<rocksdb::Env::FileAttributes> files;
  if (status.ok()) status = env->GetChildrenFileAttributes(dir, &files);
  if (!status.ok()) return StatusOf(status, absl::StrCat("create backup ", dir));
  Backup backup;
  for (const rocksdb::Env::FileAttributes& file : files) {
    if (file.name == "." || file.name == "..") continue;
    ++backup.files;
    backup.bytes += file.size_bytes;
  }
  return backup;
}

absl::Status RocksDbStore::Rep::WriteProbe() {
  uint64_t stopped = 0;
  if (db->GetIntProperty("rocksdb.is-write-stopped", &stopped) && stopped != 0) {
    return absl::UnavailableError(kWritesStopped);
  }
  rocksdb::WriteOptions write;
  write.sync = true;
  const auto probe = [&] { return db->Put(write, families[kMetaFamily], kProbeKey, ""); };
  rocksdb::Status status = probe();
  // RocksDB refuses all writes after a failed one until told that the cause may be gone.
  if (!status.ok() && db->Resume().ok()) status = probe();
  return StatusOf(status, "write a probe");
}

absl::Status RocksDbStore::CheckWritable() {
  absl::Status probed;
  {
    const Rep::Use use = rep_->Writing();
    if (absl::IsFailedPrecondition(use.status)) return use.status;
    probed = use.status.ok() ? rep_->WriteProbe() : use.status;
    // Ends by itself if nothing has failed; opening anew would lose the states not flushed.
    uint64_t errors = 0;
    if (IsWait(probed) && rep_->db->GetIntProperty("rocksdb.background-errors", &errors) &&
        errors == 0) {
      return probed;
    }
  }
  return probed.ok() ? probed : rep_->OpenAnew(probed);
}

bool RocksDbStore::IsWait(const absl::Status& status) { return status.message() == kWritesStopped; }

uint64_t RocksDbStore::generation() const { return rep_->generation.load(); }

StoreStats RocksDbStore::stats() const {
  return {.corrupt_states = rep_->corrupt_states.load(std::memory_order_relaxed),
          .corrupt_bases = rep_->corrupt_bases.load(std::memory_order_relaxed),
          .recounts = rep_->recounts.load(std::memory_order_relaxed),
          .append_failures = rep_->append_failures.load(std::memory_order_relaxed)};
}

StoreSizes RocksDbStore::sizes() const {
  const Rep::Use use = rep_->Reading();
  if (!use.status.ok()) return {};
  using Properties = rocksdb::DB::Properties;
  const auto of_all = [&](const std::string& property) {
    uint64_t value = 0;
    rep_->db->GetAggregatedIntProperty(property, &value);
    return value;
  };
  // Of what all families share: the cache, and the control of writes.
  const auto of_one = [&](const std::string& property) {
    uint64_t value = 0;
    rep_->db->GetIntProperty(rep_->families[kEventsFamily], property, &value);
    return value;
  };
  return {.table_bytes = of_all(Properties::kTotalSstFilesSize),
          .memtable_bytes = of_all(Properties::kCurSizeAllMemTables),
          .cache_bytes = of_one(Properties::kBlockCacheUsage),
          .pending_compaction_bytes = of_all(Properties::kEstimatePendingCompactionBytes),
          .writes_slowed = of_one(Properties::kIsWriteStopped) != 0 ||
                           of_one(Properties::kActualDelayedWriteRate) != 0};
}

}  // namespace tim4rec
