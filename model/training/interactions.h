// Interaction files as they come: who did what, when.
#ifndef TIM4REC_MODEL_TRAINING_INTERACTIONS_H_
#define TIM4REC_MODEL_TRAINING_INTERACTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

enum class TimeUnit { kSeconds, kMilliseconds };

struct ReadOptions {
  // Count malformed rows and go on, instead of failing on the first.
  bool skip_bad_rows = false;
};

struct Interaction {
  int32_t user;  // index into user_ids
  int32_t item;  // index into item_ids
  int64_t timestamp_ms;
};

struct InteractionTable {
  std::vector<std::string> user_ids;  // in order of first appearance
  std::vector<std::string> item_ids;  // in order of first appearance
  std::vector<Interaction> rows;      // in file order
  TimeUnit time_unit = TimeUnit::kSeconds;
  int64_t bad_rows = 0;       // skipped
  std::string first_bad_row;  // the message that the first of them would have failed with
};

struct ItemDescription {
  std::string id;
  std::string title;
  std::vector<std::string> categories;
};

// Reads a RecBole atomic file (.inter) or a CSV with a header. Columns are found by name:
// user_id, userid or user; item_id, itemid, movieid, product_id or item; timestamp, time or ts; any
// others are ignored. Ids are UTF-8 of 1 to 256 bytes without control characters, kept verbatim.
//
// Timestamps are seconds or milliseconds since 1970, whole or with a fraction. One unit for the
// whole file: milliseconds if at least half of the values are 1e11 or more (in seconds that is the
// year 5138, in milliseconds 1973); a row of the other unit is malformed.
//
// INVALID_ARGUMENT with file, line and what was expected for a malformed row, and for a missing
// column; NOT_FOUND without the file.
absl::StatusOr<InteractionTable> ReadInteractions(const std::string& path,
                                                  const ReadOptions& options);

// The file that describes the items of `interactions`, if there is one beside it: x.item for
// x.inter, movies.csv for ratings.csv. Empty if there is none.
std::string FindItemFile(const std::string& interactions);

// Reads titles (title, movie_title, item_title, item_name or name) and categories (genres, genre,
// categories, category or class; separated by '|' in a CSV, by spaces in an atomic file). Rows are
// malformed and skipped as in ReadInteractions.
absl::StatusOr<std::vector<ItemDescription>> ReadItems(const std::string& path,
                                                       const ReadOptions& options);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_INTERACTIONS_H_
