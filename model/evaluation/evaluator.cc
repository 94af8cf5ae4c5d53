#include "model/evaluation/evaluator.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

namespace tim4rec {
namespace {

constexpr size_t kBatch = 32;

// Slots that are given back whatever happens.
class SlotBatch {
 public:
  explicit SlotBatch(Backend* backend) : backend_(backend) {}
  ~SlotBatch() {
    for (const Slot slot : slots_) backend_->Release(slot);
  }
  SlotBatch(const SlotBatch&) = delete;
  SlotBatch& operator=(const SlotBatch&) = delete;

  absl::StatusOr<Slot> Add() {
    auto slot = backend_->Allocate();
    if (slot.ok()) slots_.push_back(*slot);
    return slot;
  }

 private:
  Backend* const backend_;
  std::vector<Slot> slots_;
};

std::vector<ScoredItem> MostPopular(const ItemCatalog& catalog, int k) {
  std::vector<ScoredItem> top;
  for (const int32_t item : catalog.by_popularity()) {
    if (static_cast<int>(top.size()) == k) break;
    top.push_back({item, static_cast<float>(catalog.item(item).train_events)});
  }
  return top;
}

absl::Status RankBatch(const Engine& engine, std::span<const RankingCase> cases, int k,
                       std::span<std::vector<ScoredItem>> top) {
  Backend& backend = engine.backend();
  SlotBatch slots(&backend);
  std::vector<Run> runs;
  std::vector<QueryRequest> queries;
  std::vector<size_t> ranked;
  for (size_t i = 0; i < cases.size(); ++i) {
    if (cases[i].history.empty()) {
      top[i] = MostPopular(engine.catalog(), k);
      continue;
    }
    const auto slot = slots.Add();
    if (!slot.ok()) return slot.status();
    runs.push_back({*slot, cases[i].history});
    queries.push_back({*slot, cases[i].as_of_ms});
    ranked.push_back(i);
  }
  if (ranked.empty()) return absl::OkStatus();
  if (auto status = backend.Advance(runs); !status.ok()) return status;
  const size_t width = engine.config().hidden_size;
  std::vector<float> vectors(ranked.size() * width);
  if (auto status = backend.Query(queries, vectors); !status.ok()) return status;
  std::vector<TopKRequest> requests;
  for (size_t i = 0; i < ranked.size(); ++i) {
    TopKRequest request;
    request.query = std::span<const float>(vectors).subspan(i * width, width);
    request.k = k;
    requests.push_back(request);
  }
  std::vector<std::vector<ScoredItem>> results;
  if (auto status = engine.TopK(requests, queries, &results); !status.ok()) return status;
  for (size_t i = 0; i < ranked.size(); ++i) top[ranked[i]] = std::move(results[i]);
  return absl::OkStatus();
}

int64_t RankOf(int32_t target, const std::vector<ScoredItem>& top) {
  const auto found = std::find_if(top.begin(), top.end(),
                                  [&](const ScoredItem& scored) { return scored.item == target; });
  return found == top.end() ? 0 : found - top.begin() + 1;
}

}  // namespace

RankingResult MeterRanking(std::span<const RankingCase> cases,
                           std::vector<std::vector<ScoredItem>> top) {
  RankingMeter meter;
  BucketMeter by_history(HistoryBuckets()), by_gap(GapBuckets());
  for (size_t i = 0; i < cases.size(); ++i) {
    const int64_t rank = cases[i].target > 0 ? RankOf(cases[i].target, top[i]) : 0;
    meter.Add(rank);
    by_history.Add(static_cast<int64_t>(cases[i].history.size()), rank);
    by_gap.Add(cases[i].gap_ms, rank);
  }
  return {meter.Mean(), by_history.Means(), by_gap.Means(), std::move(top)};
}

absl::StatusOr<RankingResult> EvaluateRanking(const Engine& engine,
                                              std::span<const RankingCase> cases,
                                              const RankingOptions& options) {
  std::vector<std::vector<ScoredItem>> top(cases.size());
  std::atomic<size_t> next{0};
  std::mutex mutex;
  absl::Status failure;
  size_t done = 0;
  const auto work = [&] {
    while (true) {
      const size_t begin = next.fetch_add(kBatch);
      if (begin >= cases.size()) return;
      const size_t count = std::min(kBatch, cases.size() - begin);
      auto status = RankBatch(engine, cases.subspan(begin, count), options.k,
                              std::span(top).subspan(begin, count));
      const std::lock_guard<std::mutex> lock(mutex);
      if (!status.ok()) {
        failure = std::move(status);
        next = cases.size();
        return;
      }
      done += count;
      if (options.progress) options.progress(done);
    }
  };
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const unsigned threads = options.threads > 0 ? options.threads : cores;
  std::vector<std::thread> workers;
  for (unsigned i = 1; i < threads; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  if (!failure.ok()) return failure;

  return MeterRanking(cases, std::move(top));
}

}  // namespace tim4rec
