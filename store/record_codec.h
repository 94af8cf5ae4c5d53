// Keys and values on disk (grammar: FORMAT.md). Encoders require what the store has checked
// (id lengths, fingerprint form); decoders accept any bytes, never read out of bounds, and take
// nothing but what an encoder wrote.
#ifndef TIM4REC_STORE_RECORD_CODEC_H_
#define TIM4REC_STORE_RECORD_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "store/event.h"
#include "store/state_store.h"

namespace tim4rec {

inline constexpr uint32_t kFormatVersion = 3;  // the newest that this program reads and writes

inline constexpr size_t kMaxIdBytes = 256;
inline constexpr size_t kFingerprintDigits = 32;
inline constexpr size_t kPositionHeaderBytes = 9;
inline constexpr char kPositionEventId = 1;
inline constexpr char kPositionItemHash = 2;

void AppendPosition(const Event& event, std::string& out);
// The timestamp; nullopt if the bytes are not a position.
std::optional<int64_t> DecodePosition(std::string_view bytes);

// Whether an event at `position` may be folded late at that place.
bool IsLatePlace(std::string_view behind, uint64_t rank, std::string_view position);

// The prefix that all keys of a user share, in `events` and in `states`. No user's prefix is a
// prefix of another's.
std::string UserPrefix(std::string_view user_id);
// The first key behind all keys that begin with `prefix`.
std::string PrefixEnd(std::string_view prefix);
// How many bytes of the key are its user prefix; 0 if it has none.
size_t UserPrefixBytes(std::string_view key);
// The user id in a key; nullopt if the key has no user prefix or the id's length is out of limits.
std::optional<std::string_view> UserOfKey(std::string_view key);

// Event key: user prefix, position.
void AppendEventKey(std::string_view user_id, const Event& event, std::string& out);
// Event value: what the key does not say, and a checksum over key and value.
void AppendEventValue(std::string_view key, const Event& event, std::string& out);
// Fills event; false if anything about the pair is wrong. `position` receives the key's part.
bool DecodeEvent(std::string_view key, std::string_view value, Event& event,
                 std::string_view& position);

// True for 32 lower-case hex digits.
bool IsFingerprint(std::string_view text);
// State key: user prefix, the fingerprint's 16 bytes.
std::string StateKey(std::string_view user_id, std::string_view fingerprint);
// Key of a base: that of the state, and a tag.
std::string BaseKey(std::string_view user_id, std::string_view fingerprint);
// The fingerprint's 16 bytes in the key of a state or a base; empty if it is neither.
std::string_view FingerprintOfKey(std::string_view key);
bool IsBaseKey(std::string_view key);
// Of a state or a base, which have the same value.
void AppendStateValue(std::string_view key, const StateRecord& record, std::string& out);
// Checks everything but the payload's meaning; false if anything is wrong.
bool DecodeState(std::string_view key, std::string_view value, StateRecord& record);

// Truncation: its key is the user prefix alone.
void AppendTruncationValue(std::string_view key, const Truncation& truncation, std::string& out);
bool DecodeTruncation(std::string_view key, std::string_view value, Truncation& truncation);

// Counts of a day's events by item, in `meta`: the key of a day, which is one of IsUseDay, and the
// first key behind all of them.
std::string UseKey(int64_t day);
std::string UseEnd();
std::optional<int64_t> DecodeUseKey(std::string_view key);
// The next item of a day's counts, or changes of them: ids ascend, `events` is not 0.
void AppendUse(std::string_view item_id, int64_t events, std::string& out);
// Reads them back: `for (UseReader use(value); use.Next();)`. Not ok() once anything was wrong.
class UseReader {
 public:
  explicit UseReader(std::string_view value) : rest_(value) {}

  // False at the end, and at what AppendUse does not write.
  bool Next();
  std::string_view item_id() const { return item_id_; }
  int64_t events() const { return events_; }
  bool ok() const { return ok_; }

 private:
  std::string_view rest_;
  std::string_view item_id_;
  int64_t events_ = 0;
  bool ok_ = true;
};
// Value of `meta`'s first use day.
std::string EncodeUseDay(int64_t day);
std::optional<int64_t> DecodeUseDay(std::string_view value);

// Value of `meta`'s format key. Version 1 has events and states, 2 truncations too, and 3 counts of
// the items' use, which whoever overlooked them would not keep up.
struct FormatVersion {
  uint32_t version = kFormatVersion;
  uint32_t min_reader = kFormatVersion;
};
inline constexpr uint32_t kFirstTruncatedFormat = 2;
inline constexpr uint32_t kFirstCountedFormat = 3;
std::string EncodeFormatVersion(const FormatVersion& format);
std::optional<FormatVersion> DecodeFormatVersion(std::string_view value);

}  // namespace tim4rec

#endif  // TIM4REC_STORE_RECORD_CODEC_H_
