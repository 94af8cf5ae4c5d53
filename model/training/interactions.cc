#include "model/training/interactions.h"

#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "model/training/delimited_reader.h"

namespace tim4rec {
namespace {

constexpr double kSmallestMilliseconds = 1e11;
// From here on a value in milliseconds is beyond the year 5138: a finer unit.
constexpr double kTooFine = 1e14;
constexpr size_t kMaxIdBytes = 256;

const std::vector<std::string> kUserColumns = {"user_id", "userid", "user"};
const std::vector<std::string> kItemColumns = {"item_id", "itemid", "movieid", "product_id",
                                               "item"};
const std::vector<std::string> kTimeColumns = {"timestamp", "time", "ts"};
const std::vector<std::string> kTitleColumns = {"title", "movie_title", "item_title", "item_name",
                                                "name"};
const std::vector<std::string> kCategoryColumns = {"genres", "genre", "categories", "category",
                                                   "class"};

absl::StatusOr<size_t> RequireColumn(const DelimitedReader& reader, const std::string& path,
                                     const std::vector<std::string>& names) {
  if (auto column = reader.FindColumn(names)) return *column;
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": no column is named ", absl::StrJoin(names, " or "), "; the header (line ",
      reader.line(), ") has ", absl::StrJoin(reader.columns(), ", ")));
}

