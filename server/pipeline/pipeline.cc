#include "server/pipeline/pipeline.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "server/pipeline/purger.h"
#include "server/pipeline/retention_sweep.h"
#include "server/pipeline/worker.h"

namespace tim4rec {
namespace {

constexpr std::chrono::milliseconds kPoll(5);

}  // namespace

uint64_t PartitionOf(std::string_view user_id) {
  return XXH3_64bits(user_id.data(), user_id.size()) % kPartitions;
}

Pipeline::Pipeline(const PipelineOptions& options, const PipelineDeps& deps)
    : models_(deps.models),
      states_(deps.states),
      purger_(std::make_unique<Purger>(deps.purge_user)) {
  const int workers = std::max(1, options.workers);
  for (int i = 0; i < workers; ++i) {
    workers_.push_back(
        std::make_unique<Worker>(i, std::max<int64_t>(1, options.max_resident_users / workers),
                                 options, deps, purger_.get()));
  }
  if (!options.retention.on()) return;
  sweep_ = std::make_unique<RetentionSweep>(
      RetentionSweep::Options{options.retention, options.sweep_interval, options.clock}, deps.log,
      deps.metrics, [this](std::string_view user_id) {
        return workers_[PartitionOf(user_id) % workers_.size()]->OfferCut(user_id);
      });
}

Pipeline::~Pipeline() { (void)Drain(); }

absl::Status Pipeline::Submit(Job* job) {
  if (job->model == nullptr) job->model = models_->serving();
  const uint64_t place = job->history ? histories_++ : PartitionOf(job->user_id);
  return workers_[place % workers_.size()]->Submit(job);
}

absl::Status Pipeline::Refold(const ModelHandle& from, const ModelHandle& to,
                              const std::function<bool()>& stop) {
  const std::vector<std::shared_ptr<Order>> orders = Post(from, to);
  const absl::Cleanup cancel = [&] {
    for (const auto& order : orders) order->stopped = true;
  };
  for (const auto& order : orders) {
    while (order->result.wait_for(kPoll) != std::future_status::ready) {
      if (stop()) return absl::CancelledError("given up before all states were folded");
    }
    if (absl::Status folded = order->result.get(); !folded.ok()) return folded;
  }
  return absl::OkStatus();
}

void Pipeline::ReleaseStates() {
  for (const auto& order : Post(nullptr, nullptr)) order->result.wait();
}

std::vector<std::shared_ptr<Order>> Pipeline::Post(const ModelHandle& from, const ModelHandle& to) {
  std::vector<std::shared_ptr<Order>> orders;
  for (const auto& worker : workers_) {
    orders.push_back(std::make_shared<Order>());
    orders.back()->from = from;
    orders.back()->to = to;
    worker->Post(orders.back());
  }
  return orders;
}

absl::Status Pipeline::Drain() {
  sweep_.reset();
  for (const auto& worker : workers_) worker->Close();
  for (const auto& worker : workers_) worker->Join();
  purger_.reset();
  return states_->Flush();
}

}  // namespace tim4rec
