// Input: which call:u8, then the bytes of its request as a client sends them. What is decoded keeps
// every limit of the request, and what is faulty is said, in text that is UTF-8.
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/service/codec.h"
#include "server/service/parse.h"

namespace tim4rec {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

constexpr int64_t kNow = 1'700'000'000'000;

// Small, so that inputs reach the limits.
const RequestLimits kLimits{.max_clock_skew_ms = 1000, .max_interactions = 6, .max_item_ids = 4};

ItemCatalog NewCatalog() {
  std::vector<Item> items(4);
  for (int i = 1; i < 4; ++i) {
    items[i].id = absl::StrCat("item", i);
    items[i].categories = {absl::StrCat("c", i % 2)};
  }
  return *ItemCatalog::Create(std::move(items));
}

const ItemCatalog& Catalog() {
  static const ItemCatalog& catalog = *new ItemCatalog(NewCatalog());
  return catalog;
}

bool IsId(const std::string& id) {
  return !id.empty() && id.size() <= kMostIdBytes && IsValidUtf8(id);
}

void CheckEvents(const std::vector<Event>& events) {
  Require(static_cast<int64_t>(events.size()) <= kLimits.max_interactions);
  for (const Event& event : events) {
    Require(IsId(event.item_id));
    Require(event.event_id.empty() || IsId(event.event_id));
    Require(event.timestamp_ms >= -kMostTimestampMs &&
            event.timestamp_ms <= kNow + kLimits.max_clock_skew_ms);
  }
}

void CheckItems(const std::vector<int32_t>& items) {
  Require(static_cast<int64_t>(items.size()) <= kLimits.max_item_ids);
  Require(std::adjacent_find(items.begin(), items.end(), std::greater_equal<>()) == items.end());
  for (const int32_t item : items) Require(item > 0 && item < Catalog().size());
}

void CheckRecommend(const RecommendCommand& command) {
  Require(command.k >= 1 && command.k <= kMostK);
  if (command.as_of_ms) Require(std::abs(*command.as_of_ms) <= kMostTimestampMs);
  CheckItems(command.excluded);
  CheckItems(command.candidates);
  Require(command.eligible.size() <= 1);
}

void CheckRejections(const std::vector<std::string>& rejections, int interactions, size_t events) {
  Require(static_cast<int>(rejections.size()) == interactions);
  size_t rejected = 0;
  for (const std::string& rejection : rejections) {
    rejected += rejection.empty() ? 0 : 1;
    Require(IsValidUtf8(rejection));
  }
  Require(rejected + events == rejections.size());
}

// The request's bytes as a message; false if they are none.
template <typename Request>
bool Parse(const std::string& bytes, Request* request, BrokenText* broken) {
  const grpc::Slice slice(bytes);
  return ParseRequest(grpc::ByteBuffer(&slice, 1), request, broken).ok();
}

// What is wrong goes to the client in a message and in details, both of them protobuf strings.
bool Faultless(const Violations& faults) {
  const absl::Status status = faults.ToStatus();
  Require(IsValidUtf8({status.message().data(), status.message().size()}));
  const grpc::Status answer = ToGrpcStatus(status);
  Require(IsValidUtf8(answer.error_message()) && answer.error_message().size() <= 2000);
  return faults.empty();
}

void TryRecord(const v1::RecordInteractionsRequest& request, const DecodeContext& context) {
  Violations faults;
  RecordCommand command;
  std::vector<std::string> rejections;
  CheckUserId(request.user_id(), context, &faults);
  DecodeRecord(request, context, &command, &rejections, &faults);
  if (!Faultless(faults)) return;
  Require(IsId(request.user_id()));
  CheckEvents(command.events);
  CheckRejections(rejections, request.interactions_size(), command.events.size());
}

void TryRecommend(const v1::RecommendRequest& request, const DecodeContext& context) {
  Violations faults;
  RecommendCommand command;
  DecodeRecommend(request, context, &command, &faults);
  if (Faultless(faults)) CheckRecommend(command);
}

void TryHistory(const v1::RecommendForHistoryRequest& request, const DecodeContext& context) {
  Violations faults;
  RecommendCommand command;
  std::vector<Event> history;
  DecodeHistory(request, context, &history, &command, &faults);
  if (!Faultless(faults)) return;
  CheckRecommend(command);
  CheckEvents(history);
  Require(static_cast<int>(history.size()) == request.interactions_size());
}

void TryStream(const v1::StreamInteractionsRequest& request, DecodeContext context) {
  Violations faults;
  Durability durability;
  DecodeBatch(request, context, &durability, &faults);
  if (!Faultless(faults)) return;
  Require(request.users_size() <= kLimits.max_interactions);
  for (int u = 0; u < request.users_size(); ++u) {
    RecordCommand command;
    std::vector<std::string> rejections;
    context.path = absl::StrCat("users[", u, "].");
    DecodeBatchEntry(request.users(u), context, &command, &rejections);
    CheckEvents(command.events);
    CheckRejections(rejections, request.users(u).interactions_size(), command.events.size());
    Require(command.events.empty() || IsId(request.users(u).user_id()));
  }
}

void TryBatch(const v1::RecommendBatchRequest& request, DecodeContext context) {
  for (int u = 0; u < request.user_ids_size(); ++u) {
    const std::string fault = UserIdFault(request, u, *context.broken);
    Require(IsValidUtf8(fault) && fault.empty() == IsId(request.user_ids(u)));
  }
  context.path = "options.";
  Violations faults;
  CheckNoUser(request.options(), "user_ids names the users", context, &faults);
  if (Faultless(faults)) TryRecommend(request.options(), context);
}

void TryGetUser(const v1::GetUserRequest& request, const DecodeContext& context) {
  Violations faults;
  GetUserCommand command;
  DecodeGetUser(request, context, &command, &faults);
  if (!Faultless(faults)) return;
  Require(IsId(request.user_id()) && command.max_events <= kMostUserEvents);
}

void TryDeleteUser(const v1::DeleteUserRequest& request, const DecodeContext& context) {
  Violations faults;
  CheckUserId(request.user_id(), context, &faults);
  if (Faultless(faults)) Require(IsId(request.user_id()));
}

template <typename Request, typename Try>
void TryCall(const std::string& bytes, Try call) {
  Request request;
  BrokenText broken;
  if (!Parse(bytes, &request, &broken)) return;
  call(request,
       DecodeContext{.limits = &kLimits, .catalog = &Catalog(), .now_ms = kNow, .broken = &broken});
}

}  // namespace
}  // namespace tim4rec

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tim4rec;
  // Else it prints a line for every text that is no UTF-8.
  static const auto printed = google::protobuf::SetLogHandler(nullptr);
  (void)printed;
  if (size < 1) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 8) {
    case 0:
      TryCall<v1::RecordInteractionsRequest>(bytes, TryRecord);
      break;
    case 1:
      TryCall<v1::RecommendRequest>(bytes, [](const auto& request, const auto& context) {
        Violations faults;
        CheckUserId(request.user_id(), context, &faults);
        if (Faultless(faults)) TryRecommend(request, context);
      });
      break;
    case 2:
      TryCall<v1::RecordAndRecommendRequest>(bytes, [](const auto& request, DecodeContext context) {
        context.path = "record.";
        TryRecord(request.record(), context);
        context.path = "recommend.";
        TryRecommend(request.recommend(), context);
      });
      break;
    case 3:
      TryCall<v1::RecommendForHistoryRequest>(bytes, TryHistory);
      break;
    case 4:
      TryCall<v1::StreamInteractionsRequest>(bytes, TryStream);
      break;
    case 5:
      TryCall<v1::RecommendBatchRequest>(bytes, TryBatch);
      break;
    case 6:
      TryCall<v1::GetUserRequest>(bytes, TryGetUser);
      break;
    case 7:
      TryCall<v1::DeleteUserRequest>(bytes, TryDeleteUser);
      break;
  }
  return 0;
}
