#include "server/pipeline/purger.h"

#include <utility>

namespace tim4rec {

Purger::Purger(std::function<absl::Status(std::string_view user_id)> purge)
    : purge_(std::move(purge)), thread_([this] { Run(); }) {}

Purger::~Purger() {
  {
    std::unique_lock lock(mutex_);
    closed_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Purger::Take(Job* job) {
  {
    std::unique_lock lock(mutex_);
    jobs_.push_back(job);
  }
  wake_.notify_one();
}

void Purger::Run() {
  for (;;) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return closed_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job* job = jobs_.front();
    jobs_.pop_front();
    lock.unlock();
    job->status = purge_(job->user_id);
    job->Complete();
  }
}

}  // namespace tim4rec
