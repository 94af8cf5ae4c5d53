#include "server/loadgen/workload.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace tim4rec {
namespace {

// The server's default of limits.max_interactions.
constexpr int64_t kMostInteractions = 10'000;

template <typename Message>
grpc::ByteBuffer Bytes(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer;
  (void)grpc::SerializationTraits<Message>::Serialize(message, &bytes, &own_buffer);
  return bytes;
}

template <typename Message>
bool Parse(grpc::ByteBuffer* bytes, Message* message) {
  return grpc::SerializationTraits<Message>::Deserialize(bytes, message).ok();
}

std::string Outcome(v1::InteractionStatus status) {
  return v1::InteractionStatus_Name(status).substr(sizeof("INTERACTION_STATUS_") - 1);
}

int64_t Share(int64_t all, int part, int parts) { return all * part / parts; }

void Add(const std::string& name, uint64_t count, std::map<std::string, int64_t>* counts) {
  if (count > 0) (*counts)[name] += static_cast<int64_t>(count);
}

}  // namespace

const char* CallName(Call call) {
  static constexpr const char* kNames[kCalls] = {"Recommend", "RecordInteractions",
                                                 "StreamInteractions", "RecommendBatch"};
  return kNames[static_cast<int>(call)];
}

const char* CallMethod(Call call) {
  static const std::string* const methods = [] {
    auto* made = new std::string[kCalls];
    for (int i = 0; i < kCalls; ++i) {
      made[i] = absl::StrCat("/tim4rec.v1.Recommender/", CallName(static_cast<Call>(i)));
    }
    return made;
  }();
  return methods[static_cast<int>(call)].c_str();
}

void Tally::AddError(const std::string& code, const std::string& message, int64_t count) {
  if (errors.empty()) first_error = message;
  errors[code] += count;
}

void Tally::Merge(const Tally& other) {
  if (errors.empty()) first_error = other.first_error;
  for (const auto& [code, count] : other.errors) errors[code] += count;
  for (const auto& [outcome, count] : other.outcomes) outcomes[outcome] += count;
  for (const auto& [tier, count] : other.tiers) tiers[tier] += count;
  events += other.events;
  recommendations += other.recommendations;
}

Workload::Workload(const LoadOptions& options, const std::vector<std::string>* items, int thread)
    : options_(options),
      items_(*items),
      first_user_(Share(options.users, thread, options.threads)),
      last_ms_(
          static_cast<size_t>(Share(options.users, thread + 1, options.threads) - first_user_)),
      random_(options.seed * 1000 + static_cast<uint64_t>(thread)) {}

Request Workload::Next() {
  ++requests_;
  switch (options_.scenario) {
    case Scenario::kRecommend:
      return Recommend();
    case Scenario::kRecord:
      return Record();
    case Scenario::kMixed:
      return requests_ % 2 == 0 ? Recommend() : Record();
    case Scenario::kStream:
      return Stream(options_.batch_users, options_.events);
    case Scenario::kBatch:
      return Batch();
  }
  return Recommend();
}

int64_t Workload::NextUser() {
  const int64_t user = next_user_;
  next_user_ = (next_user_ + 1) % static_cast<int64_t>(last_ms_.size());
  return user;
}

std::string Workload::UserName(int64_t user) const {
  return absl::StrCat("load", options_.seed, ".", first_user_ + user);
}

void Workload::AddEvents(int64_t user, int64_t events,
                         google::protobuf::RepeatedPtrField<v1::Interaction>* interactions) {
  int64_t& last_ms = last_ms_[static_cast<size_t>(user)];
  const int64_t now_ms = absl::ToUnixMillis(absl::Now());
  for (int64_t i = 0; i < events; ++i) {
    last_ms = std::max(last_ms + 1, now_ms);
    v1::Interaction* interaction = interactions->Add();
    interaction->set_item_id(items_[random_() % items_.size()]);
    interaction->set_timestamp_ms(last_ms);
  }
}

Request Workload::Recommend() {
  arena_.Reset();
  auto* request = google::protobuf::Arena::CreateMessage<v1::RecommendRequest>(&arena_);
  request->set_user_id(UserName(RandomUser()));
  request->set_k(static_cast<uint32_t>(options_.k));
  return {Call::kRecommend, 1, Bytes(*request)};
}

Request Workload::Record() {
  arena_.Reset();
  auto* request = google::protobuf::Arena::CreateMessage<v1::RecordInteractionsRequest>(&arena_);
  const int64_t user = NextUser();
  request->set_user_id(UserName(user));
  request->set_ack(options_.ack);
  AddEvents(user, options_.events, request->mutable_interactions());
  return {Call::kRecord, 1, Bytes(*request)};
}

