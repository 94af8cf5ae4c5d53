// The safetensors format: 8 bytes little-endian header length, a JSON header, then the tensors'
// bytes. Readable and writable by the Python ecosystem.
#ifndef TIM4REC_MODEL_WEIGHTS_SAFETENSORS_H_
#define TIM4REC_MODEL_WEIGHTS_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

enum class DType { kF32, kF64, kI64 };

// A read-only file, mapped into memory. Whoever replaces a mapped file must rename a new one into
// place: truncating it under a reader ends the reader's process.
class MappedFile {
 public:
  // NOT_FOUND if absent, INVALID_ARGUMENT if not a regular file, UNAVAILABLE for other failures.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  // The same for `name` in an open directory, called `dir` in errors.
  static absl::StatusOr<std::unique_ptr<MappedFile>> OpenAt(int dir_fd, const std::string& dir,
                                                            const std::string& name);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  static absl::StatusOr<std::unique_ptr<MappedFile>> Map(int fd, const std::string& path);

  const std::byte* data_;
  size_t size_;
};

struct SafeTensor {
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // row-major, aligned to the element size

  // Null-sized if the dtype is another.
  std::span<const float> f32() const;
  std::span<const double> f64() const;
  std::span<const int64_t> i64() const;
};

// Parses a whole file's bytes; the result views them. Every bound is checked: INVALID_ARGUMENT,
// without the file's name, on anything malformed, on a gap or overlap between tensors, on a
// misaligned tensor and on a dtype other than F32, F64 and I64. `bytes` must be 8-byte aligned.
absl::StatusOr<std::map<std::string, SafeTensor>> ParseSafetensors(
    std::span<const std::byte> bytes);

// Collects tensors, then lays them out in a fixed order: equal content gives equal bytes.
class SafetensorsWriter {
 public:
  // The data must live as long as the writer. Adding a name twice replaces the first.
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const float> data);
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const double> data);
  void Add(const std::string& name, std::vector<int64_t> shape, std::span<const int64_t> data);

  // The file's header; the tensors' bytes follow in pieces().
  std::string Header() const;
  std::vector<std::span<const std::byte>> pieces() const;

 private:
  // Eight-byte types first, so that every tensor is aligned; then by name.
  std::vector<std::pair<std::string, const SafeTensor*>> Ordered() const;

  std::map<std::string, SafeTensor> tensors_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_SAFETENSORS_H_
