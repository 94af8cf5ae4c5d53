// RocksDB's own messages. Internal to store/.
#ifndef TIM4REC_STORE_INFO_LOG_H_
#define TIM4REC_STORE_INFO_LOG_H_

#include <memory>
#include <string>

#include "rocksdb/env.h"

namespace tim4rec {

// Warnings and errors go to dir/LOG, at most 4 MB of it and as much before it in dir/LOG.old. What
// cannot be written is dropped: RocksDB's own logger ends the process on a full disk (an assertion
// that Debian's build keeps).
std::shared_ptr<rocksdb::Logger> NewInfoLog(const std::string& dir);

}  // namespace tim4rec

#endif  // TIM4REC_STORE_INFO_LOG_H_
