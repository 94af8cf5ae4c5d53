#include "server/pipeline/micro_batch.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "model/engine/new_slot.h"
#include "server/pipeline/history.h"
#include "server/pipeline/verify_user.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

void InsertSorted(int32_t item, std::vector<int32_t>* items) {
  const auto at = std::lower_bound(items->begin(), items->end(), item);
  if (at == items->end() || *at != item) items->insert(at, item);
}

bool IsEligible(const std::vector<uint64_t>& eligible, int32_t item) {
  return eligible.empty() || (eligible[item / 64] >> (item % 64) & 1) != 0;
}

bool Contains(const std::vector<int32_t>& sorted, int32_t item) {
  return std::binary_search(sorted.begin(), sorted.end(), item);
}

}  // namespace

MicroBatch::MicroBatch(const Deps& deps, int64_t now_ms) : deps_(deps), now_ms_(now_ms) {
  deps_.residents->BeginBatch();
}

bool MicroBatch::Add(Job* job) {
  if (job->history) {
    models_.insert(job->model.get());
    histories_.push_back(job);
    jobs_.push_back(job);
    return true;
  }
  auto found = by_user_.find(job->user_id);
  if (found == by_user_.end()) {
    if (static_cast<int64_t>(works_.size()) >= deps_.residents->capacity()) return false;
    UserWork& work = works_.emplace_back();
    work.model = job->model;
    work.user_id = job->user_id;
    found = by_user_.emplace(work.user_id, &work).first;
    models_.insert(job->model.get());
  } else if (found->second->model != job->model) {
    return false;
  }
  found->second->jobs.push_back(job);
  jobs_.push_back(job);
  return true;
}

std::vector<Job*> MicroBatch::Execute() {
  begin_ = lap_ = absl::Now();
  deps_.residents->FollowLog(deps_.log->generation());
  if (deps_.late_policy != LatePolicy::kRefold) {
    for (UserWork& work : works_) PlaceLate(&work);
  }
  AppendRecords();
  // What a failed call wrote may have become part of the log since, and lie below what was
  // appended.
  deps_.residents->FollowLog(deps_.log->generation());
  stages_.append = Lap();
  for (UserWork& work : works_) PrepareUser(&work);
  for (UserWork& work : works_) {
    for (Job* job : work.jobs) {
      if (job->status.ok() && work.status.ok() && job->recommend) PrepareRead(&work, job);
    }
  }
  for (Job* job : histories_) PrepareHistoryRead(job);
  stages_.load = Lap();
  for (const LoadedModel* model : models_) Compute(*model);
  return Finish();
}

absl::Duration MicroBatch::Lap() {
  const absl::Time now = absl::Now();
  return now - std::exchange(lap_, now);
}

void MicroBatch::ObserveStages() const {
  const auto any = [this](auto holds) { return std::any_of(jobs_.begin(), jobs_.end(), holds); };
  if (any([](const Job* job) { return job->record.has_value(); })) {
    deps_.metrics->append_seconds->Observe(absl::ToDoubleSeconds(stages_.append));
  }
  deps_.metrics->load_seconds->Observe(absl::ToDoubleSeconds(stages_.load));
  deps_.metrics->fold_seconds->Observe(absl::ToDoubleSeconds(stages_.fold));
  if (!reads_.empty()) {
    deps_.metrics->rank_seconds->Observe(absl::ToDoubleSeconds(stages_.rank));
  }
}

// An event is late if it lies before one that the log held, or that an earlier request of the batch
// brought, when its own request came: what one batch holds decides nothing. An event of the log is
// no late one, wherever it lies, so that a retry stays a duplicate.
void MicroBatch::PlaceLate(UserWork* work) {
  if (!MayHoldLate(*work)) return;
  absl::StatusOr<LogEnd> end = ReadEnd(*work);
  if (!end.ok()) deps_.metrics->failed_read->Increment();
  for (Job* job : work->jobs) {
    if (!job->record) continue;
    if (end.ok()) {
      PlaceLate(&*job->record, &*end);
    } else {
      job->status = end.status();
    }
  }
}

