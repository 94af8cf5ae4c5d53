#include "tests/e2e/plain_fold.h"

#include <bit>
#include <set>
#include <span>

#include "gtest/gtest.h"
#include "model/backends/builtin.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {

void AddTo(const Event& event, UserLog* log) { log->emplace(PositionOf(event), event); }

Lineage LineageOf(const UserLog& log, size_t events) {
  Lineage lineage;
  for (auto at = log.begin(); at != log.end() && events > 0; ++at, --events) {
    lineage.Extend(at->first, at->second.item_id);
  }
  return lineage;
}

PlainFold::PlainFold() : PlainFold(kTinyModel) {}

PlainFold::PlainFold(const std::string& package)
    : engine_(*Engine::Create(*ModelPackage::Open(package), BuiltinBackends(), "cpu")) {}

bool PlainFold::Knows(const Event& event) const {
  return engine_->catalog().Find(event.item_id).has_value();
}

Slot PlainFold::Fold(const UserLog& log, size_t events) const {
  Backend& backend = engine_->backend();
  const Slot slot = *backend.Allocate();
  for (auto at = log.begin(); at != log.end() && events > 0; ++at, --events) {
    const auto item = engine_->catalog().Find(at->second.item_id);
    if (!item) continue;
    const FoldEvent event[] = {{*item, at->second.timestamp_ms}};
    const Run run[] = {{slot, event}};
    EXPECT_TRUE(backend.Advance(run).ok());
  }
  return slot;
}

std::string PlainFold::State(const UserLog& log, size_t events) const {
  Backend& backend = engine_->backend();
  const Slot slot = Fold(log, events);
  std::string record(backend.state_bytes(), '\0');
  EXPECT_TRUE(backend.Export(slot, std::as_writable_bytes(std::span(record))).ok());
  backend.Release(slot);
  return record;
}

std::vector<std::string> PlainFold::Top(const UserLog& log, int64_t as_of_ms, int k,
                                        const RecordedEvents& recorded, int64_t first_day) const {
  Backend& backend = engine_->backend();
  const Slot slot = Fold(log, log.size());
  std::set<int32_t> seen;
  for (const auto& [position, event] : log) {
    if (const auto item = engine_->catalog().Find(event.item_id)) seen.insert(*item);
  }
  const std::vector<int32_t> excluded(seen.begin(), seen.end());
  std::vector<float> query(engine_->config().hidden_size);
  const QueryRequest ask[] = {{slot, as_of_ms}};
  EXPECT_TRUE(backend.Query(ask, query).ok());
  std::vector<float> boost;
  if (engine_->package().trend() != nullptr) {
    boost = PlainBoost(engine_->package(), recorded, first_day, 1, as_of_ms);
  }
  const TopKRequest rank[] = {{.query = query,
                               .k = k,
                               .excluded = excluded,
                               .candidates_only = false,
                               .candidates = {},
                               .eligible = {},
                               .boost = boost}};
  std::vector<std::vector<ScoredItem>> results;
  EXPECT_TRUE(backend.TopK(rank, &results).ok());
  backend.Release(slot);
  std::vector<std::string> top;
  for (const ScoredItem& item : results[0]) {
    top.push_back(engine_->catalog().item(item.item).id + ":" +
                  std::to_string(std::bit_cast<uint32_t>(item.score)));
  }
  return top;
}

}  // namespace tim4rec
