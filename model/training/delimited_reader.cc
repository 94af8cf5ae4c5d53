#include "model/training/delimited_reader.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

// A quotation longer than this is a stray quote, not a field.
constexpr size_t kMaxFieldBytes = 1 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<DelimitedReader>> DelimitedReader::Open(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (status.type() == std::filesystem::file_type::directory) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a directory; expected an interaction file (.inter or .csv)"));
  }
  std::unique_ptr<DelimitedReader> reader(new DelimitedReader(path));
  reader->file_.open(path, std::ios::binary);
  if (!reader->file_) return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
  std::string header;
  do {
    if (!reader->ReadLine(&header)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the file is empty; expected a header line with column names"));
    }
    if (reader->line_ == 1 && header.rfind("\xEF\xBB\xBF", 0) == 0) header.erase(0, 3);
  } while (header.empty());
  if (header.find('\t') != std::string::npos) reader->delimiter_ = '\t';
  reader->record_line_ = reader->line_;
  if (auto read = reader->ReadRecord(std::move(header)); !read.ok()) return read;
  for (const std::string& name : reader->fields_) {
    reader->columns_.push_back(
        absl::AsciiStrToLower(absl::StripAsciiWhitespace(name.substr(0, name.find(':')))));
  }
  return reader;
}

std::optional<size_t> DelimitedReader::FindColumn(const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    const auto found = std::find(columns_.begin(), columns_.end(), name);
    if (found != columns_.end()) return found - columns_.begin();
  }
  return std::nullopt;
}

absl::StatusOr<bool> DelimitedReader::Next() {
  std::string line;
  do {
    if (!ReadLine(&line)) {
      if (file_.bad()) return absl::UnavailableError(absl::StrCat(path_, ": reading failed"));
      return false;
    }
  } while (line.empty());
  record_line_ = line_;
  if (auto read = ReadRecord(std::move(line)); !read.ok()) return read;
  if (fields_.size() != columns_.size()) {
    return Malformed(absl::StrCat("expected ", columns_.size(),
                                  delimiter_ == '\t' ? " tab-separated" : " comma-separated",
                                  " fields as in the header, found ", fields_.size()));
  }
  return true;
}

absl::Status DelimitedReader::Malformed(const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ":", record_line_, ": ", what));
}

bool DelimitedReader::ReadLine(std::string* line) {
  if (!std::getline(file_, *line)) return false;
  ++line_;
  if (!line->empty() && line->back() == '\r') line->pop_back();
  return true;
}

absl::Status DelimitedReader::ReadRecord(std::string line) {
  fields_.clear();
  size_t at = 0;
  while (true) {
    std::string field;
    if (delimiter_ == ',' && at < line.size() && line[at] == '"') {
      if (auto read = ReadQuoted(&line, &at, &field); !read.ok()) return read;
    }
    const size_t end = std::min(line.find(delimiter_, at), line.size());
    field.append(line, at, end - at);
    fields_.push_back(std::move(field));
    if (end == line.size()) return absl::OkStatus();
    at = end + 1;
  }
}

// Reads the quotation that begins at (*line)[*at], with the lines it spans; leaves *at after the
// closing quote.
absl::Status DelimitedReader::ReadQuoted(std::string* line, size_t* at, std::string* field) {
  const auto next_line = file_.tellg();
  const int64_t line_number = line_;
  size_t i = *at + 1;
  while (true) {
    for (; i < line->size(); ++i) {
      if ((*line)[i] != '"') {
        field->push_back((*line)[i]);
      } else if (i + 1 < line->size() && (*line)[i + 1] == '"') {
        field->push_back('"');
        ++i;
      } else {
        *at = i + 1;
        return absl::OkStatus();
      }
    }
    if (field->size() > kMaxFieldBytes || !ReadLine(line)) break;
    field->push_back('\n');
    i = 0;
  }
  file_.clear();
  // tellg is -1 where the opening line was the file's last: then there is nothing to go back to.
  if (next_line >= 0) {
    file_.seekg(next_line);
    line_ = line_number;
  }
  return Malformed("a field begins with a double quote that is never closed");
}

}  // namespace tim4rec