bool MicroBatch::MayHoldLate(const UserWork& work) const {
  const Resident* resident = deps_.residents->Peek(*work.model, work.user_id);
  if (resident != nullptr && resident->behind) return true;
  Position last = resident == nullptr ? Position() : resident->lineage.watermark;
  for (const Job* job : work.jobs) {
    if (!job->record || job->record->events.empty()) continue;
    if (resident == nullptr) return true;
    Position last_after = last;
    for (const Event& event : job->record->events) {
      Position position = PositionOf(event);
      if (position < last) return true;
      if (position > last_after) last_after = std::move(position);
    }
    last = std::move(last_after);
  }
  return false;
}

absl::StatusOr<MicroBatch::LogEnd> MicroBatch::ReadEnd(const UserWork& work) const {
  std::unordered_set<Position> wanted;
  for (const Job* job : work.jobs) {
    if (!job->record) continue;
    for (const Event& event : job->record->events) wanted.insert(PositionOf(event));
  }
  LogEnd end;
  const auto truncation = deps_.log->ReadTruncation(work.user_id);
  if (!truncation.ok()) return truncation.status();
  if (*truncation) {
    end.removed_up_to = (*truncation)->lineage.watermark;
    end.last = {end.removed_up_to, 0};
  }
  const absl::Status read =
      deps_.log->Read(work.user_id, [&](std::string_view position, const Event& event) {
        const Position own(position);
        end.last = event.late.rank > 0 ? event.late : FoldPlace{own, 0};
        if (wanted.contains(own)) end.stored.insert(own);
        return true;
      });
  if (!read.ok()) return read;
  return end;
}

void MicroBatch::PlaceLate(RecordCommand* record, LogEnd* end) const {
  std::vector<std::pair<Position, size_t>> late;
  Position last_after = end->last.position;
  for (size_t e = 0; e < record->events.size(); ++e) {
    Position position = PositionOf(record->events[e]);
    if (position <= end->removed_up_to || end->stored.contains(position)) continue;
    if (position < end->last.position) {
      late.emplace_back(std::move(position), e);
      continue;
    }
    end->stored.insert(position);
    last_after = std::max(last_after, std::move(position));
  }
  if (deps_.late_policy == LatePolicy::kReject && !late.empty()) {
    record->outcomes.resize(record->events.size(), EventOutcome::kDuplicate);
    record->last_event_ms = TimestampOf(end->last.position).value_or(0);
    for (const auto& [position, e] : late) record->outcomes[e] = EventOutcome::kLateRejected;
  } else {
    std::sort(late.begin(), late.end());  // whatever the order within the request
    for (const auto& [position, e] : late) {
      if (!end->stored.insert(position).second) continue;
      ++end->last.rank;
      record->events[e].late = end->last;
    }
  }
  if (last_after > end->last.position) end->last = {std::move(last_after), 0};
}

void MicroBatch::AppendRecords() {
  std::vector<RecordAppend> appends;
  std::deque<std::vector<Event>> accepted;  // of the records that have rejected events
  Durability durability = Durability::kBuffered;
  for (UserWork& work : works_) {
    for (Job* job : work.jobs) {
      if (!job->record || job->record->events.empty() || !job->status.ok()) continue;
      const RecordCommand& record = *job->record;
      std::span<const Event> events = record.events;
      if (!record.outcomes.empty()) {
        std::vector<Event>& kept = accepted.emplace_back();
        for (size_t e = 0; e < record.events.size(); ++e) {
          if (record.outcomes[e] != EventOutcome::kLateRejected) kept.push_back(record.events[e]);
        }
        events = kept;
      }
      appends.push_back({&work, job, events});
      if (job->record->durability == Durability::kSynced) durability = Durability::kSynced;
    }
  }
  if (appends.empty()) return;
  const absl::Status appended = Append(appends, durability);
  if (absl::IsDataLoss(appended) && appends.size() > 1) {
    // A damaged event is in the way of its own user alone.
    for (const RecordAppend& append : appends) {
      const absl::Status alone = Append({&append, 1}, durability);
      if (!alone.ok()) FailAppends({&append, 1}, alone);
    }
  } else if (!appended.ok()) {
    FailAppends(appends, appended);
  }
  for (const UserWork& work : works_) NoteAdded(work);
}

