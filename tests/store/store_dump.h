// All that a store holds, as text.
#ifndef TIM4REC_TESTS_STORE_STORE_DUMP_H_
#define TIM4REC_TESTS_STORE_STORE_DUMP_H_

#include <string>

#include "absl/status/statusor.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

// A line per truncation, event (in fold order), checkpoint and base, users in key order; bytes as
// hex digits. An error if a record is damaged.
absl::StatusOr<std::string> DumpStore(const RocksDbStore& store);

// A line per count of an item's use, in order of day and item, and before them the first day.
absl::StatusOr<std::string> DumpUse(const RocksDbStore& store);

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_STORE_DUMP_H_
