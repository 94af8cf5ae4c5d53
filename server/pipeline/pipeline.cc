#include "server/pipeline/pipeline.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "server/pipeline/worker.h"

namespace tim4rec {

uint64_t PartitionOf(std::string_view user_id) {
  return XXH3_64bits(user_id.data(), user_id.size()) % kPartitions;
}

Pipeline::Pipeline(const PipelineOptions& options, const PipelineDeps& deps)
    : states_(deps.states) {
  const int workers = std::max(1, options.workers);
  for (int i = 0; i < workers; ++i) {
    workers_.push_back(std::make_unique<Worker>(
        i, std::max<int64_t>(1, options.max_resident_users / workers), options, deps));
  }
}

Pipeline::~Pipeline() { (void)Drain(); }

absl::Status Pipeline::Submit(Job* job) {
  return workers_[PartitionOf(job->user_id) % workers_.size()]->Submit(job);
}

absl::Status Pipeline::SubmitBulk(Job* job) {
  return workers_[PartitionOf(job->user_id) % workers_.size()]->SubmitBulk(job);
}

absl::Status Pipeline::Drain() {
  for (const auto& worker : workers_) worker->Close();
  for (const auto& worker : workers_) worker->Join();
  return states_->Flush();
}

}  // namespace tim4rec
