#include "store/record_codec.h"

#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/paths.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;

// The worked example of store/FORMAT.md. These bytes never change: they are on people's disks.
constexpr char kUser[] = "alice";
const Event kPlain = {"m1", 1'700'000'000'000, ""};
const Event kWithId = {"m1", -1, "e7"};
constexpr char kPlainKey[] = "0005616c6963658000018bcfe56800029a6b019f95a49a9af4edaab5e5c1529d";
constexpr char kPlainValue[] = "0002006d31b172eb7d8f6d2c8f";
constexpr char kWithIdKey[] = "0005616c6963657fffffffffffffff016537";
constexpr char kWithIdValue[] = "0102006d31c646f83971c632a4";
const Event kLate = {"m2", 1'699'999'999'999, "", {PositionOf(kPlain), 1}};
constexpr char kLateKey[] = "0005616c6963658000018bcfe567ff0245d4b1023e06f1912990f37af5fe486f";
constexpr char kLateValue[] =
    "0202006d3219008000018bcfe56800029a6b019f95a49a9af4edaab5e5c1529d01000000b0b8f924d2f65bb5";
constexpr char kStateKeyHex[] = "0005616c69636500112233445566778899aabbccddeeff";
constexpr char kStateValueHex[] =
    "543452530100010000112233445566778899aabbccddeeff04000000000000000200000000000000528d9f88564d97"
    "8880c1f9c3e11bbc180019008000018bcfe56800029a6b019f95a49a9af4edaab5e5c1529d010203043a392e11109f"
    "6b17";

constexpr char kTruncationKeyHex[] = "0005616c696365";
constexpr char kTruncationValueHex[] =
    "0200000000000000528d9f88564d978880c1f9c3e11bbc180068e5cf8b01000019008000018bcfe56800029a6b019f"
    "95"
    "a49a9af4edaab5e5c1529de83f38e3f8893da4";
constexpr char kBaseKeyHex[] = "0005616c69636500112233445566778899aabbccddeeff01";
constexpr char kBaseValueHex[] =
    "543452530100010000112233445566778899aabbccddeeff04000000000000000200000000000000528d9f88564d97"
    "8880c1f9c3e11bbc180119008000018bcfe56800029a6b019f95a49a9af4edaab5e5c1529d01020304d8367646532b"
    "3c96";
constexpr char kUseKeyHex[] = "0180004cdb";
constexpr char kUseValueHex[] = "016d3106016d328001";

