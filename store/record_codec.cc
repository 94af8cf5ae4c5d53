#include "store/record_codec.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <utility>

#include "store/bytes.h"

namespace tim4rec {
namespace {

// Flipping the sign bit makes the unsigned big-endian order the signed order.
constexpr uint64_t kSignBit = uint64_t{1} << 63;
constexpr size_t kItemHashBytes = 16;
constexpr char kEventHasId = 1;  // flags of an event value
constexpr char kEventLate = 2;
constexpr char kLineageTruncated = 1;  // flags of a lineage
constexpr std::string_view kStateMagic = "T4RS";
constexpr FormatVersion kStateFormat{1, 1};  // that of a state or a base by itself
constexpr size_t kFingerprintBytes = kFingerprintDigits / 2;
constexpr char kBaseTag = 1;
constexpr size_t kChecksumBytes = 8;
constexpr char kUseTag = 1;  // below the names of `meta`'s other keys
constexpr size_t kUseDayBytes = 4;

// Takes fields off the front of a record; a read past the end empties it and is remembered.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  std::string_view Bytes(uint64_t size) {
    if (size > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const std::string_view field = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return field;
  }
  uint64_t LittleEndian(int bytes) {
    uint64_t value = 0;
    const std::string_view field = Bytes(bytes);
    for (size_t i = 0; i < field.size(); ++i) {
      value |= uint64_t{static_cast<uint8_t>(field[i])} << (8 * i);
    }
    return value;
  }
  // Everything was there, and nothing is left.
  bool Finished() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

// The key's length goes in first, so that no byte can move between key and value unseen.
uint64_t Checksum(std::string_view key, std::string_view value) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  std::string length;
  AppendLittleEndian(key.size(), 4, length);
  XXH3_64bits_update(&state, length.data(), length.size());
  XXH3_64bits_update(&state, key.data(), key.size());
  XXH3_64bits_update(&state, value.data(), value.size());
  return XXH3_64bits_digest(&state);
}

// Removes the checksum from the end of value; false if it does not match.
bool TakeChecksum(std::string_view key, std::string_view& value) {
  if (value.size() < kChecksumBytes) return false;
  const uint64_t stored = Reader(value.substr(value.size() - kChecksumBytes)).LittleEndian(8);
  value.remove_suffix(kChecksumBytes);
  return stored == Checksum(key, value);
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool IsId(std::string_view id) { return !id.empty() && id.size() <= kMaxIdBytes; }

void AppendUserPrefix(std::string_view user_id, std::string& out) {
  AppendBigEndian(user_id.size(), 2, out);
  out.append(user_id);
}

}  // namespace

void AppendPosition(const Event& event, std::string& out) {
  AppendBigEndian(static_cast<uint64_t>(event.timestamp_ms) ^ kSignBit, 8, out);
  if (!event.event_id.empty()) {
    out.push_back(kPositionEventId);
    out.append(event.event_id);
    return;
  }
  out.push_back(kPositionItemHash);
  const XXH128_hash_t hash = XXH3_128bits(event.item_id.data(), event.item_id.size());
  AppendBigEndian(hash.high64, 8, out);
  AppendBigEndian(hash.low64, 8, out);
}

std::optional<int64_t> DecodePosition(std::string_view bytes) {
  if (bytes.size() < kPositionHeaderBytes) return std::nullopt;
  const std::string_view id = bytes.substr(kPositionHeaderBytes);
  const char tag = bytes[kPositionHeaderBytes - 1];
  const bool valid = tag == kPositionEventId    ? IsId(id)
                     : tag == kPositionItemHash ? id.size() == kItemHashBytes
                                                : false;
  if (!valid) return std::nullopt;
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) bits = bits << 8 | static_cast<uint8_t>(bytes[i]);
  return static_cast<int64_t>(bits ^ kSignBit);
}

bool IsLatePlace(std::string_view behind, uint64_t rank, std::string_view position) {
  return rank > 0 && behind > position && DecodePosition(behind).has_value();
}

