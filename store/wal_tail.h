// Telling a torn write at the end of a write-ahead log from damage in its middle. Internal to
// store/.
#ifndef TIM4REC_STORE_WAL_TAIL_H_
#define TIM4REC_STORE_WAL_TAIL_H_

#include <cstdint>
#include <string>
#include <vector>

namespace tim4rec {

// A log that ends in zeros. After a power loss, a record that was never synced may be on disk with
// zeros in place of its end; RocksDB forgives a record that is cut off but not one that is
// zero-filled. A whole record may end in zeros too, so cut only when recovery has refused the logs
// as they are, and put back what did not help.
struct ZeroTail {
  std::string file;
  uint64_t size = 0;
  uint64_t size_without_zeros = 0;
};

// The logs in dir that end in zeros, newest first.
std::vector<ZeroTail> FindZeroTails(const std::string& dir);
// False if the file could not be changed.
bool Cut(const ZeroTail& tail);
bool Restore(const ZeroTail& tail);

}  // namespace tim4rec

#endif  // TIM4REC_STORE_WAL_TAIL_H_
