// A store on a disk that fails where a test says so.
#ifndef TIM4REC_TESTS_STORE_FAULT_FIXTURE_H_
#define TIM4REC_TESTS_STORE_FAULT_FIXTURE_H_

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "rocksdb/env.h"
#include "tests/store/fault_file_system.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {

class FaultTest : public testing::Test {
 protected:
  std::unique_ptr<RocksDbStore> Open() {
    RocksDbStoreOptions options = SmallOptions();
    options.write_buffer_bytes = 256 << 10;  // flushes happen by themselves too
    options.env = env_.get();
    return OpenStore(dir_.store(), options);
  }
  void Crash(std::unique_ptr<RocksDbStore>& store, TornTail tail, std::mt19937_64& random) {
    fs_->CutPower();
    store.reset();
    fs_->LoseUnsynced(tail, random);
    store = Open();
  }

  ScratchDir dir_;
  std::shared_ptr<FaultFileSystem> fs_ = std::make_shared<FaultFileSystem>();
  std::unique_ptr<rocksdb::Env> env_ = rocksdb::NewCompositeEnv(fs_);
  std::mt19937_64 random_{1};
};

inline StateRecord NamedState(std::string payload) {
  StateRecord record;
  record.payload = std::move(payload);
  return record;
}

inline void PutState(RocksDbStore& store, std::string_view user, const StateRecord& record) {
  const UserState put[] = {{user, kFingerprintA, &record}};
  ASSERT_TRUE(store.Put(put).ok());
}

inline std::optional<std::string> PayloadOf(const RocksDbStore& store, std::string_view user) {
  const auto got = store.Get(user, kFingerprintA);
  EXPECT_TRUE(got.ok()) << got.status();
  if (!got.ok() || !got->has_value()) return std::nullopt;
  return (*got)->payload;
}

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_FAULT_FIXTURE_H_
