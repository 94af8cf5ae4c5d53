// Input: flags:u8, u8 length of the key, key, value. What is read must be what an encoder writes.
#include "store/record_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "store/bytes.h"

namespace tim4rec {
namespace {

constexpr uint8_t kRightChecksum = 1;

void Require(bool condition) {
  if (!condition) std::abort();
}

// As FORMAT.md says it.
void AppendChecksum(const std::string& key, std::string* value) {
  std::string covered;
  AppendLittleEndian(key.size(), 4, covered);
  covered += key;
  covered += *value;
  AppendLittleEndian(XXH3_64bits(covered.data(), covered.size()), 8, *value);
}

void TryEvent(const std::string& key, const std::string& value) {
  Event event;
  std::string_view position;
  if (!DecodeEvent(key, value, event, position)) return;
  std::string again;
  AppendEventValue(key, event, again);
  Require(again == value);
  Require(FoldPlaceOf(event).position >= (event.late.rank > 0 ? position : PositionOf(event)));
  FoldTimeMs(event);
  Require(UserOfKey(key).has_value() && DecodePosition(position) == event.timestamp_ms);
}

void TryState(const std::string& key, const std::string& value) {
  StateRecord record;
  if (!DecodeState(key, value, record)) return;
  std::string again;
  AppendStateValue(key, record, again);
  // A newer program may write another version and the same minimum reader.
  if (value.substr(4, 4) == again.substr(4, 4)) Require(again == value);
}

void TryTruncation(const std::string& key, const std::string& value) {
  Truncation truncation;
  if (!DecodeTruncation(key, value, truncation)) return;
  std::string again;
  AppendTruncationValue(key, truncation, again);
  Require(again == value);
  Require(truncation.lineage.log_truncated && truncation.lineage.event_count > 0);
  Require(UserPrefix(*UserOfKey(key)) == key);
}

void TryUse(const std::string& key, const std::string& value) {
  if (const auto day = DecodeUseKey(key)) Require(UseKey(*day) == key);
  std::string again;
  UseReader use(value);
  while (use.Next()) AppendUse(use.item_id(), use.events(), again);
  Require(value.starts_with(again));
  Require(use.ok() == (again == value));
}

}  // namespace
}  // namespace tim4rec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tim4rec;
  if (size < 2) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data + 2), size - 2);
  const std::string key = bytes.substr(0, data[1]);
  std::string value = bytes.substr(key.size());
  if ((data[0] & kRightChecksum) != 0) AppendChecksum(key, &value);
  TryEvent(key, value);
  TryState(key, value);
  TryTruncation(key, value);
  TryUse(key, value);
  DecodePosition(key);
  if (!PrefixEnd(key).empty()) Require(PrefixEnd(key) > key);
  Require(UserPrefixBytes(key) <= key.size());
  if (const auto format = DecodeFormatVersion(value)) {
    Require(EncodeFormatVersion(*format) == value);
  }
  return 0;
}
