#include "store/wal_tail.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace tim4rec {
namespace {

// The size itself if the file cannot be read.
uint64_t SizeWithoutZeroTail(const std::filesystem::path& file, uint64_t size) {
  constexpr uint64_t kChunkBytes = 64 << 10;
  std::ifstream bytes(file, std::ios::binary);
  std::string chunk;
  for (uint64_t end = size; end > 0; end -= chunk.size()) {
    chunk.resize(std::min(kChunkBytes, end));
    bytes.seekg(static_cast<std::streamoff>(end - chunk.size()));
    if (!bytes.read(chunk.data(), static_cast<std::streamsize>(chunk.size()))) return size;
    const size_t last = chunk.find_last_not_of('\0');
    if (last != std::string::npos) return end - chunk.size() + last + 1;
  }
  return 0;
}

}  // namespace

std::vector<ZeroTail> FindZeroTails(const std::string& dir) {
  std::vector<ZeroTail> tails;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() != ".log") continue;
    const uint64_t size = entry.file_size(error);
    if (error) continue;
    const uint64_t kept = SizeWithoutZeroTail(entry.path(), size);
    if (kept != size) tails.push_back({entry.path().string(), size, kept});
  }
  // The names are numbers of at least six digits.
  std::sort(tails.begin(), tails.end(), [](const ZeroTail& a, const ZeroTail& b) {
    return a.file.size() != b.file.size() ? a.file.size() > b.file.size() : a.file > b.file;
  });
  return tails;
}

bool Cut(const ZeroTail& tail) {
  std::error_code error;
  std::filesystem::resize_file(tail.file, tail.size_without_zeros, error);
  return !error;
}

bool Restore(const ZeroTail& tail) {
  std::error_code error;
  std::filesystem::resize_file(tail.file, tail.size, error);  // extends with zeros
  return !error;
}

}  // namespace tim4rec
