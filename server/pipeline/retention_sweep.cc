#include "server/pipeline/retention_sweep.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

constexpr size_t kGroup = 64;
constexpr int kRest = 19;  // times as long as the work
constexpr absl::Duration kBetweenOffers = absl::Milliseconds(20);

}  // namespace

RetentionSweep::RetentionSweep(const Options& options, const EventLog* log, Metrics* metrics,
                               std::function<bool(std::string_view user_id)> offer)
    : options_(options), log_(log), metrics_(metrics), offer_(std::move(offer)), thread_([this] {
        Run();
      }) {}

RetentionSweep::~RetentionSweep() {
  {
    std::unique_lock lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void RetentionSweep::Run() {
  for (;;) {
    const absl::Time round = absl::Now();
    std::string after;
    absl::Time start = round;
    while (SweepSome(&after)) {
      if (!Rest(kRest * (absl::Now() - start))) return;
      start = absl::Now();
    }
    if (!Rest(round + options_.interval - absl::Now())) return;
  }
}

bool RetentionSweep::SweepSome(std::string* after) {
  std::vector<std::string> users;
  const absl::Status listed = log_->ForEachUser(*after, [&](std::string_view user_id) {
    users.emplace_back(user_id);
    return users.size() < kGroup;
  });
  if (!listed.ok()) Fail(listed);
  for (const std::string& user_id : users) {
    if (NeedsCut(user_id)) Offer(user_id);
  }
  if (!users.empty()) *after = users.back();
  return listed.ok() && !users.empty();
}

bool RetentionSweep::NeedsCut(const std::string& user_id) {
  const int64_t oldest_ms = options_.policy.oldest_ms(options_.clock());
  const int64_t most = options_.policy.most_events();
  int64_t events = 0;
  bool needs = false;
  const absl::Status read = log_->Read(user_id, [&](std::string_view, const Event& event) {
    needs = needs || FoldTimeMs(event) < oldest_ms || ++events > most;
    return !needs && options_.policy.max_events_per_user > 0;
  });
  // A damaged log is answered for when the user is asked for.
  if (!read.ok()) metrics_->failed_read->Increment();
  return needs;
}

void RetentionSweep::Offer(const std::string& user_id) {
  while (!offer_(user_id) && Rest(kBetweenOffers)) {
  }
}

void RetentionSweep::Fail(const absl::Status& status) {
  metrics_->failed_read->Increment();
  Log(LogLevel::kWarning, "retention cannot list the users; it begins anew later",
      {{"error", LogText(status)}});
}

bool RetentionSweep::Rest(absl::Duration duration) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, absl::ToChronoNanoseconds(duration), [this] { return stopped_; });
  return !stopped_;
}

}  // namespace tim4rec