// Length of the well-formed UTF-8 sequence at the start of `text` (RFC 3629), 0 if there is none.
size_t Utf8SequenceLength(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return continues(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

// What is wrong with an id, or nothing.
std::optional<std::string> IdFault(const std::string& column, const std::string& id) {
  if (id.empty()) return absl::StrCat(column, " is empty; expected an id of 1 to 256 bytes");
  if (id.size() > kMaxIdBytes) {
    return absl::StrCat(column, " has ", id.size(), " bytes; expected an id of 1 to 256 bytes");
  }
  for (size_t at = 0; at < id.size();) {
    const size_t length = Utf8SequenceLength(id, at);
    if (length == 0) {
      return absl::StrCat(column, " is not valid UTF-8 at byte ", at, " of the id");
    }
    const unsigned char byte = id[at];
    if (byte < 0x20 || byte == 0x7F) {
      return absl::StrCat(column, " has a control character at byte ", at, " of the id");
    }
    at += length;
  }
  return std::nullopt;
}

std::optional<std::string> TimestampFault(const std::string& column, const std::string& text,
                                          double* value) {
  if (!absl::SimpleAtod(text, value) || !std::isfinite(*value) || *value < 0) {
    return absl::StrCat(column, " is '", text.substr(0, 64),
                        "'; expected seconds or milliseconds since 1970 as a number");
  }
  if (*value >= kTooFine) {
    return absl::StrCat(column, " is ", text.substr(0, 64),
                        ", which is neither seconds nor milliseconds since 1970; microseconds and "
                        "finer units are not accepted");
  }
  return std::nullopt;
}

// Ids by order of first appearance.
class IdTable {
 public:
  explicit IdTable(std::vector<std::string>* ids) : ids_(ids) {}
  int32_t Index(const std::string& id) {
    const auto [entry, added] = index_.try_emplace(id, static_cast<int32_t>(ids_->size()));
    if (added) ids_->push_back(id);
    return entry->second;
  }

 private:
  std::vector<std::string>* ids_;
  std::unordered_map<std::string, int32_t> index_;
};

// Fails with `fault`, or counts it where bad rows are to be skipped.
absl::Status HandleBadRow(const ReadOptions& options, absl::Status fault, InteractionTable* table) {
  if (!options.skip_bad_rows || !absl::IsInvalidArgument(fault)) return fault;
  if (table->bad_rows++ == 0) table->first_bad_row = std::string(fault.message());
  return absl::OkStatus();
}

struct TimedRow {
  int32_t user;
  int32_t item;
  double time;
  int64_t line;
};

// Decides the unit and converts; rows of the other unit are malformed.
absl::Status ConvertTimes(const std::string& path, const ReadOptions& options,
                          const std::vector<TimedRow>& rows, const std::string& time_column,
                          InteractionTable* table) {
  size_t milliseconds = 0;
  for (const TimedRow& row : rows) milliseconds += row.time >= kSmallestMilliseconds;
  const bool in_ms = !rows.empty() && 2 * milliseconds >= rows.size();
  table->time_unit = in_ms ? TimeUnit::kMilliseconds : TimeUnit::kSeconds;
  table->rows.reserve(rows.size());
  for (const TimedRow& row : rows) {
    if ((row.time >= kSmallestMilliseconds) != in_ms) {
      auto status = HandleBadRow(
          options,
          absl::InvalidArgumentError(absl::StrCat(
              path, ":", row.line, ": ", time_column, " is ", static_cast<int64_t>(row.time),
              in_ms ? "; expected milliseconds since 1970 as in most other rows"
                    : "; expected seconds since 1970 as in most other rows")),
          table);
      if (!status.ok()) return status;
      continue;
    }
    table->rows.push_back({row.user, row.item, std::llround(in_ms ? row.time : row.time * 1000)});
  }
  return absl::OkStatus();
}

// Leaves only the ids that rows refer to: a row dropped for its unit may have been an id's only
// one.
void DropUnusedIds(InteractionTable* table) {
  InteractionTable kept;
  IdTable users(&kept.user_ids);
  IdTable items(&kept.item_ids);
  for (Interaction& row : table->rows) {
    row.user = users.Index(table->user_ids[row.user]);
    row.item = items.Index(table->item_ids[row.item]);
  }
  table->user_ids = std::move(kept.user_ids);
  table->item_ids = std::move(kept.item_ids);
}

}  // namespace

absl::StatusOr<InteractionTable> ReadInteractions(const std::string& path,
                                                  const ReadOptions& options) {
  auto opened = DelimitedReader::Open(path);
  if (!opened.ok()) return opened.status();
  DelimitedReader& reader = **opened;
  const auto user_column = RequireColumn(reader, path, kUserColumns);
  if (!user_column.ok()) return user_column.status();
  const auto item_column = RequireColumn(reader, path, kItemColumns);
  if (!item_column.ok()) return item_column.status();
  const auto time_column = RequireColumn(reader, path, kTimeColumns);
  if (!time_column.ok()) return time_column.status();
  const std::string& user_name = reader.columns()[*user_column];
  const std::string& item_name = reader.columns()[*item_column];
  const std::string& time_name = reader.columns()[*time_column];

  InteractionTable table;
  IdTable users(&table.user_ids);
  IdTable items(&table.item_ids);
  std::vector<TimedRow> rows;
  while (true) {
    const auto more = reader.Next();
    if (more.ok() && !*more) break;
    absl::Status fault = more.status();
    double time = 0;
    if (more.ok()) {
      const auto& fields = reader.fields();
      auto what = IdFault(user_name, fields[*user_column]);
      if (!what) what = IdFault(item_name, fields[*item_column]);
      if (!what) what = TimestampFault(time_name, fields[*time_column], &time);
      if (what) fault = reader.Malformed(*what);
    }
    if (!fault.ok()) {
      if (auto status = HandleBadRow(options, fault, &table); !status.ok()) return status;
      continue;
    }
    rows.push_back({users.Index(reader.fields()[*user_column]),
                    items.Index(reader.fields()[*item_column]), time, reader.line()});
  }
  const int64_t bad_before = table.bad_rows;
  if (auto status = ConvertTimes(path, options, rows, time_name, &table); !status.ok()) {
    return status;
  }
  if (table.bad_rows != bad_before) DropUnusedIds(&table);
  return table;
}

std::string FindItemFile(const std::string& interactions) {
  const std::filesystem::path path(interactions);
  std::filesystem::path candidate;
  if (path.extension() == ".inter") {
    candidate = std::filesystem::path(path).replace_extension(".item");
  } else if (path.filename() == "ratings.csv") {
    candidate = std::filesystem::path(path).replace_filename("movies.csv");
  } else {
    return "";
  }
  std::error_code error;
  return std::filesystem::is_regular_file(candidate, error) ? candidate.string() : "";
}

absl::StatusOr<std::vector<ItemDescription>> ReadItems(const std::string& path,
                                                       const ReadOptions& options) {
  auto opened = DelimitedReader::Open(path);
  if (!opened.ok()) return opened.status();
  DelimitedReader& reader = **opened;
  const auto item_column = RequireColumn(reader, path, kItemColumns);
  if (!item_column.ok()) return item_column.status();
  const auto title_column = reader.FindColumn(kTitleColumns);
  const auto category_column = reader.FindColumn(kCategoryColumns);
  const char separator = reader.tab_separated() ? ' ' : '|';
  const auto one_line = [](const std::string& text) {
    return absl::StrReplaceAll(text, {{"\t", " "}, {"\n", " "}, {"\r", " "}});
  };

  std::vector<ItemDescription> items;
  while (true) {
    const auto more = reader.Next();
    if (more.ok() && !*more) return items;
    absl::Status fault = more.status();
    if (fault.ok()) {
      const auto what = IdFault(reader.columns()[*item_column], reader.fields()[*item_column]);
      if (what) fault = reader.Malformed(*what);
    }
    if (!fault.ok()) {
      if (!options.skip_bad_rows || !absl::IsInvalidArgument(fault)) return fault;
      continue;
    }
    ItemDescription item{reader.fields()[*item_column], "", {}};
    if (title_column) item.title = one_line(reader.fields()[*title_column]);
    if (category_column) {
      for (const auto part : absl::StrSplit(one_line(reader.fields()[*category_column]), separator,
                                            absl::SkipWhitespace())) {
        // '|' separates categories in the package's items.tsv.
        item.categories.push_back(absl::StrReplaceAll(part, {{"|", "/"}}));
      }
    }
    items.push_back(std::move(item));
  }
}

}  // namespace tim4rec
