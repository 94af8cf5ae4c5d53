// What the tests of the store share.
#ifndef TIM4REC_TESTS_STORE_STORE_FIXTURE_H_
#define TIM4REC_TESTS_STORE_STORE_FIXTURE_H_

#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

inline constexpr char kFingerprintA[] = "00112233445566778899aabbccddeeff";
inline constexpr char kFingerprintB[] = "ffeeddccbbaa99887766554433221100";

// A fresh directory, removed at the end.
class ScratchDir {
 public:
  ScratchDir() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "tim4rec_store_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~ScratchDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  std::string store() const { return path_ + "/store"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline RocksDbStoreOptions SmallOptions() {
  RocksDbStoreOptions options;
  options.block_cache_bytes = 8 << 20;
  options.write_buffer_bytes = 4 << 20;
  return options;
}

inline std::unique_ptr<RocksDbStore> OpenStore(
    const std::string& dir, const RocksDbStoreOptions& options = SmallOptions()) {
  auto store = RocksDbStore::Open(dir, options);
  EXPECT_TRUE(store.ok()) << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

inline bool SameEvent(const Event& a, const Event& b) {
  return a.item_id == b.item_id && a.timestamp_ms == b.timestamp_ms && a.event_id == b.event_id &&
         a.late == b.late;
}

inline std::vector<Event> ReadAll(const EventLog& log, std::string_view user_id) {
  std::vector<Event> events;
  const absl::Status status = log.Read(user_id, [&](std::string_view position, const Event& event) {
    EXPECT_EQ(position, PositionOf(event));
    events.push_back(event);
    return true;
  });
  EXPECT_TRUE(status.ok()) << status;
  return events;
}

inline std::vector<std::string> Items(const std::vector<Event>& events) {
  std::vector<std::string> items;
  for (const Event& event : events) items.push_back(event.item_id);
  return items;
}

inline absl::StatusOr<std::vector<AppendOutcome>> AppendTo(
    EventLog& log, std::string_view user_id, const std::vector<Event>& events,
    Durability durability = Durability::kBuffered) {
  const UserEvents batch[] = {{user_id, events}};
  auto outcomes = log.Append(batch, durability);
  if (!outcomes.ok()) return outcomes.status();
  return std::move(outcomes->front());
}

// Every test that draws random numbers draws them from here, so that a failure can be repeated.
inline std::mt19937_64 PrintedRandom(const char* what) {
  uint64_t seed = std::random_device()();
  if (const char* text = std::getenv("TIM4REC_TEST_SEED")) seed = std::strtoull(text, nullptr, 10);
  std::cout << what << ": TIM4REC_TEST_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_STORE_FIXTURE_H_
