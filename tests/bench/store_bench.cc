// Speed of the store: appends of new events in batches of 256, states of 37,824 bytes.
//
//   store_bench --benchmark_repetitions=7 --benchmark_report_aggregates_only=true
#include <benchmark/benchmark.h>

#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

constexpr int kBatch = 256;
constexpr size_t kPayloadBytes = 37'824;
constexpr char kFingerprint[] = "00112233445566778899aabbccddeeff";

class BenchStore {
 public:
  BenchStore() {
    std::string pattern = (std::filesystem::temp_directory_path() / "store_bench_XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    auto store = RocksDbStore::Open(dir_ + "/store");
    if (store.ok()) store_ = *std::move(store);
  }
  ~BenchStore() {
    store_.reset();
    std::filesystem::remove_all(dir_);
  }
  RocksDbStore* get() { return store_.get(); }

 private:
  std::string dir_;
  std::unique_ptr<RocksDbStore> store_;
};

// One new event for each of 256 users, times rising.
void BM_Append(benchmark::State& state, Durability durability) {
  BenchStore store;
  if (store.get() == nullptr) {
    state.SkipWithError("the store does not open");
    return;
  }
  std::vector<std::string> users;
  for (int i = 0; i < 10'000; ++i) users.push_back(absl::StrCat("user", i));
  std::vector<Event> events(kBatch);
  std::vector<UserEvents> batch(kBatch);
  uint64_t next = 0;
  for (auto _ : state) {
    for (size_t i = 0; i < kBatch; ++i, ++next) {
      events[i] = {absl::StrCat("item", next % 5000), static_cast<int64_t>(next), ""};
      batch[i] = {users[next % users.size()], {&events[i], 1}};
    }
    const auto outcomes = store.get()->Append(batch, durability);
    if (!outcomes.ok()) state.SkipWithError(outcomes.status().ToString().c_str());
  }
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK_CAPTURE(BM_Append, buffered, Durability::kBuffered)->UseRealTime();
BENCHMARK_CAPTURE(BM_Append, synced, Durability::kSynced)->UseRealTime();

StateRecord RandomState() {
  std::mt19937_64 random(1);
  StateRecord record;
  record.payload.resize(kPayloadBytes);
  for (char& byte : record.payload) byte = static_cast<char>(random());
  record.lineage.Extend(PositionOf({"item", 1, ""}), "item");
  return record;
}

// Groups of 16 states over 4096 users.
void BM_PutState(benchmark::State& state) {
  BenchStore store;
  const StateRecord record = RandomState();
  std::vector<std::string> users;
  for (int i = 0; i < 4096; ++i) users.push_back(absl::StrCat("user", i));
  size_t next = 0;
  std::vector<UserState> group(16);
  for (auto _ : state) {
    for (UserState& put : group) put = {users[next++ % users.size()], kFingerprint, &record};
    if (!store.get()->Put(group).ok()) state.SkipWithError("put failed");
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(group.size()));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(group.size()) *
                          static_cast<int64_t>(kPayloadBytes));
}
BENCHMARK(BM_PutState)->UseRealTime();

// Flushed to disk, then read at random; the block cache holds them.
void BM_GetState(benchmark::State& state) {
  BenchStore store;
  const StateRecord record = RandomState();
  std::vector<std::string> users;
  for (int i = 0; i < 2048; ++i) {
    users.push_back(absl::StrCat("user", i));
    const UserState put[] = {{users.back(), kFingerprint, &record}};
    if (!store.get()->Put(put).ok()) state.SkipWithError("put failed");
  }
  if (!store.get()->Flush().ok()) state.SkipWithError("flush failed");
  std::mt19937_64 random(2);
  for (auto _ : state) {
    auto got = store.get()->Get(users[random() % users.size()], kFingerprint);
    if (!got.ok() || !got->has_value()) state.SkipWithError("a state is missing");
    benchmark::DoNotOptimize(got);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_GetState)->UseRealTime();

// A user's log of 200 events.
void BM_ReadEvents(benchmark::State& state) {
  BenchStore store;
  std::vector<Event> events;
  for (int i = 0; i < 200; ++i) events.push_back({absl::StrCat("item", i), i, ""});
  std::vector<std::string> users;
  for (int i = 0; i < 500; ++i) {
    users.push_back(absl::StrCat("user", i));
    const UserEvents batch[] = {{users.back(), events}};
    if (!store.get()->Append(batch, Durability::kBuffered).ok()) state.SkipWithError("append");
  }
  size_t next = 0;
  int64_t visited = 0;
  for (auto _ : state) {
    const auto visit = [&](std::string_view, const Event&) { return ++visited != 0; };
    if (!store.get()->Read(users[next++ % users.size()], visit).ok()) {
      state.SkipWithError("read failed");
    }
  }
  state.SetItemsProcessed(visited);
}
BENCHMARK(BM_ReadEvents)->UseRealTime();

}  // namespace
}  // namespace tim4rec

BENCHMARK_MAIN();
