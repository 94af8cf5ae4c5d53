#include "model/weights/zip_reader.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

using Bytes = std::span<const std::byte>;

// Field offsets are those of PKWARE's APPNOTE.TXT, version 6.3.
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr size_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22;
constexpr size_t kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr size_t kMaxComment = 65535;
constexpr uint16_t kZip64Extra = 1;
constexpr uint16_t kEncrypted = 1;

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("zip archive: ", what));
}

template <typename T>
T Load(Bytes bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

uint32_t Crc32(Bytes bytes) {
  static const auto* const table = [] {
    auto* entries = new std::array<uint32_t, 256>;
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xedb88320u : 0);
      (*entries)[i] = value;
    }
    return entries;
  }();
  uint32_t crc = ~0u;
  for (const std::byte byte : bytes) {
    crc = (crc >> 8) ^ (*table)[(crc ^ static_cast<uint32_t>(byte)) & 0xff];
  }
  return ~crc;
}

struct Directory {
  uint64_t entries;
  uint64_t offset;
  uint64_t bytes;
};

// The record at the file's end, which a comment may follow.
std::optional<size_t> FindEnd(Bytes file) {
  if (file.size() < kEndBytes) return std::nullopt;
  const size_t last = file.size() - kEndBytes;
  const size_t first = last > kMaxComment ? last - kMaxComment : 0;
  for (size_t at = last + 1; at-- > first;) {
    if (Load<uint32_t>(file, at) == kEndSignature &&
        Load<uint16_t>(file, at + 20) == file.size() - at - kEndBytes) {
      return at;
    }
  }
  return std::nullopt;
}

absl::StatusOr<Directory> FindDirectory(Bytes file) {
  const std::optional<size_t> end = FindEnd(file);
  if (!end.has_value()) return Malformed("no end record; is the file truncated?");
  if (Load<uint16_t>(file, *end + 4) != 0 || Load<uint16_t>(file, *end + 6) != 0) {
    return Malformed("it spans several volumes");
  }
  Directory directory = {Load<uint16_t>(file, *end + 10), Load<uint32_t>(file, *end + 16),
                         Load<uint32_t>(file, *end + 12)};
  if (*end >= kLocator64Bytes &&
      Load<uint32_t>(file, *end - kLocator64Bytes) == kLocator64Signature) {
    const uint64_t at = Load<uint64_t>(file, *end - kLocator64Bytes + 8);
    if (at > file.size() || file.size() - at < kEnd64Bytes ||
        Load<uint32_t>(file, at) != kEnd64Signature) {
      return Malformed("the zip64 end record is not where its locator points");
    }
    directory = {Load<uint64_t>(file, at + 32), Load<uint64_t>(file, at + 48),
                 Load<uint64_t>(file, at + 40)};
  }
  if (directory.offset > file.size() || directory.bytes > file.size() - directory.offset ||
      directory.entries > directory.bytes / kCentralBytes) {
    return Malformed("the directory lies outside the file");
  }
  return directory;
}

struct Entry {
  std::string name;
  uint64_t bytes;
  uint64_t local_offset;
  uint32_t crc;
};

// Replaces the values that say "see the zip64 field", in the order in which that field has them.
bool ApplyZip64(Bytes extra, std::span<uint64_t* const> values) {
  while (extra.size() >= 4) {
    const auto id = Load<uint16_t>(extra, 0);
    const size_t length = Load<uint16_t>(extra, 2);
    extra = extra.subspan(4);
    if (length > extra.size()) return false;
    if (id == kZip64Extra) {
      Bytes field = extra.first(length);
      for (uint64_t* value : values) {
        if (*value != UINT32_MAX) continue;
        if (field.size() < 8) return false;
        *value = Load<uint64_t>(field, 0);
        field = field.subspan(8);
      }
      return true;
    }
    extra = extra.subspan(length);
  }
  return true;
}

// Reads the record at the front of `directory` and takes it off.
absl::StatusOr<Entry> TakeEntry(Bytes* directory) {
  const Bytes record = *directory;
  if (record.size() < kCentralBytes || Load<uint32_t>(record, 0) != kCentralSignature) {
    return Malformed("a damaged directory record");
  }
  const size_t name_bytes = Load<uint16_t>(record, 28), extra_bytes = Load<uint16_t>(record, 30),
               comment_bytes = Load<uint16_t>(record, 32);
  const size_t total = kCentralBytes + name_bytes + extra_bytes + comment_bytes;
  if (total > record.size()) return Malformed("a directory record beyond the directory");
  Entry entry;
  entry.name.assign(reinterpret_cast<const char*>(record.data()) + kCentralBytes, name_bytes);
  if (Load<uint16_t>(record, 8) & kEncrypted) {
    return Malformed(absl::StrCat("entry ", entry.name, " is encrypted"));
  }
  if (Load<uint16_t>(record, 10) != 0) {
    return Malformed(absl::StrCat("entry ", entry.name,
                                  " is compressed, torch.save stores its entries as they are"));
  }
  uint64_t compressed = Load<uint32_t>(record, 20);
  entry.bytes = Load<uint32_t>(record, 24);
  entry.local_offset = Load<uint32_t>(record, 42);
  entry.crc = Load<uint32_t>(record, 16);
  uint64_t* const values[] = {&entry.bytes, &compressed, &entry.local_offset};
  if (!ApplyZip64(record.subspan(kCentralBytes + name_bytes, extra_bytes), values) ||
      compressed != entry.bytes) {
    return Malformed(absl::StrCat("entry ", entry.name, " has sizes that disagree"));
  }
  *directory = record.subspan(total);
  return entry;
}

absl::StatusOr<Bytes> DataOf(Bytes file, const Entry& entry) {
  const uint64_t at = entry.local_offset;
  if (at > file.size() || file.size() - at < kLocalBytes ||
      Load<uint32_t>(file, at) != kLocalSignature) {
    return Malformed(absl::StrCat("entry ", entry.name, " is not where the directory points"));
  }
  const uint64_t begin =
      at + kLocalBytes + Load<uint16_t>(file, at + 26) + Load<uint16_t>(file, at + 28);
  if (begin > file.size() || entry.bytes > file.size() - begin) {
    return Malformed(absl::StrCat("entry ", entry.name, " extends beyond the file"));
  }
  const Bytes data = file.subspan(begin, entry.bytes);
  if (Crc32(data) != entry.crc) {
    return absl::DataLossError(
        absl::StrCat("zip archive: entry ", entry.name, " does not have its checksum"));
  }
  return data;
}

}  // namespace

absl::StatusOr<std::map<std::string, Bytes>> ReadStoredZip(Bytes file) {
  const auto directory = FindDirectory(file);
  if (!directory.ok()) return directory.status();
  Bytes records = file.subspan(directory->offset, directory->bytes);
  std::map<std::string, Bytes> entries;
  uint64_t claimed = 0;  // entries may not share bytes, or checking them costs without bound
  for (uint64_t i = 0; i < directory->entries; ++i) {
    const auto entry = TakeEntry(&records);
    if (!entry.ok()) return entry.status();
    if (__builtin_add_overflow(claimed, entry->bytes, &claimed) || claimed > file.size()) {
      return Malformed("its entries claim more bytes than the file has");
    }
    const auto data = DataOf(file, *entry);
    if (!data.ok()) return data.status();
    if (!entries.emplace(entry->name, *data).second) {
      return Malformed(absl::StrCat("it has two entries ", entry->name));
    }
  }
  return entries;
}

}  // namespace tim4rec
