#include "server/service/codec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tim4rec {
namespace {

// What is wrong with an id, empty if nothing.
std::string IdFault(const std::string& id, const std::string& path, bool may_be_empty,
                    const BrokenText& broken) {
  if (broken.contains(path)) return "is not valid UTF-8 (1 to 256 bytes of UTF-8)";
  if (id.empty() && !may_be_empty) return "is empty (1 to 256 bytes of UTF-8)";
  if (id.size() > kMostIdBytes) return absl::StrCat("has ", id.size(), " bytes (at most 256)");
  return "";
}

std::string TimestampFault(int64_t timestamp_ms) {
  if (timestamp_ms >= -kMostTimestampMs && timestamp_ms <= kMostTimestampMs) return "";
  return absl::StrCat(timestamp_ms, " is outside -8640000000000000…8640000000000000");
}

// What is wrong with a field of an interaction.
struct InteractionFault {
  const char* field = "";
  std::string text = {};  // empty: nothing
};

// The first fault. `path` is read if the request has broken text.
InteractionFault FaultOf(const v1::Interaction& interaction, const std::string& path,
                         const DecodeContext& context) {
  const BrokenText& broken = *context.broken;
  std::string fault = IdFault(interaction.item_id(), path + "item_id", false, broken);
  if (!fault.empty()) return {"item_id", fault};
  fault = IdFault(interaction.event_id(), path + "event_id", true, broken);
  if (!fault.empty()) return {"event_id", fault};
  fault = TimestampFault(interaction.timestamp_ms());
  if (!fault.empty()) return {"timestamp_ms", fault};
  const int64_t ahead = interaction.timestamp_ms() - context.now_ms;
  if (ahead > context.limits->max_clock_skew_ms) {
    return {"timestamp_ms",
            absl::StrCat(interaction.timestamp_ms(), " is ", ahead, " ms in the future (at most ",
                         context.limits->max_clock_skew_ms, ", limits.max_clock_skew_ms)")};
  }
  return {};
}

std::string InteractionPath(int index, const DecodeContext& context) {
  return absl::StrCat(context.path, "interactions[", index, "].");
}

bool CheckInteractionCount(int count, const DecodeContext& context, Violations* faults) {
  if (count <= context.limits->max_interactions) return true;
  faults->Add(context.path + "interactions",
              absl::StrCat("has ", count, " entries (at most ", context.limits->max_interactions,
                           ", limits.max_interactions)"));
  return false;
}

Event DecodeEvent(const v1::Interaction& interaction) {
  return {interaction.item_id(), interaction.timestamp_ms(), interaction.event_id()};
}

// Indices of the ids that the model knows, ascending and distinct.
std::vector<int32_t> ResolveItems(const google::protobuf::RepeatedPtrField<std::string>& ids,
                                  const std::string& name, const DecodeContext& context,
                                  Violations* faults) {
  std::vector<int32_t> items;
  const std::string path = context.path + name;
  if (ids.size() > context.limits->max_item_ids) {
    faults->Add(path, absl::StrCat("has ", ids.size(), " ids (at most ",
                                   context.limits->max_item_ids, ", limits.max_item_ids)"));
    return items;
  }
  for (int i = 0; i < ids.size(); ++i) {
    const std::string element =
        context.broken->empty() ? std::string() : absl::StrCat(path, "[", i, "]");
    const std::string fault = IdFault(ids[i], element, false, *context.broken);
    if (!fault.empty()) {
      faults->Add(absl::StrCat(path, "[", i, "]"), fault);
    } else if (const auto item = context.catalog->Find(ids[i])) {
      items.push_back(*item);
    }
  }
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
  return items;
}

void CheckCategories(const google::protobuf::RepeatedPtrField<std::string>& categories,
                     const std::string& name, const DecodeContext& context, Violations* faults) {
  const std::string path = context.path + name;
  if (categories.size() > kMostCategories) {
    faults->Add(path, absl::StrCat("has ", categories.size(), " categories (at most ",
                                   kMostCategories, ")"));
    return;
  }
  for (int i = 0; i < categories.size(); ++i) {
    const std::string element = absl::StrCat(path, "[", i, "]");
    const std::string fault = IdFault(categories[i], element, false, *context.broken);
    if (!fault.empty()) faults->Add(element, fault);
  }
}

// The items that have one of `any_of`, or all items if that is empty, without those that have one
// of `none_of`. As TopKRequest::eligible.
std::vector<uint64_t> EligibleItems(const google::protobuf::RepeatedPtrField<std::string>& any_of,
                                    const google::protobuf::RepeatedPtrField<std::string>& none_of,
                                    const ItemCatalog& catalog) {
  if (any_of.empty() && none_of.empty()) return {};
  std::vector<uint64_t> eligible((static_cast<size_t>(catalog.size()) + 63) / 64,
                                 any_of.empty() ? ~uint64_t{0} : 0);
  for (const std::string& category : any_of) {
    for (const int32_t item : catalog.InCategory(category)) {
      eligible[item / 64] |= uint64_t{1} << (item % 64);
    }
  }
  for (const std::string& category : none_of) {
    for (const int32_t item : catalog.InCategory(category)) {
      eligible[item / 64] &= ~(uint64_t{1} << (item % 64));
    }
  }
  return eligible;
}

v1::Tier EncodeTier(Tier tier) {
  switch (tier) {
    case Tier::kHot:
      return v1::TIER_HOT;
    case Tier::kStored:
      return v1::TIER_STORED;
    case Tier::kRebuilt:
      return v1::TIER_REBUILT;
    case Tier::kColdStart:
      return v1::TIER_COLD_START;
  }
  return v1::TIER_UNSPECIFIED;
}

v1::InteractionStatus EncodeOutcome(EventOutcome outcome) {
  switch (outcome) {
    case EventOutcome::kApplied:
      return v1::INTERACTION_STATUS_APPLIED;
    case EventOutcome::kDuplicate:
      return v1::INTERACTION_STATUS_DUPLICATE;
    case EventOutcome::kLateRefolded:
      return v1::INTERACTION_STATUS_LATE_REFOLDED;
    case EventOutcome::kUnknownItem:
      return v1::INTERACTION_STATUS_UNKNOWN_ITEM;
    case EventOutcome::kLateRejected:
      return v1::INTERACTION_STATUS_REJECTED;
    case EventOutcome::kExpired:
      return v1::INTERACTION_STATUS_EXPIRED;
  }
  return v1::INTERACTION_STATUS_UNSPECIFIED;
}

std::string LateReason(const RecordCommand& command, size_t event) {
  return absl::StrCat("timestamp_ms: ", command.events[event].timestamp_ms,
                      " lies before the user's last event, which is at ", command.last_event_ms,
                      " (pipeline.late_policy is reject)");
}

std::string ExpiredReason(const RecordCommand& command, size_t event) {
  return absl::StrCat("timestamp_ms: ", command.events[event].timestamp_ms,
                      " is not behind the events that retention has removed "
                      "(store.max_events_per_user, store.event_ttl_ms)");
}

Durability DecodeAck(v1::Ack ack, const DecodeContext& context, Violations* faults) {
  if (ack != v1::ACK_UNSPECIFIED && ack != v1::ACK_APPLIED && ack != v1::ACK_DURABLE) {
    faults->Add(context.path + "ack",
                absl::StrCat(static_cast<int>(ack), " is none of ACK_APPLIED, ACK_DURABLE"));
  }
  return ack == v1::ACK_DURABLE ? Durability::kSynced : Durability::kBuffered;
}

void DecodeInteractions(const google::protobuf::RepeatedPtrField<v1::Interaction>& interactions,
                        const DecodeContext& context, RecordCommand* command,
                        std::vector<std::string>* rejections) {
  rejections->resize(interactions.size());
  command->events.reserve(interactions.size());
  for (int i = 0; i < interactions.size(); ++i) {
    const std::string path = context.broken->empty() ? std::string() : InteractionPath(i, context);
    const InteractionFault fault = FaultOf(interactions[i], path, context);
    if (fault.text.empty()) {
      command->events.push_back(DecodeEvent(interactions[i]));
    } else {
      (*rejections)[i] = absl::StrCat(fault.field, ": ", fault.text);
    }
  }
}

}  // namespace