std::string UserPrefix(std::string_view user_id) {
  std::string prefix;
  AppendUserPrefix(user_id, prefix);
  return prefix;
}

std::string PrefixEnd(std::string_view prefix) {
  std::string end(prefix);
  while (!end.empty() && static_cast<uint8_t>(end.back()) == 0xff) end.pop_back();
  if (!end.empty()) end.back() = static_cast<char>(static_cast<uint8_t>(end.back()) + 1);
  return end;
}

size_t UserPrefixBytes(std::string_view key) {
  if (key.size() < 2) return 0;
  const size_t size =
      2 + (size_t{static_cast<uint8_t>(key[0])} << 8 | static_cast<uint8_t>(key[1]));
  return size <= key.size() ? size : 0;
}

std::optional<std::string_view> UserOfKey(std::string_view key) {
  const size_t prefix_bytes = UserPrefixBytes(key);
  if (prefix_bytes == 0) return std::nullopt;
  const std::string_view user_id = key.substr(2, prefix_bytes - 2);
  if (!IsId(user_id)) return std::nullopt;
  return user_id;
}

void AppendEventKey(std::string_view user_id, const Event& event, std::string& out) {
  AppendUserPrefix(user_id, out);
  AppendPosition(event, out);
}

void AppendEventValue(std::string_view key, const Event& event, std::string& out) {
  const size_t begin = out.size();
  out.push_back(static_cast<char>((event.event_id.empty() ? 0 : kEventHasId) |
                                  (event.late.rank == 0 ? 0 : kEventLate)));
  AppendLittleEndian(event.item_id.size(), 2, out);
  out.append(event.item_id);
  if (event.late.rank > 0) {
    AppendLittleEndian(event.late.position.size(), 2, out);
    out.append(event.late.position);
    AppendLittleEndian(event.late.rank, 4, out);
  }
  AppendLittleEndian(Checksum(key, std::string_view(out).substr(begin)), 8, out);
}

bool DecodeEvent(std::string_view key, std::string_view value, Event& event,
                 std::string_view& position) {
  if (!UserOfKey(key) || !TakeChecksum(key, value)) return false;
  const std::string_view rest = key.substr(UserPrefixBytes(key));
  const std::optional<int64_t> timestamp_ms = DecodePosition(rest);
  if (!timestamp_ms) return false;
  const bool has_id = rest[kPositionHeaderBytes - 1] == kPositionEventId;
  Reader reader(value);
  const uint64_t flags = reader.LittleEndian(1);
  const bool late = (flags & kEventLate) != 0;
  const std::string_view item_id = reader.Bytes(reader.LittleEndian(2));
  const std::string_view behind = late ? reader.Bytes(reader.LittleEndian(2)) : std::string_view();
  const uint64_t rank = late ? reader.LittleEndian(4) : 0;
  if (!reader.Finished() || !IsId(item_id)) return false;
  if ((flags & ~uint64_t{kEventLate}) != (has_id ? kEventHasId : 0)) return false;
  if (late && !IsLatePlace(behind, rank, rest)) return false;
  event.item_id.assign(item_id);
  event.timestamp_ms = *timestamp_ms;
  event.event_id.assign(has_id ? rest.substr(kPositionHeaderBytes) : std::string_view());
  event.late.position.assign(behind);
  event.late.rank = static_cast<uint32_t>(rank);
  position = rest;
  return true;
}

bool IsFingerprint(std::string_view text) {
  if (text.size() != kFingerprintDigits) return false;
  for (char c : text) {
    if (HexDigit(c) < 0) return false;
  }
  return true;
}

std::string StateKey(std::string_view user_id, std::string_view fingerprint) {
  std::string key = UserPrefix(user_id);
  for (size_t i = 0; i + 1 < fingerprint.size(); i += 2) {
    key.push_back(static_cast<char>(HexDigit(fingerprint[i]) << 4 | HexDigit(fingerprint[i + 1])));
  }
  return key;
}

std::string BaseKey(std::string_view user_id, std::string_view fingerprint) {
  return StateKey(user_id, fingerprint) + kBaseTag;
}

