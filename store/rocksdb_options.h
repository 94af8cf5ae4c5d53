// How the database is tuned. Internal to store/.
#ifndef TIM4REC_STORE_ROCKSDB_OPTIONS_H_
#define TIM4REC_STORE_ROCKSDB_OPTIONS_H_

#include <memory>
#include <vector>

#include "rocksdb/db.h"
#include "rocksdb/merge_operator.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

// Order of the descriptors and of the handles opened from them; default is RocksDB's own column
// family, unused. A store of a format before 3 has no `use`.
enum ColumnFamily { kDefaultFamily, kEventsFamily, kStatesFamily, kMetaFamily, kUseFamily };

// Adds up the counts of `use` (FORMAT.md).
std::shared_ptr<rocksdb::MergeOperator> NewUseMergeOperator();

rocksdb::DBOptions DatabaseOptions(const RocksDbStoreOptions& options);
std::vector<rocksdb::ColumnFamilyDescriptor> ColumnFamilies(const RocksDbStoreOptions& options);

}  // namespace tim4rec

#endif  // TIM4REC_STORE_ROCKSDB_OPTIONS_H_