void CheckUserId(const std::string& user_id, const DecodeContext& context, Violations* faults) {
  const std::string path = context.path + "user_id";
  std::string fault = IdFault(user_id, path, false, *context.broken);
  if (!fault.empty()) faults->Add(path, std::move(fault));
}

void DecodeRecord(const v1::RecordInteractionsRequest& request, const DecodeContext& context,
                  RecordCommand* command, std::vector<std::string>* rejections,
                  Violations* faults) {
  command->durability = DecodeAck(request.ack(), context, faults);
  if (!CheckInteractionCount(request.interactions_size(), context, faults)) return;
  DecodeInteractions(request.interactions(), context, command, rejections);
}

void DecodeHistory(const v1::RecommendForHistoryRequest& request, const DecodeContext& context,
                   std::vector<Event>* history, RecommendCommand* command, Violations* faults) {
  if (CheckInteractionCount(request.interactions_size(), context, faults)) {
    history->reserve(request.interactions_size());
    for (int i = 0; i < request.interactions_size(); ++i) {
      const std::string path =
          context.broken->empty() ? std::string() : InteractionPath(i, context);
      const InteractionFault fault = FaultOf(request.interactions(i), path, context);
      if (fault.text.empty()) {
        history->push_back(DecodeEvent(request.interactions(i)));
      } else {
        faults->Add(InteractionPath(i, context) + fault.field, fault.text);
      }
    }
  }
  DecodeContext options = context;
  options.path += "options.";
  CheckNoUser(request.options(), "the interactions are the user", options, faults);
  if (request.options().min_state_version() != 0) {
    faults->Add(options.path + "min_state_version",
                absl::StrCat(request.options().min_state_version(),
                             " is not 0, and a history that is not stored has no version"));
  }
  DecodeRecommend(request.options(), options, command, faults);
}

