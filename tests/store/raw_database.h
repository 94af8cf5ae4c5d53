// The database without the store around it, to look at it and to damage it as no disk checksum
// would notice.
#ifndef TIM4REC_TESTS_STORE_RAW_DATABASE_H_
#define TIM4REC_TESTS_STORE_RAW_DATABASE_H_

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "rocksdb/db.h"
#include "store/rocksdb_options.h"

namespace tim4rec {

class RawDatabase {
 public:
  static constexpr int kEvents = 1;
  static constexpr int kStates = 2;
  static constexpr int kMeta = 3;
  static constexpr int kUse = 4;

  explicit RawDatabase(const std::string& dir) {
    rocksdb::Options options;
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    std::vector<std::string> names;
    EXPECT_TRUE(rocksdb::DB::ListColumnFamilies(options, dir, &names).ok());
    // In the order of their numbers, since none but the last was ever dropped.
    for (const std::string& name : names) {
      families.push_back({name, rocksdb::ColumnFamilyOptions()});
      families.back().options.merge_operator = NewUseMergeOperator();
    }
    rocksdb::DB* db = nullptr;
    const rocksdb::Status opened = rocksdb::DB::Open(options, dir, families, &handles_, &db);
    EXPECT_TRUE(opened.ok()) << opened.ToString();
    db_.reset(db);
  }
  ~RawDatabase() {
    for (auto* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  }
  void Put(int family, const std::string& key, const std::string& value) {
    EXPECT_TRUE(db_->Put({}, handles_[family], key, value).ok());
  }
  void Merge(int family, const std::string& key, const std::string& value) {
    EXPECT_TRUE(db_->Merge({}, handles_[family], key, value).ok());
  }
  std::string Get(int family, const std::string& key) {
    std::string value;
    EXPECT_TRUE(db_->Get({}, handles_[family], key, &value).ok());
    return value;
  }
  void Delete(int family, const std::string& key) {
    EXPECT_TRUE(db_->Delete({}, handles_[family], key).ok());
  }

 private:
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> handles_;
};

inline void FlipMiddleBit(std::string& value) { value[value.size() / 2] ^= 1; }

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_RAW_DATABASE_H_
