#include "model/weights/package_files.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tim4rec {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kColumns = "index\titem_id\ttitle\tcategories\ttrain_events";

// ---- items.tsv

void AppendEscaped(std::string_view text, std::string* out) {
  for (const char c : text) {
    switch (c) {
      case '\\':
        *out += "\\\\";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '|':
        *out += "\\p";
        break;
      default:
        *out += c;
    }
  }
}

// False on a backslash that begins no known escape.
bool Unescape(std::string_view text, std::string* out) {
  out->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      *out += text[i];
      continue;
    }
    constexpr std::string_view kCodes = "\\tnrp";
    constexpr std::string_view kMeanings = "\\\t\n\r|";
    if (++i == text.size()) return false;
    const size_t code = kCodes.find(text[i]);
    if (code == std::string_view::npos) return false;
    *out += kMeanings[code];
  }
  return true;
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

bool ParseCount(std::string_view text, int64_t* value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size() && *value >= 0;
}

bool ParseItem(std::string_view line, int64_t index, Item* item) {
  const std::vector<std::string_view> fields = Split(line, '\t');
  int64_t parsed_index = 0;
  if (fields.size() != 5 || !ParseCount(fields[0], &parsed_index) || parsed_index != index ||
      !Unescape(fields[1], &item->id) || !Unescape(fields[2], &item->title) ||
      !ParseCount(fields[4], &item->train_events)) {
    return false;
  }
  if (fields[3].empty()) return true;
  for (const std::string_view category : Split(fields[3], '|')) {
    if (!Unescape(category, &item->categories.emplace_back())) return false;
  }
  return true;
}

// ---- directories

absl::Status SystemError(const std::string& path, const char* what, int error) {
  const std::string text = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(text)
                                            : absl::UnavailableError(text);
}

absl::Status WriteFile(const std::string& path, const FilePieces& pieces) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError(path, "open", errno);
  absl::Cleanup close_fd = [fd] { close(fd); };
  for (std::span<const std::byte> piece : pieces) {
    while (!piece.empty()) {
      const ssize_t written = write(fd, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return SystemError(path, "write", errno);
      piece = piece.subspan(static_cast<size_t>(written));
    }
  }
  if (fsync(fd) != 0) return SystemError(path, "fsync", errno);
  return absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open", errno);
  absl::Cleanup close_fd = [fd] { close(fd); };
  // Some file systems cannot sync a directory and say so with EINVAL.
  if (fsync(fd) != 0 && errno != EINVAL) return SystemError(path, "fsync", errno);
  return absl::OkStatus();
}

// Whether `dir` may be replaced: absent, empty, or a package.
absl::Status CheckReplaceable(const fs::path& dir) {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(dir, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (status.type() != fs::file_type::directory) {
    return absl::FailedPreconditionError(
        absl::StrCat(dir.string(), ": exists and is not a directory; choose another or remove it"));
  }
  if (fs::exists(dir / "config.json", error) || fs::is_empty(dir, error)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(dir.string(),
                   ": is neither empty nor a model package (it has no config.json), and is not "
                   "replaced; choose another directory"));
}

// Moves what is not part of the package from the replaced directory to the new one.
absl::Status KeepOtherEntries(const fs::path& old_dir, const fs::path& new_dir,
                              const std::map<std::string, FilePieces>& files) {
  std::error_code error;
  std::vector<fs::path> kept;
  for (fs::directory_iterator it(old_dir, error), end; !error && it != end; it.increment(error)) {
    if (!files.contains(it->path().filename().string())) kept.push_back(it->path());
  }
  for (const fs::path& entry : kept) {
    if (error) break;
    fs::rename(entry, new_dir / entry.filename(), error);
  }
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(old_dir.string(),
                                             ": keeps entries of the replaced directory that "
                                             "could not be moved: ",
                                             error.message()));
}

