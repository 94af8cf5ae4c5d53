// Fixed-width integers as bytes.
#ifndef TIM4REC_STORE_BYTES_H_
#define TIM4REC_STORE_BYTES_H_

#include <cstdint>
#include <string>

namespace tim4rec {

inline void AppendBigEndian(uint64_t value, int bytes, std::string& out) {
  for (int i = bytes - 1; i >= 0; --i) out.push_back(static_cast<char>(value >> (8 * i)));
}

inline void AppendLittleEndian(uint64_t value, int bytes, std::string& out) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

}  // namespace tim4rec

#endif  // TIM4REC_STORE_BYTES_H_
