// Input: the file. A flipped bit would end at the archive's checksums: they are made right first.
#include "model/weights/torch_checkpoint.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "model/weights/zip_reader.h"

namespace {

uint32_t Load(const std::vector<uint8_t>& bytes, size_t at, int size) {
  uint32_t value = 0;
  for (int i = 0; i < size; ++i) value |= uint32_t{bytes[at + i]} << (8 * i);
  return value;
}

uint32_t Crc32(const uint8_t* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries = {};
    for (uint32_t n = 0; n < 256; ++n) {
      uint32_t c = n;
      for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      entries[n] = c;
    }
    return entries;
  }();
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < size; ++i) crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

// Of every entry of the central directory that lies within the file.
void CorrectChecksums(std::vector<uint8_t>* file) {
  constexpr uint8_t kCentral[] = {'P', 'K', 1, 2};
  for (size_t at = 0; at + 46 <= file->size(); ++at) {
    if (std::memcmp(file->data() + at, kCentral, 4) != 0) continue;
    const uint64_t size = Load(*file, at + 20, 4);
    const uint64_t local = Load(*file, at + 42, 4);
    if (local + 30 > file->size()) continue;
    const uint64_t begin = local + 30 + Load(*file, local + 26, 2) + Load(*file, local + 28, 2);
    if (begin + size > file->size()) continue;
    const uint32_t crc = Crc32(file->data() + begin, size);
    for (int i = 0; i < 4; ++i) {
      (*file)[at + 16 + i] = (*file)[local + 14 + i] = static_cast<uint8_t>(crc >> (8 * i));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> file(data, data + size);
  (void)tim4rec::ReadStoredZip(std::as_bytes(std::span(file)));
  CorrectChecksums(&file);
  (void)tim4rec::ReadTorchCheckpoint(std::as_bytes(std::span(file)));
  return 0;
}
