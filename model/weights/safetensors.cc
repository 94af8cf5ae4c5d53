#include "model/weights/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian on disk");

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 16 << 20;
constexpr size_t kMaxRank = 8;

size_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 8; }

const char* NameOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF64:
      return "F64";
    case DType::kI64:
      return "I64";
  }
  return "";
}

std::optional<DType> DTypeOf(const std::string& name) {
  for (DType dtype : {DType::kF32, DType::kF64, DType::kI64}) {
    if (name == NameOf(dtype)) return dtype;
  }
  return std::nullopt;
}

absl::Status Malformed(const std::string& what) { return absl::InvalidArgumentError(what); }

std::optional<uint64_t> Unsigned(const Json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

// Parses, refusing repeated keys of one object, which JSON readers otherwise resolve differently.
std::optional<Json> ParseStrict(std::string_view text, bool* repeated) {
  std::vector<std::set<std::string>> keys;
  auto callback = [&](int, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) *repeated = true;
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        break;
      default:
        break;
    }
    return true;
  };
  Json json = Json::parse(text, callback, /*allow_exceptions=*/false);
  if (json.is_discarded()) return std::nullopt;
  return json;
}

struct Placed {
  uint64_t begin;
  uint64_t end;
  std::string name;
};

// Reads one entry of the header; `data` is what follows the header.
absl::StatusOr<SafeTensor> ParseEntry(const std::string& name, const Json& entry,
                                      std::span<const std::byte> data, Placed* placed) {
  if (!entry.is_object() || entry.size() != 3 || !entry.contains("dtype") ||
      !entry.contains("shape") || !entry.contains("data_offsets")) {
    return Malformed(absl::StrCat("tensor ", name, ": expected dtype, shape and data_offsets"));
  }
  SafeTensor tensor;
  const Json& dtype = entry["dtype"];
  const auto parsed_dtype =
      dtype.is_string() ? DTypeOf(dtype.get<std::string>()) : std::optional<DType>();
  if (!parsed_dtype.has_value()) {
    return Malformed(absl::StrCat("tensor ", name, ": dtype must be F32, F64 or I64"));
  }
  tensor.dtype = *parsed_dtype;

  const Json& shape = entry["shape"];
  if (!shape.is_array() || shape.size() > kMaxRank) {
    return Malformed(absl::StrCat("tensor ", name, ": shape must be a list of at most ", kMaxRank));
  }
  uint64_t bytes = SizeOf(tensor.dtype);
  for (const Json& extent : shape) {
    const auto value = Unsigned(extent);
    if (!value.has_value() || *value > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(bytes, *value, &bytes)) {
      return Malformed(absl::StrCat("tensor ", name, ": shape is not a list of sizes"));
    }
    tensor.shape.push_back(static_cast<int64_t>(*value));
  }

  const Json& offsets = entry["data_offsets"];
  const bool pair = offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() &&
                    offsets[1].is_number_unsigned();
  const uint64_t begin = pair ? offsets[0].get<uint64_t>() : 0;
  const uint64_t end = pair ? offsets[1].get<uint64_t>() : 0;
  if (!pair || begin > end || end > data.size()) {
    return Malformed(absl::StrCat("tensor ", name, ": data_offsets outside the file's ",
                                  data.size(), " data bytes"));
  }
  if (end - begin != bytes) {
    return Malformed(absl::StrCat("tensor ", name, ": data_offsets span ", end - begin,
                                  " bytes, the shape needs ", bytes));
  }
  tensor.bytes = data.subspan(begin, bytes);
  if (reinterpret_cast<uintptr_t>(tensor.bytes.data()) % SizeOf(tensor.dtype) != 0) {
    return Malformed(absl::StrCat("tensor ", name, ": not aligned to its element size"));
  }
  *placed = {begin, end, name};
  return tensor;
}

// The format allows neither holes nor overlaps nor bytes after the last tensor.
absl::Status CheckContiguous(std::vector<Placed> placed, uint64_t size) {
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const Placed& tensor : placed) {
    if (tensor.begin != expected) {
      return Malformed(absl::StrCat("tensor ", tensor.name, ": begins at data byte ", tensor.begin,
                                    ", the one before it ends at ", expected));
    }
    expected = tensor.end;
  }
  if (expected != size) {
    return Malformed(absl::StrCat("the tensors end at data byte ", expected, " of ", size));
  }
  return absl::OkStatus();
}

