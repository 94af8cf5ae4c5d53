// Writes a small store with one of everything that the format has, and beside it what is in it as
// text. Run once per format version that is released; what it wrote then is never written again:
//   build/release/bin/write_frozen_store tests/store/testdata/format3
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/backends/builtin.h"
#include "model/engine/state_check.h"
#include "store/rocksdb_store.h"
#include "tests/model/tiny_model.h"
#include "tests/store/store_dump.h"

namespace tim4rec {
namespace {

// A state of 300 to 400 bytes: recurrent, or (published with time) a window.
ModelConfig SmallConfig(bool window) {
  ModelConfig config;
  config.n_items = 10;
  config.hidden_size = 4;
  config.num_layers = 1;
  config.d_state = 4;
  config.d_conv = 2;
  config.head_dim = 4;
  config.time_hidden = 2;
  if (!window) return config;
  config.variant = Variant::kPublished;
  config.time_write = config.time_decay = config.time_query = false;
  config.is_time = true;
  config.max_item_list_length = 5;
  return config;
}

std::vector<UserEvents> Batch(const std::string& user, const std::vector<Event>& events) {
  return {{user, events}};
}

absl::Status Append(RocksDbStore* store, const std::string& user,
                    const std::vector<Event>& events) {
  return store->Append(Batch(user, events), Durability::kSynced).status();
}

// The state of the user's events so far.
absl::Status PutState(RocksDbStore* store, const std::string& user, bool window, bool truncated) {
  auto package = ModelPackage::FromContents(MakeTinyModel(SmallConfig(window), 1));
  if (!package.ok()) return package.status();
  auto engine = Engine::Create(*std::move(package), BuiltinBackends(), "cpu");
  if (!engine.ok()) return engine.status();
  StateRecord record;
  std::vector<FoldEvent> fold;
  absl::Status read = store->Read(user, [&](std::string_view position, const Event& event) {
    record.lineage.Extend(position, event.item_id);
    const auto item = (*engine)->catalog().Find(event.item_id);
    if (item) fold.push_back({*item, FoldTimeMs(event)});
    return true;
  });
  if (!read.ok()) return read;
  record.lineage.log_truncated = truncated;
  auto payload = FoldFromZero(**engine, fold);
  if (!payload.ok()) return payload.status();
  record.payload = *std::move(payload);
  const UserState put[] = {{user, (*engine)->fingerprint(), &record}};
  return store->Put(put);
}

// Removes the first events of the user, and keeps a base that a truncated log goes on from.
absl::Status Truncate(RocksDbStore* store, const std::string& user, size_t count) {
  auto package = ModelPackage::FromContents(MakeTinyModel(SmallConfig(false), 1));
  if (!package.ok()) return package.status();
  auto engine = Engine::Create(*std::move(package), BuiltinBackends(), "cpu");
  if (!engine.ok()) return engine.status();
  Truncation truncation;
  std::vector<Position> removed;
  std::vector<FoldEvent> fold;
  absl::Status read = store->Read(user, [&](std::string_view position, const Event& event) {
    truncation.lineage.Extend(position, event.item_id);
    truncation.last_event_ms = FoldTimeMs(event);
    removed.emplace_back(position);
    const auto item = (*engine)->catalog().Find(event.item_id);
    if (item) fold.push_back({*item, FoldTimeMs(event)});
    return removed.size() < count;
  });
  if (!read.ok()) return read;
  truncation.lineage.log_truncated = true;
  auto payload = FoldFromZero(**engine, fold);
  if (!payload.ok()) return payload.status();
  StateRecord base;
  base.lineage = truncation.lineage;
  base.payload = *std::move(payload);
  const UserState bases[] = {{user, (*engine)->fingerprint(), &base}};
  const UserTruncation users[] = {{user, truncation, removed, bases}};
  return store->Truncate(users);
}

absl::Status WriteTables(RocksDbStore* store) {
  absl::Status status;
  const Event last = {"item2", 1'700'000'000'000, ""};
  const std::string long_id(256, 'u');
  status.Update(Append(store, "alice", {{"item1", -1, "e7"}, last}));
  status.Update(Append(store, "alice",
                       {{"item3", 1'699'999'999'999, "", {PositionOf(last), 1}},
                        {"item4", 5, "late", {PositionOf(last), 2}}}));
  status.Update(Append(store, long_id,
                       {{std::string(256, 'i'), std::numeric_limits<int64_t>::min(), ""},
                        {"item5", std::numeric_limits<int64_t>::max(), std::string(256, 'e')}}));
  status.Update(Append(store, "\xe2\x98\x83", {{"item1", 1, ""}, {"\xf0\x9f\x8e\xac", 1, ""}}));
  status.Update(PutState(store, "alice", false, false));
  status.Update(PutState(store, "alice", true, false));
  status.Update(PutState(store, "\xe2\x98\x83", true, true));
  const Event newest = {"item3", 30, ""};
  status.Update(Append(store, "carol", {{"item1", 10, ""}, {"item2", 20, "e"}, newest}));
  status.Update(Append(store, "carol", {{"item4", 5, "late", {PositionOf(newest), 1}}}));
  status.Update(Append(store, "dave", {{"item1", 10, ""}, {"item2", 20, ""}}));
  status.Update(Truncate(store, "carol", 2));
  constexpr int64_t kDay = 86'400'000, kToday = 1'700'000'000'000;
  const Event use = {"item1", kToday, ""};
  status.Update(Append(store, "erin",
                       {{"item1", kToday - 181 * kDay, ""},
                        {"item1", kToday - 180 * kDay, ""},
                        {"item2", kToday - 3 * kDay, "e"},
                        {"item2", kToday - 3 * kDay, "f"},
                        use,
                        {"item4", kToday - 2 * kDay, "late", {PositionOf(use), 1}},
                        {"\xf0\x9f\x8e\xac", kToday - 1, ""}}));
  status.Update(Append(store, "frank", {{"item5", kToday, ""}, {"item2", kToday, ""}}));
  status.Update(Append(store, "grace", {{"item5", kToday - 1, ""}, {"item2", kToday, ""}}));
  status.Update(Truncate(store, "grace", 1));
  if (status.ok()) status.Update(store->DeleteUser("frank").status());
  status.Update(store->CheckWritable());
  return status;
}

absl::Status Write(const std::string& dir) {
  const std::string store_dir = dir + "/store";
  for (const bool tables : {true, false}) {
    auto store = RocksDbStore::Open(store_dir);
    if (!store.ok()) return store.status();
    // What is written after the second opening stays in the log.
    absl::Status written = tables
                               ? WriteTables(store->get())
                               : Append(store->get(), "bob", {{"item1", 7, ""}, {"item2", 8, "x"}});
    if (!tables && written.ok()) written = Truncate(store->get(), "dave", 2);
    if (!written.ok()) return written;
    if (tables) continue;
    const auto text = DumpStore(**store);
    if (!text.ok()) return text.status();
    std::ofstream(dir + "/expected.txt") << *text;
    const auto use = DumpUse(**store);
    if (!use.ok()) return use.status();
    std::ofstream(dir + "/expected_use.txt") << *use;
  }
  // None of these is part of the format.
  for (const auto& file : std::filesystem::directory_iterator(store_dir)) {
    const std::string name = file.path().filename().string();
    if (name.starts_with("LOG") || name.starts_with("OPTIONS") || name == "LOCK") {
      std::filesystem::remove(file.path());
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) {
  if (argc != 2 || std::filesystem::exists(argv[1])) {
    std::fprintf(stderr, "usage: write_frozen_store DIR    (which does not exist)\n");
    return 2;
  }
  std::filesystem::create_directories(argv[1]);
  const absl::Status written = tim4rec::Write(argv[1]);
  if (written.ok()) return 0;
  std::fprintf(stderr, "write_frozen_store: %s\n", std::string(written.message()).c_str());
  return 1;
}