std::string Hex(std::string_view bytes) {
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

std::string KeyOf(std::string_view user, const Event& event) {
  std::string key;
  AppendEventKey(user, event, key);
  return key;
}

std::string ValueOf(std::string_view key, const Event& event) {
  std::string value;
  AppendEventValue(key, event, value);
  return value;
}

StateRecord ExampleState() {
  StateRecord record;
  record.lineage.Extend(PositionOf(kWithId), kWithId.item_id);
  record.lineage.Extend(PositionOf(kPlain), kPlain.item_id);
  record.payload = std::string("\x01\x02\x03\x04", 4);
  return record;
}

// Both of the example's first two events were removed.
Truncation ExampleTruncation() {
  Truncation truncation{ExampleState().lineage, kPlain.timestamp_ms};
  truncation.lineage.log_truncated = true;
  return truncation;
}

StateRecord ExampleBase() {
  StateRecord record = ExampleState();
  record.lineage.log_truncated = true;
  return record;
}

std::string TruncationValueOf(std::string_view key, const Truncation& truncation) {
  std::string value;
  AppendTruncationValue(key, truncation, value);
  return value;
}

bool DecodesTruncation(std::string_view key, std::string_view value) {
  Truncation truncation;
  return DecodeTruncation(key, value, truncation);
}

std::string StateValueOf(std::string_view key, const StateRecord& record) {
  std::string value;
  AppendStateValue(key, record, value);
  return value;
}

bool Decodes(std::string_view key, std::string_view value) {
  Event event;
  std::string_view position;
  return DecodeEvent(key, value, event, position);
}

bool DecodesState(std::string_view key, std::string_view value) {
  StateRecord record;
  return DecodeState(key, value, record);
}

TEST(RecordCodec, WritesTheBytesOfFormatVersionOne) {
  const std::string plain_key = KeyOf(kUser, kPlain);
  const std::string id_key = KeyOf(kUser, kWithId);
  const std::string state_key = StateKey(kUser, kFingerprintA);
  EXPECT_EQ(Hex(plain_key), kPlainKey);
  EXPECT_EQ(Hex(ValueOf(plain_key, kPlain)), kPlainValue);
  EXPECT_EQ(Hex(id_key), kWithIdKey);
  EXPECT_EQ(Hex(ValueOf(id_key, kWithId)), kWithIdValue);
  EXPECT_EQ(Hex(KeyOf(kUser, kLate)), kLateKey);
  EXPECT_EQ(Hex(ValueOf(KeyOf(kUser, kLate), kLate)), kLateValue);
  EXPECT_EQ(Hex(state_key), kStateKeyHex);
  EXPECT_EQ(Hex(StateValueOf(state_key, ExampleState())), kStateValueHex);
}

TEST(RecordCodec, WritesTheBytesOfFormatVersionTwo) {
  const std::string key = UserPrefix(kUser);
  const std::string base_key = BaseKey(kUser, kFingerprintA);
  EXPECT_EQ(Hex(key), kTruncationKeyHex);
  EXPECT_EQ(Hex(TruncationValueOf(key, ExampleTruncation())), kTruncationValueHex);
  EXPECT_EQ(Hex(base_key), kBaseKeyHex);
  EXPECT_EQ(Hex(StateValueOf(base_key, ExampleBase())), kBaseValueHex);
}

TEST(RecordCodec, WritesTheBytesOfFormatVersionThree) {
  std::string row;
  AppendUse("m1", 3, row);
  AppendUse("m2", 64, row);
  EXPECT_EQ(Hex(UseKey(19'675)), kUseKeyHex);
  EXPECT_EQ(Hex(row), kUseValueHex);
}

TEST(RecordCodec, FormatDocumentShowsTheseBytes) {
  std::ifstream file(absl::StrCat(SourceDir(), "/store/FORMAT.md"));
  std::stringstream text;
  text << file.rdbuf();
  std::string document;
  for (char c : text.str()) {
    if (c != ' ' && c != '\n') document.push_back(c);  // the document groups the digits
  }
  for (const char* bytes : {kPlainKey, kPlainValue, kWithIdKey, kWithIdValue, kLateKey, kLateValue,
                            kStateKeyHex, kStateValueHex, kTruncationKeyHex, kTruncationValueHex,
                            kBaseKeyHex, kBaseValueHex, kUseKeyHex, kUseValueHex}) {
    EXPECT_THAT(document, HasSubstr(bytes));
  }
}

TEST(RecordCodec, ReadsEventsBack) {
  for (const Event& event :
       {kPlain, kWithId, kLate, Event{std::string(256, 'i'), 0, std::string(256, 'e')},
        Event{"x", std::numeric_limits<int64_t>::min(), ""}}) {
    const std::string key = KeyOf(kUser, event);
    Event read;
    std::string_view position;
    ASSERT_TRUE(DecodeEvent(key, ValueOf(key, event), read, position));
    EXPECT_TRUE(SameEvent(read, event));
    EXPECT_EQ(position, PositionOf(event));
    EXPECT_EQ(UserOfKey(key), kUser);
  }
}

TEST(RecordCodec, ReadsStatesBack) {
  StateRecord record = ExampleState();
  for (const bool truncated : {false, true}) {
    record.lineage.log_truncated = truncated;
    const std::string key = StateKey(kUser, kFingerprintA);
    StateRecord read;
    ASSERT_TRUE(DecodeState(key, StateValueOf(key, record), read));
    EXPECT_EQ(read.lineage, record.lineage);
    EXPECT_EQ(read.payload, record.payload);
  }
}

TEST(RecordCodec, ReadsTruncationsAndBasesBack) {
  const std::string key = UserPrefix(kUser);
  Truncation truncation;
  ASSERT_TRUE(DecodeTruncation(key, TruncationValueOf(key, ExampleTruncation()), truncation));
  EXPECT_EQ(truncation.lineage, ExampleTruncation().lineage);
  EXPECT_EQ(truncation.last_event_ms, kPlain.timestamp_ms);
  EXPECT_EQ(UserOfKey(key), kUser);
  const std::string base_key = BaseKey(kUser, kFingerprintA);
  StateRecord base;
  ASSERT_TRUE(DecodeState(base_key, StateValueOf(base_key, ExampleBase()), base));
  EXPECT_EQ(base.lineage, ExampleBase().lineage);
  EXPECT_EQ(base.payload, ExampleBase().payload);
  EXPECT_TRUE(IsBaseKey(base_key));
  EXPECT_FALSE(IsBaseKey(StateKey(kUser, kFingerprintA)));
  EXPECT_EQ(FingerprintOfKey(base_key), FingerprintOfKey(StateKey(kUser, kFingerprintA)));
}

TEST(RecordCodec, RefusesATruncationOfNothingAndABaseOfAWholeLog) {
  const std::string key = UserPrefix(kUser);
  Truncation truncation = ExampleTruncation();
  truncation.lineage.event_count = 0;
  EXPECT_FALSE(DecodesTruncation(key, TruncationValueOf(key, truncation)));
  truncation = ExampleTruncation();
  truncation.lineage.watermark.clear();
  EXPECT_FALSE(DecodesTruncation(key, TruncationValueOf(key, truncation)));
  const std::string base_key = BaseKey(kUser, kFingerprintA);
  EXPECT_FALSE(DecodesState(base_key, StateValueOf(base_key, ExampleState())));
}

// Each altered copy lies in memory of exactly its size, so that a sanitizer sees any read past it.
template <typename Decoder>
void ExpectEveryDamageSeen(const std::string& key, const std::string& value, Decoder decodes) {
  ASSERT_TRUE(decodes(key, value));
  for (size_t size = 0; size < value.size(); ++size) {
    const std::vector<char> cut(value.begin(), value.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_FALSE(decodes(key, std::string_view(cut.data(), cut.size()))) << "value cut to " << size;
  }
  for (size_t size = 0; size < key.size(); ++size) {
    const std::vector<char> cut(key.begin(), key.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_FALSE(decodes(std::string_view(cut.data(), cut.size()), value)) << "key cut to " << size;
  }
  for (size_t bit = 0; bit < 8 * value.size(); ++bit) {
    std::string flipped = value;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decodes(key, flipped)) << "value bit " << bit;
  }
  for (size_t bit = 0; bit < 8 * key.size(); ++bit) {
    std::string flipped = key;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decodes(flipped, value)) << "key bit " << bit;
  }
  EXPECT_FALSE(decodes(key, absl::StrCat(value, "x")));
  EXPECT_FALSE(decodes(absl::StrCat(key, "x"), value));
}

TEST(RecordCodec, SeesEveryCutAndEveryFlippedBitOfAnEvent) {
  for (const Event& event : {kPlain, kWithId, kLate}) {
    const std::string key = KeyOf(kUser, event);
    ExpectEveryDamageSeen(key, ValueOf(key, event), Decodes);
  }
}

TEST(RecordCodec, SeesEveryCutAndEveryFlippedBitOfAState) {
  const std::string key = StateKey(kUser, kFingerprintA);
  ExpectEveryDamageSeen(key, StateValueOf(key, ExampleState()), DecodesState);
}

TEST(RecordCodec, SeesEveryCutAndEveryFlippedBitOfATruncationAndABase) {
  const std::string key = UserPrefix(kUser);
  ExpectEveryDamageSeen(key, TruncationValueOf(key, ExampleTruncation()), DecodesTruncation);
  const std::string base_key = BaseKey(kUser, kFingerprintA);
  ExpectEveryDamageSeen(base_key, StateValueOf(base_key, ExampleBase()), DecodesState);
}

TEST(RecordCodec, RefusesALatePlaceThatIsNotBehindTheEvent) {
  Event event = kPlain;
  const std::string key = KeyOf(kUser, event);
  for (const Position& behind : {PositionOf(kPlain), PositionOf(kWithId), Position("x")}) {
    event.late = {behind, 1};
    EXPECT_FALSE(Decodes(key, ValueOf(key, event)));
  }
}

TEST(RecordCodec, RefusesAStateOfAnotherUserOrModel) {
  const std::string key = StateKey(kUser, kFingerprintA);
  const std::string value = StateValueOf(key, ExampleState());
  EXPECT_FALSE(DecodesState(StateKey("bob", kFingerprintA), value));
  EXPECT_FALSE(DecodesState(StateKey(kUser, kFingerprintB), value));
}

TEST(RecordCodec, SurvivesGarbage) {
  std::mt19937_64 random = PrintedRandom("garbage");
  const std::string event_key = KeyOf(kUser, kPlain);
  const std::string state_key = StateKey(kUser, kFingerprintA);
  const std::string state_value = StateValueOf(state_key, ExampleState());
  for (int i = 0; i < 100'000; ++i) {
    std::vector<char> bytes(random() % 200);
    for (char& byte : bytes) byte = static_cast<char>(random());
    if (i % 2 == 0) {  // half of them begin as a state does
      std::copy_n(state_value.begin(), std::min(bytes.size(), state_value.size() / 2),
                  bytes.begin());
    }
    const std::string_view garbage(bytes.data(), bytes.size());
    EXPECT_FALSE(Decodes(event_key, garbage));
    EXPECT_FALSE(Decodes(garbage, garbage));
    EXPECT_FALSE(DecodesState(state_key, garbage));
    EXPECT_FALSE(DecodesState(garbage, garbage));
    EXPECT_FALSE(DecodesTruncation(UserPrefix(kUser), garbage));
    EXPECT_FALSE(DecodesTruncation(garbage, garbage));
    UserOfKey(garbage);
    DecodePosition(garbage);
    DecodeFormatVersion(garbage);
  }
}

TEST(RecordCodec, CountsAreReadBack) {
  std::string last;
  for (const int64_t day : {int64_t{std::numeric_limits<int32_t>::min()}, int64_t{-1}, int64_t{0},
                            int64_t{19'675}, int64_t{std::numeric_limits<int32_t>::max()}}) {
    const std::string key = UseKey(day);
    EXPECT_GT(key, last);
    EXPECT_LT(key, UseEnd());
    EXPECT_EQ(DecodeUseKey(key), day);
    EXPECT_EQ(DecodeUseKey(key + "x"), std::nullopt);
    EXPECT_EQ(DecodeUseKey(key.substr(1)), std::nullopt);
    last = key;
  }
  std::vector<std::pair<std::string, int64_t>> uses = {
      {std::string("\0", 1), 1},
      {"a", -1},
      {"aa", 63},
      {"b", -64},
      {"c", std::numeric_limits<int64_t>::max()},
      {std::string(256, '\xff'), std::numeric_limits<int64_t>::min()}};
  std::string row;
  for (const auto& [item, events] : uses) AppendUse(item, events, row);
  std::vector<std::pair<std::string, int64_t>> read;
  UseReader reader(row);
  while (reader.Next()) read.emplace_back(reader.item_id(), reader.events());
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(read, uses);
}

TEST(RecordCodec, CountsThatNobodyWroteAreRefused) {
  const auto reads = [](std::string_view row) {
    UseReader reader(row);
    while (reader.Next()) {
    }
    EXPECT_FALSE(reader.Next());
    return reader.ok();
  };
  EXPECT_TRUE(reads(""));
  std::string row;
  AppendUse("item", 200, row);
  EXPECT_TRUE(reads(row));
  for (size_t size = 1; size < row.size(); ++size) EXPECT_FALSE(reads(row.substr(0, size)));
  EXPECT_FALSE(reads(row + row)) << "an item twice";
  using namespace std::string_view_literals;
  EXPECT_FALSE(reads("\0a\0"sv)) << "no events";
  EXPECT_FALSE(reads("\0a\x82\0"sv)) << "a byte too many";
  EXPECT_FALSE(reads("\0b\2\0a\2"sv)) << "out of order";
  EXPECT_TRUE(reads("\0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\1"sv));
  EXPECT_FALSE(reads("\0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\2"sv)) << "65 bits";
}

TEST(RecordCodec, FormatVersionIsReadBackAndChecked) {
  const auto read = DecodeFormatVersion(EncodeFormatVersion({7, 3}));
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->version, 7u);
  EXPECT_EQ(read->min_reader, 3u);
  EXPECT_FALSE(DecodeFormatVersion(EncodeFormatVersion({1, 2})).has_value());
  EXPECT_FALSE(DecodeFormatVersion("").has_value());
  EXPECT_FALSE(DecodeFormatVersion(std::string(9, '\1')).has_value());
}

TEST(Position, KeepsTheTimestamp) {
  for (int64_t t : {std::numeric_limits<int64_t>::min(), int64_t{-1}, int64_t{0}, int64_t{1},
                    std::numeric_limits<int64_t>::max()}) {
    for (const char* id : {"", "e"}) {
      const auto read = TimestampOf(PositionOf({"item", t, id}));
      ASSERT_TRUE(read.ok());
      EXPECT_EQ(*read, t);
    }
  }
  for (const char* bad : {"", "12345678", "12345678\x03x", "12345678\x01"}) {
    EXPECT_EQ(TimestampOf(bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(Position, OrderIsTimestampThenEventId) {
  const std::vector<Event> ordered = {{"i", std::numeric_limits<int64_t>::min(), "z"},
                                      {"i", -256, "z"},
                                      {"i", -1, "a"},
                                      {"i", 0, "a"},
                                      {"i", 0, "ab"},
                                      {"i", 0, "b"},
                                      {"i", 0, ""},
                                      {"i", 255, "a"},
                                      {"i", 256, "a"},
                                      {"i", std::numeric_limits<int64_t>::max(), "a"}};
  for (size_t i = 1; i < ordered.size(); ++i) {
    EXPECT_LT(PositionOf(ordered[i - 1]), PositionOf(ordered[i])) << i;
  }
}

TEST(Position, WithoutEventIdTheItemTellsEventsApart) {
  EXPECT_EQ(PositionOf({"a", 1, ""}), PositionOf({"a", 1, ""}));
  EXPECT_NE(PositionOf({"a", 1, ""}), PositionOf({"b", 1, ""}));
  EXPECT_EQ(PositionOf({"a", 1, "id"}), PositionOf({"b", 1, "id"}));
}

TEST(Lineage, DependsOnEveryCoveredEventAndItsOrder) {
  Lineage one;
  one.Extend("p1", "a");
  one.Extend("p2", "b");
  Lineage same;
  same.Extend("p1", "a");
  same.Extend("p2", "b");
  EXPECT_EQ(one, same);
  EXPECT_EQ(one.event_count, 2u);
  EXPECT_EQ(one.watermark, "p2");
  Lineage swapped;
  swapped.Extend("p2", "b");
  swapped.Extend("p1", "a");
  EXPECT_NE(one.hash, swapped.hash);
  Lineage shifted;  // the same bytes, cut elsewhere
  shifted.Extend("p1", "a");
  shifted.Extend("p", "2b");
  EXPECT_NE(one.hash, shifted.hash);
}

TEST(Lineage, WatermarkIsTheGreatestPosition) {
  Lineage lineage;
  lineage.Extend("p2", "b");
  lineage.Extend("p1", "late");
  EXPECT_EQ(lineage.watermark, "p2");
  EXPECT_EQ(lineage.event_count, 2u);
}

TEST(Position, FoldPlaceIsTheOwnOneOrBehindAnother) {
  EXPECT_EQ(FoldPlaceOf(kPlain), (FoldPlace{PositionOf(kPlain), 0}));
  EXPECT_EQ(FoldPlaceOf(kLate), (FoldPlace{PositionOf(kPlain), 1}));
  EXPECT_EQ(FoldTimeMs(kPlain), kPlain.timestamp_ms);
  EXPECT_EQ(FoldTimeMs(kLate), kPlain.timestamp_ms);
  EXPECT_LT(FoldPlaceOf(kPlain), FoldPlaceOf(kLate));
  EXPECT_LT(FoldPlaceOf(kLate), FoldPlaceOf({"m3", kPlain.timestamp_ms + 1, ""}));
}

TEST(Prefix, EndIsTheFirstKeyBehind) {
  EXPECT_EQ(PrefixEnd("ab"), "ac");
  EXPECT_EQ(PrefixEnd(std::string("a\xff", 2)), "b");
  EXPECT_EQ(PrefixEnd(std::string("a\x7f", 2)), std::string("a\x80", 2));
}

}  // namespace
}  // namespace tim4rec