template <typename T>
std::span<const T> As(const SafeTensor& tensor, DType dtype) {
  if (tensor.dtype != dtype) return {};
  return {reinterpret_cast<const T*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(T)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  return Map(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK), path);
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::OpenAt(int dir_fd, const std::string& dir,
                                                               const std::string& name) {
  return Map(openat(dir_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK),
             absl::StrCat(dir, "/", name));
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Map(int fd, const std::string& path) {
  if (fd < 0) {
    const std::string what = absl::StrCat(path, ": ", std::strerror(errno));
    if (errno == ENOENT || errno == ENOTDIR) return absl::NotFoundError(what);
    return absl::UnavailableError(what);
  }
  struct stat info;
  void* data = nullptr;
  absl::Status status;
  if (fstat(fd, &info) != 0) {
    status = absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  } else if (info.st_size > 0) {
    data = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      status = absl::UnavailableError(absl::StrCat(path, ": mmap: ", std::strerror(errno)));
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return std::unique_ptr<MappedFile>(
      new MappedFile(static_cast<const std::byte*>(data), static_cast<size_t>(info.st_size)));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

std::span<const float> SafeTensor::f32() const { return As<float>(*this, DType::kF32); }
std::span<const double> SafeTensor::f64() const { return As<double>(*this, DType::kF64); }
std::span<const int64_t> SafeTensor::i64() const { return As<int64_t>(*this, DType::kI64); }

absl::StatusOr<std::map<std::string, SafeTensor>> ParseSafetensors(
    std::span<const std::byte> bytes) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return Malformed("shorter than the 8 bytes of the header's length");
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const std::span<const std::byte> rest = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes || header_bytes > rest.size()) {
    return Malformed(absl::StrCat("header length ", header_bytes, " exceeds the file (",
                                  bytes.size(), " bytes) or the limit of ", kMaxHeaderBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(rest.data()), header_bytes);
  const std::span<const std::byte> data = rest.subspan(header_bytes);
  bool repeated = false;
  const std::optional<Json> header = ParseStrict(text, &repeated);
  if (!header.has_value() || !header->is_object()) {
    return Malformed("the header is not a JSON object");
  }
  if (repeated) return Malformed("the header names a tensor twice");

  std::map<std::string, SafeTensor> tensors;
  std::vector<Placed> placed;
  for (auto it = header->begin(); it != header->end(); ++it) {
    if (it.key() == "__metadata__") continue;
    absl::StatusOr<SafeTensor> tensor =
        ParseEntry(it.key(), it.value(), data, &placed.emplace_back());
    if (!tensor.ok()) return tensor.status();
    tensors.emplace(it.key(), *std::move(tensor));
  }
  if (absl::Status status = CheckContiguous(std::move(placed), data.size()); !status.ok()) {
    return status;
  }
  return tensors;
}

void SafetensorsWriter::Add(const std::string& name, std::vector<int64_t> shape,
                            std::span<const float> data) {
  tensors_[name] = {DType::kF32, std::move(shape), std::as_bytes(data)};
}

void SafetensorsWriter::Add(const std::string& name, std::vector<int64_t> shape,
                            std::span<const double> data) {
  tensors_[name] = {DType::kF64, std::move(shape), std::as_bytes(data)};
}

void SafetensorsWriter::Add(const std::string& name, std::vector<int64_t> shape,
                            std::span<const int64_t> data) {
  tensors_[name] = {DType::kI64, std::move(shape), std::as_bytes(data)};
}

std::vector<std::pair<std::string, const SafeTensor*>> SafetensorsWriter::Ordered() const {
  std::vector<std::pair<std::string, const SafeTensor*>> ordered;
  for (const auto& [name, tensor] : tensors_) ordered.emplace_back(name, &tensor);
  std::stable_partition(ordered.begin(), ordered.end(),
                        [](const auto& entry) { return SizeOf(entry.second->dtype) == 8; });
  return ordered;
}

std::string SafetensorsWriter::Header() const {
  Json json = Json::object();
  uint64_t offset = 0;
  for (const auto& [name, tensor] : Ordered()) {
    const uint64_t end = offset + tensor->bytes.size();
    json[name] = Json{{"dtype", NameOf(tensor->dtype)},
                      {"shape", tensor->shape},
                      {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string header(reinterpret_cast<const char*>(&length), sizeof(length));
  return header + text;
}

std::vector<std::span<const std::byte>> SafetensorsWriter::pieces() const {
  std::vector<std::span<const std::byte>> pieces;
  for (const auto& [name, tensor] : Ordered()) pieces.push_back(tensor->bytes);
  return pieces;
}

}  // namespace tim4rec