std::string_view FingerprintOfKey(std::string_view key) {
  if (!UserOfKey(key)) return {};
  const std::string_view rest = key.substr(UserPrefixBytes(key));
  const bool base = rest.size() == kFingerprintBytes + 1 && rest.back() == kBaseTag;
  return base || rest.size() == kFingerprintBytes ? rest.substr(0, kFingerprintBytes)
                                                  : std::string_view();
}

bool IsBaseKey(std::string_view key) {
  return !FingerprintOfKey(key).empty() &&
         key.size() == UserPrefixBytes(key) + kFingerprintBytes + 1;
}

void AppendStateValue(std::string_view key, const StateRecord& record, std::string& out) {
  const size_t begin = out.size();
  const Lineage& lineage = record.lineage;
  out.append(kStateMagic);
  AppendLittleEndian(kStateFormat.version, 2, out);
  AppendLittleEndian(kStateFormat.min_reader, 2, out);
  out.append(FingerprintOfKey(key));
  AppendLittleEndian(record.payload.size(), 8, out);
  AppendLittleEndian(lineage.event_count, 8, out);
  AppendLittleEndian(lineage.hash[0], 8, out);
  AppendLittleEndian(lineage.hash[1], 8, out);
  out.push_back(lineage.log_truncated ? kLineageTruncated : 0);
  AppendLittleEndian(lineage.watermark.size(), 2, out);
  out.append(lineage.watermark);
  out.append(record.payload);
  AppendLittleEndian(Checksum(key, std::string_view(out).substr(begin)), 8, out);
}

bool DecodeState(std::string_view key, std::string_view value, StateRecord& record) {
  const std::string_view fingerprint = FingerprintOfKey(key);
  if (fingerprint.empty() || !TakeChecksum(key, value)) return false;
  Reader reader(value);
  const bool magic = reader.Bytes(kStateMagic.size()) == kStateMagic;
  reader.LittleEndian(2);  // version: told for people and tools; what matters is the next field
  const uint64_t min_reader = reader.LittleEndian(2);
  if (!magic || min_reader > kFormatVersion) return false;
  if (reader.Bytes(fingerprint.size()) != fingerprint) return false;
  const uint64_t payload_bytes = reader.LittleEndian(8);
  Lineage lineage;
  lineage.event_count = reader.LittleEndian(8);
  lineage.hash[0] = reader.LittleEndian(8);
  lineage.hash[1] = reader.LittleEndian(8);
  const uint64_t flags = reader.LittleEndian(1);
  const std::string_view watermark = reader.Bytes(reader.LittleEndian(2));
  const std::string_view payload = reader.Bytes(payload_bytes);
  if (!reader.Finished() || (flags & ~uint64_t{kLineageTruncated}) != 0) return false;
  if (!watermark.empty() && !DecodePosition(watermark)) return false;
  lineage.log_truncated = flags == kLineageTruncated;
  if (IsBaseKey(key) && !lineage.log_truncated) return false;
  lineage.watermark.assign(watermark);
  record.lineage = std::move(lineage);
  record.payload.assign(payload);
  return true;
}

void AppendTruncationValue(std::string_view key, const Truncation& truncation, std::string& out) {
  const size_t begin = out.size();
  const Lineage& lineage = truncation.lineage;
  AppendLittleEndian(lineage.event_count, 8, out);
  AppendLittleEndian(lineage.hash[0], 8, out);
  AppendLittleEndian(lineage.hash[1], 8, out);
  AppendLittleEndian(static_cast<uint64_t>(truncation.last_event_ms), 8, out);
  AppendLittleEndian(lineage.watermark.size(), 2, out);
  out.append(lineage.watermark);
  AppendLittleEndian(Checksum(key, std::string_view(out).substr(begin)), 8, out);
}

