// Requests to commands and answers to responses: validation and translation, pure functions.
#ifndef TIM4REC_SERVER_SERVICE_CODEC_H_
#define TIM4REC_SERVER_SERVICE_CODEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/weights/package.h"
#include "server/pipeline/job.h"
#include "server/pipeline/models.h"
#include "server/service/parse.h"
#include "server/service/status.h"
#include "tim4rec/v1/recommender.pb.h"

namespace tim4rec {

struct RequestLimits {
  int64_t max_clock_skew_ms = 300'000;
  int64_t max_interactions = 10'000;
  int64_t max_item_ids = 10'000;
  int64_t max_stream_batches = 8;
  int64_t max_stream_bytes = 268'435'456;
  std::string client_metadata = {};  // see ClientKey

  bool operator==(const RequestLimits&) const = default;
};

inline constexpr int kMostIdBytes = 256;
inline constexpr int kDefaultK = 10;
inline constexpr int kMostK = 1000;
inline constexpr int kMostCategories = 100;
inline constexpr uint32_t kMostUserEvents = 10'000;
inline constexpr int kMostBatchUsers = 1000;  // in a message of RecommendBatch
// What a date library still holds: the year 275760.
inline constexpr int64_t kMostTimestampMs = 8'640'000'000'000'000;

// What a request is decoded against: the catalogue is that of the model that answers it. `path`
// prefixes field names ("record."); `broken` holds paths from the request's top.
struct DecodeContext {
  const RequestLimits* limits;
  const ItemCatalog* catalog;
  int64_t now_ms;
  const BrokenText* broken;
  std::string path = {};
};

// A fault of the id, or nothing: 1 to 256 bytes of UTF-8.
void CheckUserId(const std::string& user_id, const DecodeContext& context, Violations* faults);

// Interactions that are faulty by themselves are left out of the command and have their reason in
// `rejections` (one entry per interaction, empty for those that go in); faults of the request go to
// `faults`.
void DecodeRecord(const v1::RecordInteractionsRequest& request, const DecodeContext& context,
                  RecordCommand* command, std::vector<std::string>* rejections, Violations* faults);

// A request that carries the history: every faulty interaction is a fault of the request.
void DecodeHistory(const v1::RecommendForHistoryRequest& request, const DecodeContext& context,
                   std::vector<Event>* history, RecommendCommand* command, Violations* faults);

// A fault if shared options name a user; `instead` says what does.
void CheckNoUser(const v1::RecommendRequest& options, const std::string& instead,
                 const DecodeContext& context, Violations* faults);

// What is wrong with a user id of a RecommendBatch, empty if nothing.
std::string UserIdFault(const v1::RecommendBatchRequest& request, int index,
                        const BrokenText& broken);

// What concerns a batch as a whole: its ack and its size.
void DecodeBatch(const v1::StreamInteractionsRequest& request, const DecodeContext& context,
                 Durability* durability, Violations* faults);

// One entry of a batch; `context.path` is the entry's ("users[2]."). As DecodeRecord, but a faulty
// user_id rejects every interaction of the entry.
void DecodeBatchEntry(const v1::UserInteractions& entry, const DecodeContext& context,
                      RecordCommand* command, std::vector<std::string>* rejections);

// The options of a recommendation, user_id and model left out.
void DecodeRecommend(const v1::RecommendRequest& request, const DecodeContext& context,
                     RecommendCommand* command, Violations* faults);

void DecodeGetUser(const v1::GetUserRequest& request, const DecodeContext& context,
                   GetUserCommand* command, Violations* faults);

void EncodeRecord(const RecordCommand& command, const std::vector<std::string>& rejections,
                  v1::RecordInteractionsResponse* response);

// Adds an entry's outcomes and rejections to the answer of its batch.
void EncodeBatchEntry(const RecordCommand& command, const std::vector<std::string>& rejections,
                      uint32_t user_index, v1::StreamInteractionsResponse* response);

void EncodeRecommend(const RecommendCommand& command, const LoadedModel& model,
                     google::protobuf::RepeatedPtrField<v1::ScoredItem>* items,
                     v1::Provenance* provenance);
void EncodeUser(const GetUserCommand& command, v1::GetUserResponse* response);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_CODEC_H_