absl::Status MicroBatch::Append(std::span<const RecordAppend> appends, Durability durability) {
  std::vector<UserEvents> batch;
  for (const RecordAppend& append : appends) {
    batch.push_back({append.work->user_id, append.events});
  }
  const auto appended = deps_.log->Append(batch, durability);
  if (!appended.ok()) return appended.status();
  for (size_t i = 0; i < appends.size(); ++i) {
    RecordCommand& record = *appends[i].job->record;
    record.outcomes.resize(record.events.size(), EventOutcome::kDuplicate);
    size_t next = 0;  // in what was appended
    for (size_t e = 0; e < record.events.size(); ++e) {
      if (record.outcomes[e] == EventOutcome::kLateRejected) continue;
      const AppendOutcome outcome = (*appended)[i][next++];
      if (outcome == AppendOutcome::kExpired) record.outcomes[e] = EventOutcome::kExpired;
      if (outcome != AppendOutcome::kAdded) continue;
      appends[i].work->added.push_back(
          {PositionOf(record.events[e]), &record.events[e], &record.outcomes[e]});
    }
  }
  return absl::OkStatus();
}

void MicroBatch::FailAppends(std::span<const RecordAppend> appends, const absl::Status& status) {
  deps_.metrics->failed_append->Increment();
  static LogLimit limit;
  LogSome(&limit, LogLevel::kError, "append to the event log failed",
          {{"error", LogText(status)}, {"requests", appends.size()}});
  for (const RecordAppend& append : appends) {
    append.job->status = status;
    // A failed write may turn out to have reached the disk. The log decides at the next load.
    deps_.residents->DropUser(append.work->user_id);
  }
}

void MicroBatch::NoteAdded(const UserWork& work) {
  if (work.added.empty()) return;
  const auto first = std::min_element(
      work.added.begin(), work.added.end(),
      [](const AddedEvent& a, const AddedEvent& b) { return a.place() < b.place(); });
  deps_.residents->NoteEvents(*work.model, work.user_id, Position(first->place().first));
}

void MicroBatch::PrepareUser(UserWork* work) {
  const bool resident = deps_.residents->Peek(*work->model, work->user_id) != nullptr;
  const bool needed = std::any_of(work->jobs.begin(), work->jobs.end(), [&](const Job* job) {
    // A verification brings a resident up to date, and loads nobody.
    return job->status.ok() && (job->record || job->recommend || (job->verify_user && resident));
  });
  if (!needed) return;
  work->resident = deps_.residents->Use(*work->model, work->user_id);
  if (work->resident != nullptr && IsLost(*work->resident)) {
    // Perhaps in a ranking or a copy, which no batch noticed.
    if (deps_.on_states_lost) deps_.on_states_lost();
    deps_.residents->Drop(std::exchange(work->resident, nullptr));
    deps_.metrics->states_recovered->Increment();
  }
  if (work->resident == nullptr) {
    work->status = LoadUser(work);
  } else if (work->resident->behind) {
    work->status = UpdateResident(work);
  } else if (work->added.empty()) {
    work->tier = work->resident->pending.empty() ? Tier::kHot : Tier::kRebuilt;
  } else {
    work->status = AdvanceResident(work);
  }
  if (!work->status.ok()) {
    if (work->resident != nullptr) deps_.residents->Drop(std::exchange(work->resident, nullptr));
    return;
  }
  if (work->resident != nullptr) deps_.retention->Consider(*work->resident);
  if (work->resident == nullptr || work->resident->folded == 0) work->tier = Tier::kColdStart;
  switch (work->tier) {
    case Tier::kHot:
      deps_.metrics->lookups_hot->Increment();
      break;
    case Tier::kStored:
      deps_.metrics->lookups_stored->Increment();
      break;
    case Tier::kRebuilt:
      deps_.metrics->lookups_rebuilt->Increment();
      break;
    case Tier::kColdStart:
      deps_.metrics->lookups_cold_start->Increment();
      break;
  }
}