bool DecodeTruncation(std::string_view key, std::string_view value, Truncation& truncation) {
  if (!UserOfKey(key) || UserPrefixBytes(key) != key.size() || !TakeChecksum(key, value)) {
    return false;
  }
  Reader reader(value);
  Truncation read;
  Lineage& lineage = read.lineage;
  lineage.event_count = reader.LittleEndian(8);
  lineage.hash[0] = reader.LittleEndian(8);
  lineage.hash[1] = reader.LittleEndian(8);
  lineage.log_truncated = true;
  read.last_event_ms = static_cast<int64_t>(reader.LittleEndian(8));
  lineage.watermark.assign(reader.Bytes(reader.LittleEndian(2)));
  if (!reader.Finished() || lineage.event_count == 0 || !DecodePosition(lineage.watermark)) {
    return false;
  }
  truncation = std::move(read);
  return true;
}

std::string UseKey(int64_t day) {
  std::string key(1, kUseTag);
  AppendBigEndian(static_cast<uint32_t>(day) ^ uint32_t{1} << 31, kUseDayBytes, key);
  return key;
}

std::string UseEnd() { return std::string(1, kUseTag + 1); }

std::optional<int64_t> DecodeUseKey(std::string_view key) {
  if (key.size() != 1 + kUseDayBytes || key[0] != kUseTag) return std::nullopt;
  uint32_t bits = 0;
  for (size_t i = 1; i < key.size(); ++i) bits = bits << 8 | static_cast<uint8_t>(key[i]);
  return static_cast<int32_t>(bits ^ uint32_t{1} << 31);
}

// Most changes are 1: a byte for the length, and one for twice the number (or minus one, and one
// more), seven bits in each byte.
void AppendUse(std::string_view item_id, int64_t events, std::string& out) {
  out.push_back(static_cast<char>(item_id.size() - 1));
  out.append(item_id);
  uint64_t bits = static_cast<uint64_t>(events) << 1 ^ static_cast<uint64_t>(events >> 63);
  for (; bits >= 0x80; bits >>= 7) out.push_back(static_cast<char>(bits | 0x80));
  out.push_back(static_cast<char>(bits));
}

bool UseReader::Next() {
  if (rest_.empty() || !ok_) return false;
  ok_ = false;
  const size_t size = size_t{static_cast<uint8_t>(rest_[0])} + 1;
  if (rest_.size() < 1 + size) return false;
  const std::string_view last = std::exchange(item_id_, rest_.substr(1, size));
  if (item_id_ <= last) return false;
  rest_.remove_prefix(1 + size);
  uint64_t bits = 0;
  for (int shift = 0;; shift += 7) {
    if (rest_.empty() || shift > 63) return false;
    const auto byte = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    bits |= uint64_t{byte & 0x7fu} << shift;
    if (byte >= 0x80) continue;
    // Neither a zero, nor one at the end, nor more than 64 bits.
    if (byte == 0 || (shift == 63 && byte > 1)) return false;
    break;
  }
  events_ = static_cast<int64_t>(bits >> 1 ^ (~(bits & 1) + 1));
  ok_ = true;
  return true;
}

std::string EncodeUseDay(int64_t day) {
  std::string value;
  AppendLittleEndian(static_cast<uint64_t>(day), 8, value);
  return value;
}

std::optional<int64_t> DecodeUseDay(std::string_view value) {
  Reader reader(value);
  const auto day = static_cast<int64_t>(reader.LittleEndian(8));
  if (!reader.Finished()) return std::nullopt;
  return day;
}

std::string EncodeFormatVersion(const FormatVersion& format) {
  std::string value;
  AppendLittleEndian(format.version, 4, value);
  AppendLittleEndian(format.min_reader, 4, value);
  return value;
}

std::optional<FormatVersion> DecodeFormatVersion(std::string_view value) {
  Reader reader(value);
  FormatVersion format{0, 0};
  format.version = static_cast<uint32_t>(reader.LittleEndian(4));
  format.min_reader = static_cast<uint32_t>(reader.LittleEndian(4));
  if (!reader.Finished() || format.min_reader > format.version || format.min_reader == 0) {
    return std::nullopt;
  }
  return format;
}

}  // namespace tim4rec
