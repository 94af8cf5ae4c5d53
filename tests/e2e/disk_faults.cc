// Makes a process's disk fail: to be preloaded (LD_PRELOAD) into the real server.
//
// DISK_FAULTS_DIR: calls on files below it fail. DISK_FAULTS_SWITCH: a file of one byte that says
// how, while it says so: '-' not at all, 'f' full, 'o' read-only, 'w' writes fail, 's' syncs fail,
// 'r' reads of table files fail.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>

namespace {

const volatile char* Switch() {
  static const volatile char* const mapped = [] {
    const char* path = getenv("DISK_FAULTS_SWITCH");
    const int fd = path == nullptr ? -1 : static_cast<int>(openat(AT_FDCWD, path, O_RDONLY));
    if (fd < 0) abort();
    void* at = mmap(nullptr, 1, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) abort();
    return static_cast<const volatile char*>(at);
  }();
  return mapped;
}

bool Watched(const char* path) {
  static const char* const directory = getenv("DISK_FAULTS_DIR");
  return directory != nullptr && strncmp(path, directory, strlen(directory)) == 0;
}

bool Watched(int fd) {
  char link[64];
  char path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return false;
  path[size] = '\0';
  return Watched(path);
}

// The error that a call which writes is to fail with; 0 for none.
template <typename File>
int WriteError(File file) {
  const char how = *Switch();
  const int error = how == 'f' ? ENOSPC : how == 'o' ? EROFS : how == 'w' ? EIO : 0;
  return error != 0 && Watched(file) ? error : 0;
}

template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// Calls the C library's function of that name, unless `error` says otherwise.
#define OR_FAIL(type, name, error, ...)                    \
  do {                                                     \
    static auto* const next = Next<decltype(name)>(#name); \
    const int failure = (error);                           \
    if (failure == 0) return next(__VA_ARGS__);            \
    errno = failure;                                       \
    return static_cast<type>(-1);                          \
  } while (false)

extern "C" {

ssize_t write(int fd, const void* data, size_t size) {
  OR_FAIL(ssize_t, write, WriteError(fd), fd, data, size);
}
ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  OR_FAIL(ssize_t, pwrite, WriteError(fd), fd, data, size, at);
}
int fallocate(int fd, int mode, off_t at, off_t size) {
  OR_FAIL(int, fallocate, WriteError(fd), fd, mode, at, size);
}
int fdatasync(int fd) { OR_FAIL(int, fdatasync, *Switch() == 's' && Watched(fd) ? EIO : 0, fd); }
int fsync(int fd) { OR_FAIL(int, fsync, *Switch() == 's' && Watched(fd) ? EIO : 0, fd); }
ssize_t pread(int fd, void* data, size_t size, off_t at) {
  OR_FAIL(ssize_t, pread, *Switch() == 'r' && Watched(fd) ? EIO : 0, fd, data, size, at);
}
int rename(const char* from, const char* to) noexcept {
  OR_FAIL(int, rename, WriteError(to), from, to);
}
int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  const bool writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
  OR_FAIL(int, open, writes ? WriteError(path) : 0, path, flags, mode);
}

}  // extern "C"