absl::Status MicroBatch::LoadUser(UserWork* work) {
  const auto stored = deps_.states->Get(work->user_id, work->model->fingerprint());
  if (!stored.ok()) {
    deps_.metrics->failed_read->Increment();
    static LogLimit limit;
    LogSome(&limit, LogLevel::kWarning, "checkpoint not readable, folding the log",
            {{"error", LogText(stored.status())}});
  }
  const StateRecord* checkpoint = stored.ok() && stored->has_value() ? &**stored : nullptr;
  std::unordered_set<Position> added;
  for (const AddedEvent& event : work->added) added.insert(event.position);
  const ItemCatalog& catalog = work->model->engine->catalog();
  auto history = ReadHistory(*deps_.log, *deps_.states, *work->model,
                             {.user_id = work->user_id,
                              .checkpoint = checkpoint == nullptr ? nullptr : &checkpoint->lineage,
                              .added = &added});
  if (!history.ok()) {
    deps_.metrics->failed_read->Increment();
    return history.status();
  }
  for (const AddedEvent& event : work->added) {
    *event.outcome = !catalog.Find(event.event->item_id) ? EventOutcome::kUnknownItem
                     : event.place().first < history->last_before_added
                         ? EventOutcome::kLateRefolded
                         : EventOutcome::kApplied;
  }
  if (history->lineage.event_count == 0) return absl::OkStatus();
  auto loaded = deps_.residents->Load(work->model, work->user_id, *std::move(history), checkpoint);
  if (!loaded.ok()) return loaded.status();
  work->resident = loaded->resident;
  work->loaded = true;
  work->tier = loaded->tier;
  return absl::OkStatus();
}

absl::Status MicroBatch::AdvanceResident(UserWork* work) {
  Resident* resident = work->resident;
  std::sort(work->added.begin(), work->added.end(),
            [](const AddedEvent& a, const AddedEvent& b) { return a.place() < b.place(); });
  if (work->added.front().place().first < resident->lineage.watermark) return UpdateResident(work);
  for (const AddedEvent& event : work->added) {
    const auto item = work->model->engine->catalog().Find(event.event->item_id);
    *event.outcome = item ? EventOutcome::kApplied : EventOutcome::kUnknownItem;
    resident->lineage.Extend(event.position, event.event->item_id);
    resident->last_event_ms = FoldTimeMs(*event.event);
    if (item) {
      resident->pending.push_back({*item, resident->last_event_ms});
      InsertSorted(*item, &resident->seen);
      ++resident->folded;
    }
  }
  work->tier = Tier::kHot;
  deps_.residents->Changed(resident);
  return absl::OkStatus();
}

// Late events, or events that came through another model: what is folded now is decided by the log.
absl::Status MicroBatch::UpdateResident(UserWork* work) {
  Resident* resident = work->resident;
  const ItemCatalog& catalog = work->model->engine->catalog();
  for (const AddedEvent& event : work->added) {
    *event.outcome = !catalog.Find(event.event->item_id) ? EventOutcome::kUnknownItem
                     : event.place().first < resident->lineage.watermark
                         ? EventOutcome::kLateRefolded
                         : EventOutcome::kApplied;
  }
  auto history = ReadHistory(*deps_.log, *deps_.states, *work->model,
                             {.user_id = work->user_id, .checkpoint = &resident->lineage});
  if (!history.ok()) {
    deps_.metrics->failed_read->Increment();
    return history.status();
  }
  const auto rebuilt = deps_.residents->Update(resident, *std::move(history));
  if (!rebuilt.ok()) return rebuilt.status();
  work->tier = *rebuilt ? Tier::kRebuilt : Tier::kHot;
  return absl::OkStatus();
}

void MicroBatch::PrepareRead(UserWork* work, Job* job) {
  RecommendCommand& command = *job->recommend;
  const Resident* resident = work->resident;
  const uint64_t version = resident == nullptr ? 0 : resident->lineage.event_count;
  if (version < command.min_state_version && command.may_wait) {
    command.waits = true;
    return;
  }
  if (version < command.min_state_version) {
    job->status =
        absl::FailedPreconditionError(absl::StrCat("min_state_version: ", command.min_state_version,
                                                   " is not reached, the user is at ", version));
    return;
  }
  command.state_version = version;
  command.event_count = resident == nullptr ? 0 : resident->folded;
  command.last_event_ms = resident == nullptr ? 0 : resident->last_event_ms;
  command.tier = work->tier;
  command.answered_as_of_ms = command.as_of_ms.value_or(now_ms_);

  Read read;
  read.job = job;
  read.model = work->model.get();
  if (resident != nullptr) {
    read.slot = resident->slot;
    read.seen = &resident->seen;
    read.past = command.as_of_ms && *command.as_of_ms < resident->last_event_ms;
  }
  if (read.past) {
    read.slot = -1;
    job->status = PreparePastRead(&read);
    if (!job->status.ok()) return;
  }
  AddRead(std::move(read));
}

