#include "server/pipeline/worker.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/pipeline/micro_batch.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

// Between two steps of a refold, and between two checkpoint writes, in steps: each takes a
// twentieth of the worker's time, or all of it while there are no requests.
constexpr int kRest = 19;
constexpr absl::Duration kIdle = absl::Milliseconds(50);
constexpr size_t kMostToCut = 64;  // users offered to retention

// Jobs of streams: while single calls come, a tenth of the time in slices of kBulkSlice, which is
// what a single call may have to wait for them; else all of it, in slices of kBulkAlone.
constexpr int kBulkShare = 9;
constexpr absl::Duration kBulkSlice = absl::Milliseconds(2);
constexpr absl::Duration kBulkAlone = absl::Milliseconds(20);
constexpr int64_t kMostBulkRows = 65536;

// A pause of this length or longer lets a burst of as much work in.
constexpr absl::Duration kMostBurst = absl::Milliseconds(100);
constexpr absl::Duration kLeastRetry = absl::Milliseconds(5);
constexpr absl::Duration kMostRetry = absl::Seconds(5);

// Until when a job may wait, so that its answer reaches the client before its deadline does; `now`
// if it has none.
absl::Time GiveUp(const Job& job, absl::Time now) {
  if (job.deadline == absl::InfiniteFuture()) return now;
  const absl::Duration left = job.deadline - now;
  return job.deadline - std::clamp(left / 10, absl::Milliseconds(2), absl::Milliseconds(100));
}

}  // namespace

Worker::Worker(int index, int64_t capacity, const PipelineOptions& options,
               const PipelineDeps& deps, Purger* purger)
    : options_(options),
      deps_(deps),
      depth_(deps.metrics->QueueDepth(index)),
      purger_(purger),
      residents_({deps.states, deps.metrics}, capacity, options.checkpoint_group),
      retention_(options.retention,
                 {deps.log, deps.states, deps.truncate, deps.models, deps.metrics, &residents_}),
      next_checkpoint_(options.checkpoint_interval > absl::ZeroDuration()
                           ? absl::Now() + options.checkpoint_interval
                           : absl::InfiniteFuture()),
      queue_({options.queue_rows, options.queue_bytes}),
      idle_since_(absl::Now()),
      thread_([this] { Run(); }) {}

Worker::~Worker() {
  Close();
  Join();
}

absl::Status Worker::Submit(Job* job) {
  absl::Status why;
  job->submitted = absl::Now();
  std::unique_lock lock(mutex_);
  if (closed_) {
    if (!job->bulk) deps_.metrics->dropped_draining->Increment();
    return absl::UnavailableError("the server is draining; try another one");
  }
  if (!job->bulk && std::exchange(idle_, false)) {
    burst_until_ = job->submitted + std::min(kMostBurst, job->submitted - idle_since_);
  }
  const JobQueue::Refusal refusal =
      queue_.Push(job, job->bulk ? BatchTimes::kUnknown : RowsForNow(job->submitted), &why);
  if (refusal == JobQueue::Refusal::kNone) {
    // One call for many jobs, and not while the woken thread would wait for the lock.
    const bool wake = std::exchange(waiting_, false);
    lock.unlock();
    if (wake) wake_.notify_one();
    return why;
  }
  job->retry_after = std::clamp(online_times_.Estimate(queue_.online().rows, FullBatchRows()),
                                kLeastRetry, kMostRetry);
  if (job->bulk) return why;
  (refusal == JobQueue::Refusal::kFull ? deps_.metrics->dropped_queue_full
                                       : deps_.metrics->dropped_queue_share)
      ->Increment();
  return why;
}

int64_t Worker::RowsForNow(absl::Time now) const {
  const absl::Duration burst = std::max(absl::ZeroDuration(), burst_until_ - now);
  return online_times_.RowsWithin(options_.queue_delay + burst, FullBatchRows());
}

int64_t Worker::FullBatchRows() const {
  const int64_t jobs = std::max<int64_t>(1, queue_.online_jobs());
  return options_.max_batch * std::max<int64_t>(1, queue_.online().rows / jobs);
}

void Worker::Post(std::shared_ptr<Order> order) {
  std::unique_lock lock(mutex_);
  if (closed_) {
    order->done.set_value(absl::UnavailableError("the server is draining"));
    return;
  }
  orders_.push_back(std::move(order));
  if (waiting_) wake_.notify_one();
}

bool Worker::OfferCut(std::string_view user_id) {
  std::unique_lock lock(mutex_);
  if (closed_ || offered_.size() + to_cut_ >= kMostToCut) return false;
  offered_.emplace_back(user_id);
  if (waiting_) wake_.notify_one();
  return true;
}

void Worker::Close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  wake_.notify_one();
}

void Worker::Join() {
  if (thread_.joinable()) thread_.join();
}

