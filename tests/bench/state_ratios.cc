// A user's state out of memory against a cached Get of RocksDB, and checkpoints and restores.
//
//   state_ratios [ROUNDS] [USERS]     default 7, 2048: all of whose states of D=64 fit the caches
//
// The users are resident in the production engine (cpu) over our store; a RocksDB of its own holds
// the same bytes under the same ids, flushed, its blocks cached. Legs alternate A B B A over the
// users in random order. Thread time, but wall time for what writes.
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/backends/builtin.h"
#include "server/pipeline/history.h"
#include "server/pipeline/residents.h"
#include "store/rocksdb_store.h"
#include "tests/bench/ceilings.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

constexpr int kItems = 3400;
constexpr int64_t kEventsPerUser = 20;
constexpr int64_t kCacheBytes = 512 << 20;
constexpr int64_t kGroup = 8;
constexpr int64_t kNowMs = 1'700'000'000'000;

void Must(bool done, const char* what) {
  if (done) return;
  std::fprintf(stderr, "state_ratios: %s failed\n", what);
  std::exit(1);
}

ModelHandle MakeModel() {
  ModelConfig config;
  config.n_items = kItems + 1;
  config.hidden_size = 64;
  auto model = std::make_shared<LoadedModel>();
  auto package = ModelPackage::FromContents(MakeTinyModel(config, 1));
  Must(package.ok(), "the model");
  model->package = *std::move(package);
  model->version = absl::StrCat("m@", model->package->fingerprint());
  auto engine = Engine::Create(model->package, BuiltinBackends(), "cpu");
  Must(engine.ok(), "the engine");
  model->engine = *std::move(engine);
  return model;
}

std::unique_ptr<rocksdb::DB> OpenPeer(const std::string& dir) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kCacheBytes);
  rocksdb::Options options;
  options.create_if_missing = true;
  options.compression = rocksdb::kNoCompression;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  rocksdb::DB* opened = nullptr;
  Must(rocksdb::DB::Open(options, dir, &opened).ok(), "opening the peer");
  return std::unique_ptr<rocksdb::DB>(opened);
}

class Bench {
 public:
  Bench(const std::string& dir, int rounds, size_t users)
      : rounds_(rounds),
        model_(MakeModel()),
        backend_(model_->engine->backend()),
        store_(OpenStore(dir + "/ours")),
        peer_(OpenPeer(dir + "/peer")),
        residents_({store_.get(), &metrics_}, static_cast<int64_t>(users), kGroup),
        record_(backend_.state_bytes(), '\0'),
        query_(model_->engine->config().hidden_size) {
    for (size_t u = 0; u < users; ++u) users_.push_back(absl::StrCat("user", u));
    for (const std::string& user : users_) MakeResident(user);
    spare_ = *backend_.Allocate();
    Checkpoint();
    Must(store_->Flush().ok() && peer_->Flush({}).ok(), "flush");
  }

  int Main() {
    std::printf("%zu users, states of %zu bytes\n", users_.size(), record_.size());
    // The first pass over both fills the caches.
    const auto cached = [&](const std::string& user) { Must(Pinned(user).size() > 0, "Get"); };
    const auto copied = [&](const std::string& user) { Must(GetCopy(user), "Get"); };
    const auto hot = [&](const std::string& user) { Must(Use(user) >= 0, "Use"); };
    ForAll(cached);
    ForAll([&](const std::string& user) { Restore(user); });
    Compare("fetch: resident's slot / Get into a PinnableSlice", hot, cached);
    Compare("fetch: resident's slot / Get into a string", hot, copied);
    Compare(
        "fetch and copy out: slot and Export / Get into a string",
        [&](const std::string& user) { Export(Use(user)); }, copied);
    Compare(
        "Query: of the slot / Get (pinned), Import, Query",
        [&](const std::string& user) { Query(Use(user)); },
        [&](const std::string& user) {
          rocksdb::PinnableSlice bytes = Pinned(user);
          Must(backend_.Import(spare_, std::as_bytes(std::span(bytes.data(), bytes.size()))).ok(),
               "Import");
          Query(spare_);
        });
    Compare(
        "restore: our Get and Import / Get into a string",
        [&](const std::string& user) { Restore(user); }, copied);
    CompareWrites();
    return 0;
  }

 private:
  static std::unique_ptr<RocksDbStore> OpenStore(const std::string& dir) {
    RocksDbStoreOptions options;
    options.block_cache_bytes = kCacheBytes;
    auto store = RocksDbStore::Open(dir, options);
    Must(store.ok(), "opening the store");
    return *std::move(store);
  }

