// Events into our log against RocksDB putting a state per event, at the same sync policy.
//
//   store_ratios [ROUNDS] [STATE BYTES] [BATCH]     default 7, 37824 (D=64), 256
//
// Both get one event for each of BATCH users per write; legs alternate A B B A. The peer's writes
// go through its log, as they must to survive what ours do.
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

constexpr size_t kUsers = 10'000;

using Clock = std::chrono::steady_clock;

std::string UserName(uint64_t n) { return absl::StrCat("user", n % kUsers); }

double OurSeconds(RocksDbStore& store, Durability durability, size_t events_per_write, int batches,
                  uint64_t* next) {
  std::vector<std::string> users(events_per_write);
  std::vector<Event> events(events_per_write);
  std::vector<UserEvents> batch(events_per_write);
  const auto start = Clock::now();
  for (int b = 0; b < batches; ++b) {
    for (size_t i = 0; i < events_per_write; ++i, ++*next) {
      users[i] = UserName(*next);
      events[i] = {absl::StrCat("item", *next % 5000), static_cast<int64_t>(*next), ""};
      batch[i] = {users[i], {&events[i], 1}};
    }
    if (!store.Append(batch, durability).ok()) std::abort();
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double PeerSeconds(rocksdb::DB& db, bool sync, size_t events_per_write, int batches,
                   std::string* state, uint64_t* next) {
  rocksdb::WriteOptions write;
  write.sync = sync;
  const auto start = Clock::now();
  for (int b = 0; b < batches; ++b) {
    rocksdb::WriteBatch batch;
    for (size_t i = 0; i < events_per_write; ++i, ++*next) {
      (*state)[*next % state->size()] ^= 1;
      if (!batch.Put(UserName(*next), *state).ok()) std::abort();
    }
    if (!db.Write(write, &batch).ok()) std::abort();
  }
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Compare(const std::string& dir, bool sync, int rounds, size_t state_bytes, size_t batch) {
  auto ours = RocksDbStore::Open(absl::StrCat(dir, "/ours", sync));
  rocksdb::Options options;
  options.create_if_missing = true;
  options.compression = rocksdb::kNoCompression;
  rocksdb::DB* opened = nullptr;
  if (!ours.ok() || !rocksdb::DB::Open(options, absl::StrCat(dir, "/peer", sync), &opened).ok()) {
    std::fprintf(stderr, "store_ratios: a database does not open\n");
    return 1;
  }
  const std::unique_ptr<rocksdb::DB> peer(opened);
  std::mt19937_64 random(1);
  std::string state(state_bytes, '\0');
  for (char& byte : state) byte = static_cast<char>(random());
  const int our_batches = static_cast<int>(std::max<size_t>(1, 40'960 / batch));
  const int peer_batches = static_cast<int>(std::max<size_t>(1, 2048 / batch));
  uint64_t our_next = 0, peer_next = 0;
  std::vector<double> our_rates, peer_rates, ratios;
  const Durability durability = sync ? Durability::kSynced : Durability::kBuffered;
  for (int round = 0; round < rounds; ++round) {
    double our_seconds = 0, peer_seconds = 0;
    for (const bool first : {true, false}) {
      const bool ours_now = first == (round % 2 == 0);
      for (const bool us : {ours_now, !ours_now}) {
        if (us) {
          our_seconds += OurSeconds(**ours, durability, batch, our_batches, &our_next);
        } else {
          peer_seconds += PeerSeconds(*peer, sync, batch, peer_batches, &state, &peer_next);
        }
      }
    }
    our_rates.push_back(2.0 * our_batches * static_cast<double>(batch) / our_seconds);
    peer_rates.push_back(2.0 * peer_batches * static_cast<double>(batch) / peer_seconds);
    ratios.push_back(our_rates.back() / peer_rates.back());
  }
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  std::printf("%-8s events/s: ours %.0f, a state put per event %.0f; ratio %.1f (%.1f to %.1f)\n",
              sync ? "synced" : "buffered", Median(our_rates), Median(peer_rates), Median(ratios),
              *least, *most);
  return 0;
}

int Main(int rounds, size_t state_bytes, size_t batch) {
  std::string dir = (std::filesystem::temp_directory_path() / "store_ratios_XXXXXX").string();
  if (mkdtemp(dir.data()) == nullptr) return 1;
  int failed = 0;
  for (const bool sync : {false, true}) failed |= Compare(dir, sync, rounds, state_bytes, batch);
  std::filesystem::remove_all(dir);
  return failed;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) {
  const auto argument = [&](int i, size_t otherwise) {
    return argc > i ? std::max<size_t>(1, std::strtoull(argv[i], nullptr, 10)) : otherwise;
  };
  return tim4rec::Main(static_cast<int>(argument(1, 7)), argument(2, 37'824), argument(3, 256));
}