Request Workload::Stream(int64_t users, int64_t events) {
  arena_.Reset();
  auto* request = google::protobuf::Arena::CreateMessage<v1::StreamInteractionsRequest>(&arena_);
  request->set_ack(options_.ack);
  for (int64_t i = 0; i < users; ++i) {
    v1::UserInteractions* entry = request->add_users();
    const int64_t user = NextUser();
    entry->set_user_id(UserName(user));
    AddEvents(user, events, entry->mutable_interactions());
  }
  return {Call::kStream, 1, Bytes(*request)};
}

Request Workload::Batch() {
  arena_.Reset();
  auto* request = google::protobuf::Arena::CreateMessage<v1::RecommendBatchRequest>(&arena_);
  request->mutable_options()->set_k(static_cast<uint32_t>(options_.k));
  for (int64_t i = 0; i < options_.batch_users; ++i) request->add_user_ids(UserName(RandomUser()));
  return {Call::kBatch, options_.batch_users, Bytes(*request)};
}

int64_t Workload::HistoryUsers() const {
  return std::clamp<int64_t>(kMostInteractions / std::max<int64_t>(1, options_.history), 1, 256);
}

int64_t Workload::HistoryLeft() const {
  if (options_.history == 0) return 0;
  const int64_t users = static_cast<int64_t>(last_ms_.size()) - history_user_;
  return (users + HistoryUsers() - 1) / HistoryUsers();
}

Request Workload::NextHistory() {
  const int64_t left = static_cast<int64_t>(last_ms_.size()) - history_user_;
  const int64_t users = std::min(left, HistoryUsers());
  history_user_ += users;
  return Stream(users, options_.history);
}

void Workload::CountRecommendation(int items, const v1::Provenance& provenance,
                                   Tally* tally) const {
  ++tally->recommendations;
  ++tally->tiers[v1::Tier_Name(provenance.tier())];
  if (items == 0) tally->AddError("EMPTY_ANSWER", "a recommendation without items");
}

int64_t Workload::Count(Call call, grpc::ByteBuffer* answer, Tally* tally) {
  arena_.Reset();
  const auto unreadable = [&] {
    tally->AddError("UNREADABLE_ANSWER", absl::StrCat("no answer of ", CallName(call)));
    return int64_t{1};
  };
  switch (call) {
    case Call::kRecommend: {
      auto* response = google::protobuf::Arena::CreateMessage<v1::RecommendResponse>(&arena_);
      if (!Parse(answer, response)) return unreadable();
      CountRecommendation(response->items_size(), response->provenance(), tally);
      return 1;
    }
    case Call::kRecord: {
      auto* response =
          google::protobuf::Arena::CreateMessage<v1::RecordInteractionsResponse>(&arena_);
      if (!Parse(answer, response)) return unreadable();
      for (const auto& result : response->results()) {
        ++tally->outcomes[Outcome(result.status())];
        if (result.status() == v1::INTERACTION_STATUS_REJECTED ||
            result.status() == v1::INTERACTION_STATUS_UNKNOWN_ITEM) {
          tally->AddError(Outcome(result.status()), result.reason());
        }
      }
      tally->events += response->results_size();
      return 1;
    }
    case Call::kStream: {
      auto* response =
          google::protobuf::Arena::CreateMessage<v1::StreamInteractionsResponse>(&arena_);
      if (!Parse(answer, response)) return unreadable();
      const auto rejected = static_cast<uint64_t>(response->rejected_size());
      Add("APPLIED", response->applied(), &tally->outcomes);
      Add("DUPLICATE", response->duplicates(), &tally->outcomes);
      Add("LATE_REFOLDED", response->late_refolded(), &tally->outcomes);
      Add("UNKNOWN_ITEM", response->unknown_items(), &tally->outcomes);
      Add("REJECTED", rejected, &tally->outcomes);
      if (response->unknown_items() > 0) {
        tally->AddError("UNKNOWN_ITEM", "", static_cast<int64_t>(response->unknown_items()));
      }
      if (rejected > 0) {
        tally->AddError("REJECTED", response->rejected(0).reason(), response->rejected_size());
      }
      tally->events +=
          static_cast<int64_t>(response->applied() + response->duplicates() +
                               response->late_refolded() + response->unknown_items() + rejected);
      return 1;
    }
    case Call::kBatch: {
      auto* response = google::protobuf::Arena::CreateMessage<v1::RecommendBatchResponse>(&arena_);
      if (!Parse(answer, response)) return unreadable();
      for (const auto& user : response->users()) {
        if (user.error_code() != 0) {
          tally->AddError(absl::StrCat("USER_ERROR_", user.error_code()), user.error_message());
        } else {
          CountRecommendation(user.items_size(), user.provenance(), tally);
        }
      }
      return response->users_size();
    }
  }
  return 1;
}

}  // namespace tim4rec