void CheckNoUser(const v1::RecommendRequest& options, const std::string& instead,
                 const DecodeContext& context, Violations* faults) {
  if (options.user_id().empty() && !context.broken->contains(context.path + "user_id")) return;
  faults->Add(context.path + "user_id", "is not empty: " + instead);
}

std::string UserIdFault(const v1::RecommendBatchRequest& request, int index,
                        const BrokenText& broken) {
  const std::string path = broken.empty() ? std::string() : absl::StrCat("user_ids[", index, "]");
  return IdFault(request.user_ids(index), path, false, broken);
}

void DecodeBatch(const v1::StreamInteractionsRequest& request, const DecodeContext& context,
                 Durability* durability, Violations* faults) {
  *durability = DecodeAck(request.ack(), context, faults);
  int64_t count = 0;
  for (const v1::UserInteractions& entry : request.users()) count += entry.interactions_size();
  if (count > context.limits->max_interactions) {
    faults->Add(context.path + "users",
                absl::StrCat("have ", count, " interactions (at most ",
                             context.limits->max_interactions, ", limits.max_interactions)"));
  } else if (request.users_size() > context.limits->max_interactions) {
    // Entries without interactions: two bytes of a message each, and hundreds of ours.
    faults->Add(context.path + "users",
                absl::StrCat("has ", request.users_size(), " entries (at most ",
                             context.limits->max_interactions, ", limits.max_interactions)"));
  }
}

void DecodeBatchEntry(const v1::UserInteractions& entry, const DecodeContext& context,
                      RecordCommand* command, std::vector<std::string>* rejections) {
  const std::string fault =
      IdFault(entry.user_id(), context.path + "user_id", false, *context.broken);
  if (fault.empty()) {
    DecodeInteractions(entry.interactions(), context, command, rejections);
  } else {
    rejections->assign(entry.interactions_size(), absl::StrCat("user_id: ", fault));
  }
}

void DecodeRecommend(const v1::RecommendRequest& request, const DecodeContext& context,
                     RecommendCommand* command, Violations* faults) {
  command->k = kDefaultK;
  if (request.has_k()) {
    if (request.k() < 1 || request.k() > kMostK) {
      faults->Add(context.path + "k", absl::StrCat(request.k(), " is outside 1…1000"));
    } else {
      command->k = static_cast<int>(request.k());
    }
  }
  if (request.as_of_ms() != 0) {
    std::string fault = TimestampFault(request.as_of_ms());
    if (!fault.empty()) faults->Add(context.path + "as_of_ms", std::move(fault));
    command->as_of_ms = request.as_of_ms();
  }
  command->exclude_seen = request.has_exclude_seen() ? request.exclude_seen() : true;
  command->excluded = ResolveItems(request.exclude_item_ids(), "exclude_item_ids", context, faults);
  command->candidates_only = request.candidate_item_ids_size() > 0;
  command->candidates =
      ResolveItems(request.candidate_item_ids(), "candidate_item_ids", context, faults);
  command->min_state_version = request.min_state_version();
  if (context.broken->contains(context.path + "model")) {
    faults->Add(context.path + "model", "is not valid UTF-8");
  }
  CheckCategories(request.category_any_of(), "category_any_of", context, faults);
  CheckCategories(request.category_none_of(), "category_none_of", context, faults);
  if (faults->empty()) {
    command->eligible =
        EligibleItems(request.category_any_of(), request.category_none_of(), *context.catalog);
  }
}