bool Worker::Take(absl::Time until, std::vector<Job*>* batch) {
  batch->clear();
  std::unique_lock lock(mutex_);
  if (!queue_.has_online() && !std::exchange(idle_, true)) idle_since_ = absl::Now();
  while (queue_.empty() && orders_.empty() && offered_.empty() && !closed_) {
    waiting_ = true;
    if (until == absl::InfiniteFuture()) {
      wake_.wait(lock);
    } else if (wake_.wait_until(lock, absl::ToChronoTime(until)) == std::cv_status::timeout) {
      waiting_ = false;
      break;
    }
    waiting_ = false;
  }
  const absl::Time now = absl::Now();
  if (queue_.has_online()) last_online_ = now;
  taken_bulk_ = queue_.has_bulk() && (!queue_.has_online() || bulk_owed_ >= kBulkSlice);
  if (taken_bulk_) {
    const JobSize before = queue_.bulk();
    const absl::Duration slice = now - last_online_ < kIdle ? kBulkSlice : kBulkAlone;
    queue_.PopBulk(options_.max_batch,
                   std::min(bulk_times_.RowsWithin(slice, kMostBulkRows), kMostBulkRows), batch);
    taken_.rows = before.rows - queue_.bulk().rows;
  } else {
    const JobSize before = queue_.online();
    queue_.PopOnline(options_.max_batch, batch);
    taken_.rows = before.rows - queue_.online().rows;
  }
  depth_.Set(static_cast<double>(queue_.jobs()));
  return !batch->empty() || !closed_;
}

void Worker::RunTaken(const std::vector<Job*>& batch) {
  const absl::Time start = absl::Now();
  if (!taken_bulk_) {
    deps_.metrics->queue_wait_seconds->Observe(
        absl::ToDoubleSeconds(start - batch.front()->submitted));
  }
  RunBatch(batch, /*may_wait=*/true);
  const absl::Duration took = absl::Now() - start;
  std::unique_lock lock(mutex_);
  (taken_bulk_ ? bulk_times_ : online_times_).Add(taken_.rows, took);
  if (taken_bulk_) {
    bulk_owed_ = std::max(absl::ZeroDuration(), bulk_owed_ - took);
  } else if (queue_.has_bulk()) {
    bulk_owed_ += took / kBulkShare;
  }
}

void Worker::Run() {
  std::vector<Job*> batch;
  while (Take(NextWake(), &batch)) {
    if (!batch.empty()) RunTaken(batch);
    RunWaiting();
    TakeOrders();
    ReleaseSome();
    RefoldSome();
    CutSome();
    CheckpointIfDue();
  }
  for (const Waiting& waiting : waiting_jobs_) {
    waiting.job->status = absl::UnavailableError("the server is draining; try another one");
    waiting.job->Complete();
  }
  while (residents_.dirty_count() > 0 && residents_.CheckpointSome().ok()) {
  }
  EndOrders();
}

absl::Time Worker::NextWake() const {
  if (releasing_) return absl::InfinitePast();
  absl::Time next = std::min(next_checkpoint_, residents_.next_release());
  if (checkpoints_left_ > 0) next = std::min(next, next_group_);
  if (!refolds_.empty()) next = std::min(next, next_refold_);
  if (retention_.size() > 0) next = std::min(next, next_cut_);
  if (waiting_jobs_.empty()) return next;
  const absl::Time now = options_.clock();
  for (const Waiting& waiting : waiting_jobs_) {
    next = std::min(next, absl::Now() + (waiting.give_up - now));
  }
  return next;
}

void Worker::TakeOrders() {
  std::vector<std::shared_ptr<Order>> orders;
  {
    std::unique_lock lock(mutex_);
    orders.swap(orders_);
    for (std::string& user_id : offered_) retention_.Add(std::move(user_id));
    offered_.clear();
    to_cut_ = retention_.size();
  }
  for (auto& order : orders) {
    if (order->to == nullptr) {
      releases_.push_back(std::move(order));
    } else {
      refolds_.push_back(std::move(order));
    }
  }
}

void Worker::ReleaseSome() {
  releasing_ = residents_.ReleaseSome(absl::Now());
  if (releasing_) return;
  for (const auto& order : releases_) order->done.set_value(absl::OkStatus());
  releases_.clear();
}

void Worker::RefoldSome() {
  const absl::Time start = absl::Now();
  if (refolds_.empty() || start < next_refold_) return;
  const Order& order = *refolds_.front();
  if (order.stopped) return EndRefold(absl::CancelledError("stopped"));
  if (!refold_) {
    refold_.emplace(Refold::Deps{deps_.log, deps_.states, deps_.metrics, &residents_}, *order.from,
                    order.to);
  }
  const absl::StatusOr<bool> more = refold_->Step();
  if (!more.ok() || !*more) return EndRefold(more.status());
  next_refold_ = RestFrom(start);
}

void Worker::CutSome() {
  const absl::Time start = absl::Now();
  if (retention_.size() == 0 || start < next_cut_) return;
  retention_.Step(options_.clock());
  next_cut_ = RestFrom(start);
}

