// Reads records of a delimited text file: RecBole atomic files (tabs, no quotes) and CSV with
// RFC 4180 quotes.
#ifndef TIM4REC_MODEL_TRAINING_DELIMITED_READER_H_
#define TIM4REC_MODEL_TRAINING_DELIMITED_READER_H_

#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

// The file is tab-separated if its first line holds a tab, else comma-separated. Only in a
// comma-separated file is a double quote at the start of a field a quotation, which may span lines.
// A byte order mark, carriage returns at line ends and empty lines are skipped. Not thread-safe.
class DelimitedReader {
 public:
  // Opens `path` and reads the header line. NOT_FOUND without the file, INVALID_ARGUMENT if it is a
  // directory or empty, UNAVAILABLE if it cannot be read.
  static absl::StatusOr<std::unique_ptr<DelimitedReader>> Open(const std::string& path);

  // Column names in file order: without RecBole's ":type", trimmed, lower case.
  const std::vector<std::string>& columns() const { return columns_; }
  // The first of `names` that is a column.
  std::optional<size_t> FindColumn(const std::vector<std::string>& names) const;
  bool tab_separated() const { return delimiter_ == '\t'; }

  // Reads the next record into fields(). False at the end of the file. INVALID_ARGUMENT with file,
  // line and what was expected if the record has another number of fields than the header, or a
  // quote is never closed; the next call goes on with the line after it.
  absl::StatusOr<bool> Next();
  const std::vector<std::string>& fields() const { return fields_; }
  int64_t line() const { return record_line_; }  // where the record began, from 1

  // INVALID_ARGUMENT "<path>:<line>: <what>" for the current record.
  absl::Status Malformed(const std::string& what) const;

 private:
  explicit DelimitedReader(const std::string& path) : path_(path) {}
  bool ReadLine(std::string* line);
  absl::Status ReadRecord(std::string line);
  absl::Status ReadQuoted(std::string* line, size_t* at, std::string* field);

  const std::string path_;
  std::ifstream file_;
  char delimiter_ = ',';
  int64_t line_ = 0;
  int64_t record_line_ = 0;
  std::vector<std::string> columns_;
  std::vector<std::string> fields_;
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_DELIMITED_READER_H_
