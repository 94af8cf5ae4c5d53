#include "server/app/store_watch.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"

namespace tim4rec {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLook(100);  // at the count of failed appends
constexpr std::chrono::seconds kWhileWritable(5);
constexpr std::chrono::seconds kWhileNot(1);

}  // namespace

absl::Status StoreVerdict::Note(const absl::Status& probed, absl::Time now) {
  const bool waits = RocksDbStore::IsWait(probed);
  waiting_since_ = waits ? std::min(waiting_since_, now) : absl::InfiniteFuture();
  if (writable_ && waits && now - waiting_since_ < kPatience) return absl::OkStatus();
  writable_ = probed.ok();
  return probed;
}

StoreWatch::StoreWatch(RocksDbStore* store, std::function<void(const absl::Status&)> on_change)
    : store_(store), on_change_(std::move(on_change)), thread_([this] { Run(); }) {}

StoreWatch::~StoreWatch() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void StoreWatch::Run() {
  StoreVerdict verdict;
  bool writable = true;
  uint64_t failures = store_->stats().append_failures;
  Clock::time_point next = Clock::now() + kWhileWritable;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kLook, [this] { return stop_; })) {
    const bool failed = std::exchange(failures, store_->stats().append_failures) != failures;
    if (Clock::now() < next && !(failed && writable)) continue;
    lock.unlock();
    const absl::Status now = verdict.Note(store_->CheckWritable(), absl::Now());
    if (std::exchange(writable, now.ok()) != now.ok()) on_change_(now);
    next = Clock::now() + (writable && !verdict.patient() ? kWhileWritable : kWhileNot);
    lock.lock();
  }
}

}  // namespace tim4rec