  void MakeResident(const std::string& user) {
    std::vector<Event> events;
    for (int64_t i = 0; i < kEventsPerUser; ++i) {
      events.push_back({absl::StrCat("item", 1 + random_() % kItems),
                        kNowMs - (kEventsPerUser - i) * 60'000, ""});
    }
    const UserEvents batch[] = {{user, events}};
    Must(store_->Append(batch, Durability::kBuffered).ok(), "Append");
    auto history = ReadHistory(*store_, *store_, *model_, {.user_id = user});
    Must(history.ok(), "ReadHistory");
    residents_.BeginBatch();
    const auto loaded = residents_.Load(model_, user, *std::move(history), nullptr);
    Must(loaded.ok(), "Load");
    const Run runs[] = {{loaded->resident->slot, loaded->resident->pending}};
    Must(backend_.Advance(runs).ok(), "Advance");
    residents_.Folded(loaded->resident);
    Export(loaded->resident->slot);
    Must(peer_->Put({}, user, record_).ok(), "Put");
  }

  Slot Use(const std::string& user) { return residents_.Use(*model_, user)->slot; }

  void Export(Slot slot) {
    Must(backend_.Export(slot, std::as_writable_bytes(std::span(record_))).ok(), "Export");
  }

  void Query(Slot slot) {
    const QueryRequest requests[] = {{slot, kNowMs}};
    Must(backend_.Query(requests, std::span(query_)).ok(), "Query");
  }

  rocksdb::PinnableSlice Pinned(const std::string& user) {
    rocksdb::PinnableSlice bytes;
    Must(peer_->Get({}, peer_->DefaultColumnFamily(), user, &bytes).ok(), "Get");
    return bytes;
  }

  bool GetCopy(const std::string& user) {
    return peer_->Get({}, user, &record_).ok() &&
           record_.size() == static_cast<size_t>(backend_.state_bytes());
  }

  void Restore(const std::string& user) {
    const auto stored = store_->Get(user, model_->fingerprint());
    Must(stored.ok() && stored->has_value(), "our Get");
    Must(backend_.Import(spare_, std::as_bytes(std::span((*stored)->payload))).ok(), "Import");
  }

  void Checkpoint() {
    while (residents_.dirty_count() > 0) Must(residents_.CheckpointSome().ok(), "checkpoint");
  }

  void ForAll(const std::function<void(const std::string&)>& act) {
    std::vector<size_t> order(users_.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (const size_t user : order) act(users_[user]);
  }

  static double WallSeconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  using Leg = std::function<void()>;

  // Prints what one state costs in either leg of all users, and the peer's over ours.
  void Alternate(const char* name, double (*now)(), const Leg& ours, const Leg& peer) {
    std::vector<double> our_us, peer_us, ratios;
    for (int round = 0; round < rounds_; ++round) {
      double seconds[2] = {0, 0};
      const int first = round % 2;
      for (const int leg : {first, 1 - first, 1 - first, first}) {
        const double start = now();
        (leg == 0 ? ours : peer)();
        seconds[leg] += now() - start;
      }
      const double per_state = 1e6 / (2.0 * static_cast<double>(users_.size()));
      our_us.push_back(seconds[0] * per_state);
      peer_us.push_back(seconds[1] * per_state);
      ratios.push_back(seconds[1] / seconds[0]);
    }
    std::sort(ratios.begin(), ratios.end());
    std::sort(our_us.begin(), our_us.end());
    std::sort(peer_us.begin(), peer_us.end());
    std::printf("%-58s %8.3f / %8.3f us per state; ratio %.2f (%.2f to %.2f)\n", name,
                our_us[our_us.size() / 2], peer_us[peer_us.size() / 2], ratios[ratios.size() / 2],
                ratios.front(), ratios.back());
    std::fflush(stdout);
  }

  void Compare(const char* name, const std::function<void(const std::string&)>& ours,
               const std::function<void(const std::string&)>& peer) {
    Alternate(
        name, ThreadSeconds, [&] { ForAll(ours); }, [&] { ForAll(peer); });
  }

  void CompareWrites() {
    Alternate(
        "checkpoint: groups of 8 / a Put each", WallSeconds,
        [&] {
          ForAll(
              [&](const std::string& user) { residents_.Changed(residents_.Use(*model_, user)); });
          Checkpoint();
        },
        [&] {
          ForAll([&](const std::string& user) {
            Export(Use(user));
            Must(peer_->Put({}, user, record_).ok(), "Put");
          });
        });
  }

  const int rounds_;
  std::mt19937_64 random_{1};
  Metrics metrics_;
  const ModelHandle model_;
  Backend& backend_;
  const std::unique_ptr<RocksDbStore> store_;
  const std::unique_ptr<rocksdb::DB> peer_;
  Residents residents_;
  std::vector<std::string> users_;
  std::string record_;
  std::vector<float> query_;
  Slot spare_ = -1;
};

int Main(int rounds, size_t users) {
  std::string dir = (std::filesystem::temp_directory_path() / "state_ratios_XXXXXX").string();
  Must(mkdtemp(dir.data()) != nullptr, "mkdtemp");
  const int failed = Bench(dir, rounds, users).Main();
  std::filesystem::remove_all(dir);
  return failed;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) {
  const auto argument = [&](int i, size_t otherwise) {
    return argc > i ? std::max<size_t>(1, std::strtoull(argv[i], nullptr, 10)) : otherwise;
  };
  return tim4rec::Main(static_cast<int>(argument(1, 7)), argument(2, 2048));
}