void MicroBatch::PrepareHistoryRead(Job* job) {
  RecommendCommand& command = *job->recommend;
  command.answered_as_of_ms = command.as_of_ms.value_or(now_ms_);
  Read read;
  read.job = job;
  read.model = job->model.get();
  read.past = true;
  job->status = ReadHistoryOf(&read);
  if (job->status.ok()) AddRead(std::move(read));
}

absl::Status MicroBatch::ReadHistoryOf(Read* read) {
  const auto until_ms =
      read->job->recommend->as_of_ms.value_or(std::numeric_limits<int64_t>::max());
  return ReadFrom(HistoryOf(*read->job->history, read->model->engine->catalog(), until_ms), read);
}

void MicroBatch::AddRead(Read read) {
  reads_.push_back(std::move(read));
  // The deque keeps its elements in place, so a past read may point into itself from here on.
  if (reads_.back().past) reads_.back().seen = &reads_.back().past_seen;
}

absl::Status MicroBatch::PastError(const char* field, const absl::Status& status) const {
  if (absl::IsOutOfRange(status)) {
    return absl::OutOfRangeError(absl::StrCat(field, ": ", status.message()));
  }
  deps_.metrics->failed_read->Increment();
  return status;
}

absl::Status MicroBatch::PreparePastRead(Read* read) {
  const RecommendCommand& command = *read->job->recommend;
  auto history = ReadHistory(*deps_.log, *deps_.states, *read->model,
                             {.user_id = read->job->user_id, .until_ms = *command.as_of_ms});
  if (!history.ok()) return PastError("as_of_ms", history.status());
  return ReadFrom(*std::move(history), read);
}

absl::Status MicroBatch::ReadFrom(UserHistory history, Read* read) {
  RecommendCommand& command = *read->job->recommend;
  command.state_version = history.lineage.event_count;
  command.event_count = history.base_folds + history.fold.size();
  command.last_event_ms = history.last_event_ms;
  command.tier = command.event_count == 0 ? Tier::kColdStart : Tier::kRebuilt;
  read->past_seen = SeenItems(history.fold);
  if (command.event_count == 0) return absl::OkStatus();
  const absl::StatusOr<Slot> slot = NewSlot(read->model->engine->backend(), history.base);
  if (!slot.ok()) return slot.status();
  read->slot = *slot;
  read->pending = std::move(history.fold);
  return absl::OkStatus();
}

void MicroBatch::Compute(const LoadedModel& model) {
  PrepareRank(model);
  for (;;) {
    absl::Status status = Fold(model);
    stages_.fold += Lap();
    if (status.ok()) status = Rank(model);
    stages_.rank += Lap();
    if (status.ok()) break;
    Recover(model, status);
    stages_.load += Lap();
  }
  for (const Read& read : reads_) {
    if (read.model == &model && read.past && read.slot >= 0) {
      model.engine->backend().Release(read.slot);
    }
  }
}

// New slots are not lost, so this ends.
void MicroBatch::Recover(const LoadedModel& model, const absl::Status& lost) {
  Backend& backend = model.engine->backend();
  static LogLimit limit;
  LogSome(&limit, LogLevel::kError, "states are lost with their device; the store rebuilds them",
          {{"error", LogText(lost)}, {"model", model.version}});
  if (deps_.on_states_lost) deps_.on_states_lost();
  for (UserWork& work : works_) {
    if (work.model.get() != &model || work.resident == nullptr || !IsLost(*work.resident)) continue;
    deps_.residents->Drop(std::exchange(work.resident, nullptr));
    work.status = LoadUser(&work);
    deps_.metrics->states_recovered->Increment();
  }
  for (Read& read : reads_) {
    RecommendCommand& command = *read.job->recommend;
    if (read.model != &model || read.slot < 0 || !read.job->status.ok()) continue;
    if (read.past) {
      if (!backend.Lost(read.slot)) continue;
      backend.Release(std::exchange(read.slot, -1));
      read.job->status = read.job->history ? ReadHistoryOf(&read) : PreparePastRead(&read);
      continue;
    }
    const UserWork& work = *by_user_.find(read.job->user_id)->second;
    if (work.resident != nullptr) {
      read.slot = work.resident->slot;
      if (command.tier != Tier::kColdStart) command.tier = work.tier;
    } else {
      read.job->status = work.status;
    }
  }
}

