#include "server/security/secret_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

constexpr off_t kMostBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const char* key, const std::string& path,
                                          Privacy privacy) {
  const auto fault = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(key, ": ", path, ": ", what));
  };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return fault(std::strerror(errno));
  const absl::Cleanup closer = [fd] { close(fd); };
  struct stat about;
  if (fstat(fd, &about) != 0) return fault(std::strerror(errno));
  if (!S_ISREG(about.st_mode)) return fault("is no file");
  if (about.st_size > kMostBytes) return fault("is larger than 1 MiB");
  if (privacy == Privacy::kSecret && (about.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return fault(absl::StrCat("everybody may read it: chmod o= ", path,
                              " (Kubernetes: defaultMode: 0440 of the secret's volume)"));
  }
  std::string text(static_cast<size_t>(about.st_size), '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t n = read(fd, text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fault(std::strerror(errno));
    if (n == 0) break;
    size += static_cast<size_t>(n);
  }
  text.resize(size);
  return text;
}

}  // namespace tim4rec