void DecodeGetUser(const v1::GetUserRequest& request, const DecodeContext& context,
                   GetUserCommand* command, Violations* faults) {
  CheckUserId(request.user_id(), context, faults);
  if (request.at_ms() != 0) {
    std::string fault = TimestampFault(request.at_ms());
    if (!fault.empty()) faults->Add(context.path + "at_ms", std::move(fault));
    command->at_ms = request.at_ms();
  }
  if (request.max_events() > kMostUserEvents) {
    faults->Add(context.path + "max_events",
                absl::StrCat(request.max_events(), " is more than ", kMostUserEvents));
  }
  command->max_events = request.max_events();
}

void EncodeRecord(const RecordCommand& command, const std::vector<std::string>& rejections,
                  v1::RecordInteractionsResponse* response) {
  response->mutable_results()->Reserve(static_cast<int>(rejections.size()));
  size_t next = 0;
  for (const std::string& rejection : rejections) {
    v1::InteractionResult* result = response->add_results();
    if (rejection.empty()) {
      result->set_status(EncodeOutcome(command.outcomes[next]));
      if (command.outcomes[next] == EventOutcome::kLateRejected) {
        result->set_reason(LateReason(command, next));
      } else if (command.outcomes[next] == EventOutcome::kExpired) {
        result->set_reason(ExpiredReason(command, next));
      }
      ++next;
    } else {
      result->set_status(v1::INTERACTION_STATUS_REJECTED);
      result->set_reason(rejection);
    }
  }
  response->set_state_version(command.state_version);
}

void EncodeBatchEntry(const RecordCommand& command, const std::vector<std::string>& rejections,
                      uint32_t user_index, v1::StreamInteractionsResponse* response) {
  size_t next = 0;  // in the command
  for (size_t i = 0; i < rejections.size(); ++i) {
    std::string reason = rejections[i];
    if (reason.empty()) {
      const size_t event = next++;
      switch (command.outcomes[event]) {
        case EventOutcome::kApplied:
          response->set_applied(response->applied() + 1);
          continue;
        case EventOutcome::kDuplicate:
          response->set_duplicates(response->duplicates() + 1);
          continue;
        case EventOutcome::kLateRefolded:
          response->set_late_refolded(response->late_refolded() + 1);
          continue;
        case EventOutcome::kUnknownItem:
          response->set_unknown_items(response->unknown_items() + 1);
          continue;
        case EventOutcome::kExpired:
          response->set_expired(response->expired() + 1);
          continue;
        case EventOutcome::kLateRejected:
          reason = LateReason(command, event);
          break;
      }
    }
    v1::RejectedInteraction* rejected = response->add_rejected();
    rejected->set_user_index(user_index);
    rejected->set_interaction_index(static_cast<uint32_t>(i));
    rejected->set_reason(std::move(reason));
  }
}

void EncodeRecommend(const RecommendCommand& command, const LoadedModel& model,
                     google::protobuf::RepeatedPtrField<v1::ScoredItem>* items,
                     v1::Provenance* encoded) {
  items->Reserve(static_cast<int>(command.items.size()));
  for (const ScoredItem& item : command.items) {
    v1::ScoredItem* scored = items->Add();
    scored->set_item_id(model.engine->catalog().item(item.item).id);
    scored->set_score(item.score);
  }
  encoded->set_model(model.version);
  encoded->set_backend(std::string(model.engine->backend().name()));
  encoded->set_state_version(command.state_version);
  encoded->set_event_count(command.event_count);
  encoded->set_last_event_ms(command.last_event_ms);
  encoded->set_tier(EncodeTier(command.tier));
  encoded->set_as_of_ms(command.answered_as_of_ms);
}

void EncodeUser(const GetUserCommand& command, v1::GetUserResponse* response) {
  const Lineage& lineage = command.lineage;
  response->set_event_count(lineage.event_count);
  response->set_state_version(lineage.event_count);
  response->set_first_event_ms(command.first_event_ms);
  response->set_last_event_ms(command.last_event_ms);
  response->set_removed_events(command.removed);
  v1::Lineage* encoded = response->mutable_lineage();
  encoded->set_event_count(lineage.event_count);
  encoded->set_watermark(lineage.watermark);
  encoded->set_hash(absl::StrFormat("%016x%016x", lineage.hash[0], lineage.hash[1]));
  encoded->set_log_truncated(lineage.log_truncated);
  response->set_tier(EncodeTier(command.tier));
  for (const Event& event : command.events) {
    v1::Interaction* interaction = response->add_events();
    interaction->set_item_id(event.item_id);
    interaction->set_timestamp_ms(event.timestamp_ms);
    interaction->set_event_id(event.event_id);
  }
}

}  // namespace tim4rec
