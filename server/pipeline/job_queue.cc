#include "server/pipeline/job_queue.h"

#include <algorithm>
#include <functional>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

// Keys of shares, 0: nobody's. The lowest bit keeps users and clients apart.
uint64_t UserKey(const Job& job) {
  return job.user_id.empty() ? 0 : std::hash<std::string_view>()(job.user_id) | 1;
}
uint64_t ClientKey(const Job& job) { return job.client & ~uint64_t{1}; }

int64_t BytesOf(const std::vector<Event>& events) {
  int64_t bytes = 0;
  for (const Event& event : events) {
    bytes += static_cast<int64_t>(sizeof event + event.item_id.size() + event.event_id.size());
  }
  return bytes;
}

}  // namespace

JobSize SizeOf(const Job& job) {
  JobSize size{0, static_cast<int64_t>(sizeof job + job.user_id.size())};
  if (job.record) {
    size.rows += static_cast<int64_t>(job.record->events.size());
    size.bytes += BytesOf(job.record->events);
  }
  if (job.history) {
    size.rows += static_cast<int64_t>(job.history->size());
    size.bytes += BytesOf(*job.history);
  }
  if (job.recommend) {
    const RecommendCommand& command = *job.recommend;
    size.rows += 1;
    size.bytes += static_cast<int64_t>(sizeof(int32_t) *
                                           (command.excluded.size() + command.candidates.size()) +
                                       sizeof(uint64_t) * command.eligible.size());
  }
  size.rows = std::max<int64_t>(1, size.rows);
  return size;
}

JobQueue::JobQueue(const Limits& limits) {
  online_.limits = limits;
  bulk_.limits = {std::max<int64_t>(1, limits.rows / 2), std::max<int64_t>(1, limits.bytes / 2)};
}

JobQueue::Refusal JobQueue::Push(Job* job, int64_t rows_for_now, absl::Status* why) {
  Lane& lane = job->bulk ? bulk_ : online_;
  const int64_t most_rows = job->bulk ? lane.limits.rows : std::min(lane.limits.rows, rows_for_now);
  const Waiting waiting{job, SizeOf(*job), UserKey(*job)};
  const uint64_t keys[] = {ClientKey(*job), waiting.user};
  if (!lane.jobs.empty()) {
    const int64_t rows = lane.size.rows + waiting.size.rows;
    const int64_t bytes = lane.size.bytes + waiting.size.bytes;
    if (rows > most_rows || bytes > lane.limits.bytes) {
      *why = absl::ResourceExhaustedError(
          absl::StrCat("queue full: ", lane.size.rows, " rows of ", most_rows, " and ",
                       lane.size.bytes, " bytes of ", lane.limits.bytes,
                       " wait (pipeline.queue_rows, pipeline.queue_bytes); try again later"));
      return Refusal::kFull;
    }
    for (const uint64_t key : keys) {
      const auto held = key == 0 ? lane.shares.end() : lane.shares.find(key);
      if (held == lane.shares.end()) continue;
      if (held->second + waiting.size.rows <= most_rows - rows) continue;
      *why = absl::ResourceExhaustedError(
          absl::StrCat("queue share full: ", held->second, " rows of this ",
                       key == waiting.user ? "user" : "client", " wait and ",
                       most_rows - lane.size.rows, " are free for all; try again later"));
      return Refusal::kShare;
    }
  }
  for (const uint64_t key : keys) {
    if (key != 0) lane.shares[key] += waiting.size.rows;
  }
  lane.size.rows += waiting.size.rows;
  lane.size.bytes += waiting.size.bytes;
  lane.jobs.push_back(waiting);
  return Refusal::kNone;
}

void JobQueue::Pop(Lane* lane, int64_t jobs, int64_t rows, std::vector<Job*>* batch) {
  for (bool first = true; jobs > 0 && !lane->jobs.empty(); --jobs, first = false) {
    const Waiting& next = lane->jobs.front();
    if (!first && next.size.rows > rows) return;
    rows -= next.size.rows;
    for (const uint64_t key : {ClientKey(*next.job), next.user}) {
      const auto held = key == 0 ? lane->shares.end() : lane->shares.find(key);
      if (held == lane->shares.end()) continue;
      held->second -= next.size.rows;
      if (held->second <= 0) lane->shares.erase(held);
    }
    lane->size.rows -= next.size.rows;
    lane->size.bytes -= next.size.bytes;
    batch->push_back(next.job);
    lane->jobs.pop_front();
  }
}

}  // namespace tim4rec