// Makes `staged` visible as `dir`. Afterwards `staged` holds what `dir` was, or is absent.
absl::Status Publish(const std::string& staged, const std::string& dir) {
  if (renameat2(AT_FDCWD, staged.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) == 0) {
    return absl::OkStatus();
  }
  if (errno == ENOENT) {
    if (rename(staged.c_str(), dir.c_str()) == 0) return absl::OkStatus();
    return SystemError(dir, "rename", errno);
  }
  if (errno != EINVAL && errno != ENOSYS) return SystemError(dir, "rename", errno);
  // A file system without exchange: between the two renames a reader finds no package.
  const std::string aside = staged + ".old";
  if (rename(dir.c_str(), aside.c_str()) != 0) return SystemError(dir, "rename", errno);
  if (rename(staged.c_str(), dir.c_str()) != 0) {
    const int error = errno;
    (void)rename(aside.c_str(), dir.c_str());
    return SystemError(dir, "rename", error);
  }
  if (rename(aside.c_str(), staged.c_str()) != 0) return SystemError(aside, "rename", errno);
  return absl::OkStatus();
}

std::string RandomSuffix() {
  uint64_t value = 0;
  if (getrandom(&value, sizeof(value), 0) != sizeof(value)) value = static_cast<uint64_t>(getpid());
  return absl::StrFormat("%016x", value);
}

}  // namespace

std::string FormatItems(const std::vector<Item>& items) {
  std::string text = absl::StrCat(std::string(kColumns), "\n");
  for (size_t i = 1; i < items.size(); ++i) {
    absl::StrAppend(&text, i, "\t");
    AppendEscaped(items[i].id, &text);
    text += '\t';
    AppendEscaped(items[i].title, &text);
    text += '\t';
    for (size_t c = 0; c < items[i].categories.size(); ++c) {
      if (c > 0) text += '|';
      AppendEscaped(items[i].categories[c], &text);
    }
    absl::StrAppend(&text, "\t", items[i].train_events, "\n");
  }
  return text;
}

absl::StatusOr<std::vector<Item>> ParseItems(std::string_view text) {
  std::vector<Item> items(1);
  int64_t line_number = 0;
  while (!text.empty()) {
    ++line_number;
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", line_number, ": the file ends within a line"));
    }
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line_number == 1) {
      if (line == kColumns) continue;
      return absl::InvalidArgumentError(
          "line 1: expected the column names index, item_id, title, "
          "categories, train_events, separated by tabs");
    }
    const auto index = static_cast<int64_t>(items.size());
    if (!ParseItem(line, index, &items.emplace_back())) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", line_number, ": expected five fields separated by tabs: index ",
                       index, ", item id, title, categories, training events"));
    }
  }
  if (line_number == 0) return absl::InvalidArgumentError("the file is empty");
  return items;
}

absl::Status ReplaceDirectory(const std::string& dir,
                              const std::map<std::string, FilePieces>& files) {
  fs::path target(dir);
  if (!target.has_filename()) target = target.parent_path();  // "model/" names "model"
  if (target.empty() || target.filename() == "." || target.filename() == "..") {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", dir, "\": give the package's directory by its name"));
  }
  if (absl::Status status = CheckReplaceable(target); !status.ok()) return status;
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  std::error_code error;
  fs::create_directories(parent, error);
  const fs::path staged =
      parent / absl::StrCat(".", target.filename().string(), ".", RandomSuffix());
  if (!fs::create_directory(staged, error) || error) {
    return absl::UnavailableError(
        absl::StrCat(staged.string(), ": cannot be created: ", error.message()));
  }
  absl::Cleanup remove_staged = [&staged] {
    std::error_code ignored;
    fs::remove_all(staged, ignored);
  };
  for (const auto& [name, pieces] : files) {
    if (pieces.empty()) continue;
    if (absl::Status status = WriteFile((staged / name).string(), pieces); !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = SyncDirectory(staged.string()); !status.ok()) return status;
  if (absl::Status status = Publish(staged.string(), target.string()); !status.ok()) {
    return status;
  }
  if (fs::exists(staged, error)) {
    if (absl::Status status = KeepOtherEntries(staged, target, files); !status.ok()) {
      std::move(remove_staged).Cancel();
      return status;
    }
  }
  return SyncDirectory(parent.string());
}

}  // namespace tim4rec