absl::Time Worker::RestFrom(absl::Time start) const {
  const absl::Time end = absl::Now();
  return start - last_batch_ < kIdle ? end + kRest * (end - start) : end;
}

void Worker::EndRefold(absl::Status status) {
  refold_.reset();
  refolds_.front()->done.set_value(std::move(status));
  refolds_.pop_front();
}

void Worker::EndOrders() {
  TakeOrders();
  const absl::Status drained = absl::UnavailableError("the server is draining");
  while (!refolds_.empty()) EndRefold(drained);
  for (const auto& order : releases_) order->done.set_value(drained);
  releases_.clear();
}

void Worker::RunWaiting() {
  if (waiting_jobs_.empty()) return;
  const absl::Time now = options_.clock();
  std::vector<Job*> ready;
  std::vector<Job*> expired;
  const auto is_due = [&](const Waiting& waiting) {
    const Job& job = *waiting.job;
    const Resident* resident = residents_.Peek(*job.model, job.user_id);
    if (now >= waiting.give_up || job.cancelled.load(std::memory_order_relaxed)) {
      expired.push_back(waiting.job);
    } else if (resident != nullptr && (resident->behind || resident->lineage.event_count >=
                                                               job.recommend->min_state_version)) {
      ready.push_back(waiting.job);
    } else {
      return false;
    }
    return true;
  };
  waiting_jobs_.erase(std::remove_if(waiting_jobs_.begin(), waiting_jobs_.end(), is_due),
                      waiting_jobs_.end());
  if (!ready.empty()) RunBatch(ready, /*may_wait=*/true);
  if (!expired.empty()) RunBatch(expired, /*may_wait=*/false);
}

bool Worker::DropIfLate(Job* job, absl::Time now) {
  if (job->cancelled.load(std::memory_order_relaxed)) {
    deps_.metrics->dropped_cancelled->Increment();
    job->status = absl::CancelledError("cancelled by the client before compute");
  } else if (job->deadline < now) {
    deps_.metrics->dropped_deadline->Increment();
    job->status = absl::DeadlineExceededError("the deadline passed before compute");
  } else {
    return false;
  }
  job->Complete();
  return true;
}

void Worker::RunBatch(const std::vector<Job*>& jobs, bool may_wait) {
  const absl::Time start = absl::Now();
  const absl::Time now = options_.clock();
  std::optional<MicroBatch> batch;
  const auto flush = [&] {
    if (batch) {
      for (Job* job : batch->Execute()) waiting_jobs_.push_back({job, GiveUp(*job, now)});
    }
    batch.reset();
  };
  const MicroBatch::Deps deps{deps_.log,   deps_.states,         deps_.metrics,       &residents_,
                              &retention_, options_.late_policy, deps_.on_states_lost};
  for (Job* job : jobs) {
    if (DropIfLate(job, now)) continue;
    if (job->delete_user) {
      flush();
      DeleteUser(job);
      continue;
    }
    // What came with a record cannot be tried again, and without a deadline nobody says how long.
    if (job->recommend) {
      job->recommend->waits = false;
      job->recommend->may_wait =
          may_wait && !job->record && !job->bulk && GiveUp(*job, now) > now &&
          static_cast<int64_t>(waiting_jobs_.size() + jobs.size()) <= options_.queue_rows;
    }
    if (!batch) batch.emplace(deps, absl::ToUnixMillis(now));
    if (!batch->Add(job)) {
      flush();
      batch.emplace(deps, absl::ToUnixMillis(now));
      batch->Add(job);
    }
  }
  flush();
  deps_.metrics->batch_requests->Observe(static_cast<double>(jobs.size()));
  last_batch_ = absl::Now();
  deps_.metrics->batch_seconds->Observe(absl::ToDoubleSeconds(last_batch_ - start));
}

void Worker::DeleteUser(Job* job) {
  job->stages.queue = absl::Now() - job->submitted;
  residents_.DropUser(job->user_id);
  auto removed = deps_.delete_user(job->user_id);
  if (removed.ok()) {
    job->delete_user->removed = *removed;
    if (job->delete_user->purge) return purger_->Take(job);
  } else {
    deps_.metrics->failed_delete->Increment();
    job->status = removed.status();
  }
  job->Complete();
}

void Worker::CheckpointIfDue() {
  const absl::Time start = absl::Now();
  if (start >= next_checkpoint_) {
    next_checkpoint_ = start + options_.checkpoint_interval;
    checkpoints_left_ = residents_.dirty_count();
  }
  if (checkpoints_left_ <= 0 || start < next_group_) return;
  // One group per batch, so that requests wait for one write at most, and few of them for any.
  const auto written = residents_.CheckpointSome();
  next_group_ = RestFrom(start);
  checkpoints_left_ = written.ok() && *written > 0 ? checkpoints_left_ - *written : 0;
}

}  // namespace tim4rec
