#include "store/rocksdb_store.h"

#include "gmock/gmock.h"
#include "rocksdb/db.h"
#include "tests/store/store_contract.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

class RocksDbUnderTest final : public StoreUnderTest {
 public:
  EventLog& log() override { return *store_; }
  StateStore& states() override { return *store_; }
  void Reopen() override {
    store_.reset();
    store_ = OpenStore(dir_.store());
  }

 private:
  ScratchDir dir_;
  std::unique_ptr<RocksDbStore> store_ = OpenStore(dir_.store());
};

INSTANTIATE_TEST_SUITE_P(RocksDb, StoreContract,
                         testing::Values(StoreKind{
                             "RocksDb", [] { return std::make_unique<RocksDbUnderTest>(); }}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tim4rec