absl::Status MicroBatch::Fold(const LoadedModel& model) {
  std::vector<Run> runs;
  for (const UserWork& work : works_) {
    if (work.model.get() != &model || work.resident == nullptr || !work.status.ok()) continue;
    if (!work.resident->pending.empty()) {
      runs.push_back({work.resident->slot, work.resident->pending});
    }
  }
  for (const Read& read : reads_) {
    if (read.model == &model && !read.pending.empty()) runs.push_back({read.slot, read.pending});
  }
  if (runs.empty()) return absl::OkStatus();
  absl::Status advanced = model.engine->backend().Advance(runs);
  if (IsStateLost(advanced)) return advanced;
  if (!advanced.ok()) {
    static LogLimit limit;
    LogSome(&limit, LogLevel::kError, "fold failed",
            {{"error", LogText(advanced)}, {"runs", runs.size()}});
    FailFold(model, advanced);
    return absl::OkStatus();
  }
  for (const UserWork& work : works_) {
    if (work.model.get() != &model || work.resident == nullptr || !work.status.ok()) continue;
    if (!work.resident->pending.empty()) deps_.residents->Folded(work.resident);
  }
  for (Read& read : reads_) {
    if (read.model == &model) read.pending.clear();
  }
  return absl::OkStatus();
}

// The events are in the log, and the states are not what their lineage says: load them anew.
void MicroBatch::FailFold(const LoadedModel& model, const absl::Status& status) {
  for (Read& read : reads_) {
    if (read.model == &model && !read.pending.empty()) read.job->status = status;
  }
  for (UserWork& work : works_) {
    if (work.model.get() != &model || work.resident == nullptr) continue;
    if (work.resident->pending.empty()) continue;
    work.status = status;
    deps_.residents->Drop(std::exchange(work.resident, nullptr));
    for (Read& read : reads_) {
      if (read.model == &model && read.job->user_id == work.user_id) read.job->status = status;
    }
  }
}

void MicroBatch::PrepareRank(const LoadedModel& model) {
  for (Read& read : reads_) {
    if (read.model != &model || !read.job->status.ok()) continue;
    const RecommendCommand& command = *read.job->recommend;
    if (command.exclude_seen && read.seen != nullptr) {
      std::set_union(read.seen->begin(), read.seen->end(), command.excluded.begin(),
                     command.excluded.end(), std::back_inserter(read.excluded));
    } else {
      read.excluded = command.excluded;
    }
    if (command.tier == Tier::kColdStart) RankByPopularity(&read);
  }
}

absl::Status MicroBatch::Rank(const LoadedModel& model) {
  std::vector<Read*> ranked;
  std::vector<QueryRequest> requests;
  for (Read& read : reads_) {
    const RecommendCommand& command = *read.job->recommend;
    if (read.model != &model || !read.job->status.ok()) continue;
    if (command.tier == Tier::kColdStart) continue;
    ranked.push_back(&read);
    requests.push_back({read.slot, command.answered_as_of_ms});
  }
  if (ranked.empty()) return absl::OkStatus();
  const size_t width = model.engine->config().hidden_size;
  std::vector<float> queries(ranked.size() * width);
  std::vector<TopKRequest> top(ranked.size());
  std::vector<std::vector<ScoredItem>> results;
  for (size_t i = 0; i < ranked.size(); ++i) {
    const RecommendCommand& command = *ranked[i]->job->recommend;
    top[i] = {.query = std::span(queries).subspan(i * width, width),
              .k = command.k,
              .excluded = ranked[i]->excluded,
              .candidates_only = command.candidates_only,
              .candidates = command.candidates,
              .eligible = command.eligible,
              .boost = {}};
  }
  absl::Status status = model.engine->backend().Query(requests, std::span(queries));
  if (IsStateLost(status)) return status;
  if (status.ok()) status = model.engine->TopK(top, requests, &results);
  for (size_t i = 0; i < ranked.size(); ++i) {
    if (status.ok()) {
      ranked[i]->job->recommend->items = std::move(results[i]);
    } else {
      ranked[i]->job->status = status;
    }
  }
  return absl::OkStatus();
}

void MicroBatch::RankByPopularity(Read* read) {
  RecommendCommand& command = *read->job->recommend;
  const ItemCatalog& catalog = read->model->engine->catalog();
  for (const int32_t item : catalog.by_popularity()) {
    if (static_cast<int>(command.items.size()) == command.k) break;
    if (!IsEligible(command.eligible, item) || Contains(read->excluded, item)) continue;
    if (command.candidates_only && !Contains(command.candidates, item)) continue;
    command.items.push_back({item, static_cast<float>(catalog.item(item).train_events)});
  }
}

void MicroBatch::ReadUser(const UserWork& work, Job* job) {
  GetUserCommand& command = *job->get_user;
  std::optional<StateRecord> checkpoint;
  if (!command.at_ms) {
    auto stored = deps_.states->Get(work.user_id, work.model->fingerprint());
    if (stored.ok()) checkpoint = *std::move(stored);
  }
  HistoryRequest request{.user_id = work.user_id};
  if (command.at_ms) request.until_ms = *command.at_ms;
  if (checkpoint) request.checkpoint = &checkpoint->lineage;
  auto history = ReadHistory(*deps_.log, *deps_.states, *work.model, request);
  if (!history.ok()) {
    job->status = PastError("at_ms", history.status());
    return;
  }
  const uint64_t count = history->lineage.event_count - history->removed;
  command.removed = history->removed;
  command.tier = history->base_folds + history->fold.size() == 0 ? Tier::kColdStart
                 : !command.at_ms && deps_.residents->Peek(*work.model, work.user_id) != nullptr
                     ? Tier::kHot
                 : history->checkpoint_folds ? Tier::kStored
                                             : Tier::kRebuilt;
  command.first_event_ms = history->first_event_ms;
  command.last_event_ms = history->last_event_ms;
  command.lineage = std::move(history->lineage);
  if (command.max_events == 0 || count == 0) return;
  uint64_t skip = count - std::min<uint64_t>(count, command.max_events);
  uint64_t left = count - skip;
  job->status = deps_.log->Read(work.user_id, [&](std::string_view, const Event& event) {
    if (skip > 0) {
      --skip;
      return true;
    }
    command.events.push_back(event);
    return --left > 0;
  });
}

void MicroBatch::Verify(const UserWork& work, Job* job) {
  const Resident* resident = deps_.residents->Peek(*work.model, work.user_id);
  // There is nothing to compare of a state that is lost, or becomes so meanwhile.
  do {
    if (resident != nullptr && IsLost(*resident)) resident = nullptr;
    job->status = VerifyUser(*work.model, *deps_.log, *deps_.states, work.user_id, resident,
                             &*job->verify_user);
  } while (IsStateLost(job->status));
}

void MicroBatch::Count(const RecordCommand& record) const {
  for (const EventOutcome outcome : record.outcomes) {
    switch (outcome) {
      case EventOutcome::kApplied:
        deps_.metrics->events_applied->Increment();
        break;
      case EventOutcome::kDuplicate:
        deps_.metrics->events_duplicate->Increment();
        break;
      case EventOutcome::kLateRefolded:
        deps_.metrics->events_late_refolded->Increment();
        break;
      case EventOutcome::kUnknownItem:
        deps_.metrics->events_unknown_item->Increment();
        break;
      case EventOutcome::kLateRejected:
        deps_.metrics->events_rejected->Increment();
        break;
      case EventOutcome::kExpired:
        deps_.metrics->events_expired->Increment();
        break;
    }
  }
}

std::vector<Job*> MicroBatch::Finish() {
  for (const UserWork& work : works_) {
    const auto scans = [](const Job* job) { return job->bulk && !job->record; };
    if (work.loaded && work.resident != nullptr &&
        std::all_of(work.jobs.begin(), work.jobs.end(), scans)) {
      deps_.residents->Demote(work.resident);
    }
    const uint64_t version = work.resident == nullptr ? 0 : work.resident->lineage.event_count;
    for (Job* job : work.jobs) {
      if (job->status.ok() && !job->get_user) job->status = work.status;
      if (!job->status.ok()) continue;
      if (job->get_user) ReadUser(work, job);
      if (job->verify_user) Verify(work, job);
      if (!job->record) continue;
      job->record->state_version = version;
      Count(*job->record);
    }
  }
  stages_.load += Lap();
  ObserveStages();
  // The users' ids belong to the jobs: nothing of the batch is read once they are complete.
  std::vector<Job*> waiting;
  for (Job* job : jobs_) {
    job->stages = stages_;
    job->stages.queue = begin_ - job->submitted;
    if (job->status.ok() && job->recommend && job->recommend->waits) {
      waiting.push_back(job);
    } else {
      job->Complete();
    }
  }
  return waiting;
}

}  // namespace tim4rec
