// Our side of compare.py: the production back end and kernels behind a C interface. Functions that
// measure return seconds of thread time; a negative number or null means failure, printed to
// stderr.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/backends/builtin.h"
#include "model/backends/cpu/huge_pages.h"
#include "model/kernels/kernel_set.h"
#include "tests/bench/ceilings.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

struct Opened {
  std::shared_ptr<const ModelPackage> package;
  std::unique_ptr<Backend> backend;
};

template <typename Status>
bool Good(const Status& status) {
  if (status.ok()) return true;
  std::fprintf(stderr, "compare_engine: %s\n", std::string(status.message()).c_str());
  return false;
}

struct alignas(64) Line {
  float floats[16];
};

std::vector<Line> Aligned(int64_t floats) {
  return std::vector<Line>((static_cast<size_t>(floats) + 15) / 16);
}

struct Free {
  void operator()(void* memory) const { FreeHugePages(memory); }
};

struct Ranked {
  const kernels::KernelSet* set;
  kernels::RankTable table;
  std::unique_ptr<void, Free> codes, scales;  // as the back end holds them
};

const kernels::KernelSet* BestSet() {
  const kernels::KernelSet* sets[kernels::kMaxKernelSets];
  return kernels::SupportedKernelSets(sets) > 0 ? sets[0] : nullptr;
}

}  // namespace
}  // namespace tim4rec

using namespace tim4rec;  // NOLINT: names of a C interface

extern "C" {

const char* cmp_isa() {
  const kernels::KernelSet* set = BestSet();
  return set == nullptr ? "scalar" : set->isa;
}

double cmp_fma_gflops() {
  const double start = ThreadSeconds();
  const auto operations = static_cast<double>(MultiplyAddInRegisters(cmp_isa()));
  return 1e-9 * operations / (ThreadSeconds() - start);
}
double cmp_read_gbs() {
  const double start = ThreadSeconds();
  const auto bytes = static_cast<double>(ReadMemory());
  return 1e-9 * bytes / (ThreadSeconds() - start);
}
double cmp_copy_gbs() {
  const double start = ThreadSeconds();
  const auto bytes = static_cast<double>(CopyMemory());
  return 1e-9 * bytes / (ThreadSeconds() - start);
}

// A package of random weights.
int cmp_write_model(const char* dir, int64_t hidden_size, int64_t items) {
  ModelConfig config;
  config.n_items = items;
  config.hidden_size = hidden_size;
  config.time.mean = 5;
  config.time.stddev = 3;
  return Good(WritePackage(dir, MakeTinyModel(config, 1))) ? 0 : -1;
}

void* cmp_open(const char* dir) {
  auto package = ModelPackage::Open(dir);
  if (!package.ok()) return Good(package.status()), nullptr;
  auto backend = BuiltinBackends().factories.at("cpu")(*package);
  if (!backend.ok()) return Good(backend.status()), nullptr;
  return new Opened{*package, *std::move(backend)};
}

int64_t cmp_state_bytes(void* opened) {
  return static_cast<Opened*>(opened)->backend->state_bytes();
}
int32_t cmp_allocate(void* opened) {
  auto slot = static_cast<Opened*>(opened)->backend->Allocate();
  return Good(slot.status()) ? *slot : -1;
}
int cmp_export(void* opened, int32_t slot, void* record, int64_t bytes) {
  const std::span out(static_cast<std::byte*>(record), static_cast<size_t>(bytes));
  return Good(static_cast<Opened*>(opened)->backend->Export(slot, out)) ? 0 : -1;
}
int cmp_import(void* opened, int32_t slot, const void* record, int64_t bytes) {
  const std::span in(static_cast<const std::byte*>(record), static_cast<size_t>(bytes));
  return Good(static_cast<Opened*>(opened)->backend->Import(slot, in)) ? 0 : -1;
}

// One event for each slot, all of it `repeats` times.
double cmp_advance(void* opened, int64_t count, const int32_t* slots, const int32_t* items,
                   const int64_t* timestamps_ms, int64_t repeats) {
  std::vector<FoldEvent> events;
  std::vector<tim4rec::Run> runs;
  for (int64_t i = 0; i < count; ++i) events.push_back({items[i], timestamps_ms[i]});
  for (int64_t i = 0; i < count; ++i) runs.push_back({slots[i], {&events[i], 1}});
  Backend& backend = *static_cast<Opened*>(opened)->backend;
  const double start = ThreadSeconds();
  for (int64_t r = 0; r < repeats; ++r) {
    if (!Good(backend.Advance(runs))) return -1;
  }
  return ThreadSeconds() - start;
}

// What RecordAndRecommend does in the engine: an event, the query at its time, the best k.
double cmp_update_and_recommend(void* opened, int32_t slot, int32_t item, int64_t timestamp_ms,
                                int32_t k, int64_t repeats, int32_t* items, float* query) {
  Opened& our = *static_cast<Opened*>(opened);
  const FoldEvent event = {item, timestamp_ms};
  const tim4rec::Run run = {slot, {&event, 1}};
  const QueryRequest at = {slot, timestamp_ms};
  const auto d = static_cast<size_t>(our.package->config().hidden_size);
  const std::span out(query, d);
  std::vector<std::vector<ScoredItem>> results;
  TopKRequest top;
  top.query = out;
  top.k = k;
  const double start = ThreadSeconds();
  for (int64_t r = 0; r < repeats; ++r) {
    if (!Good(our.backend->Advance({&run, 1})) || !Good(our.backend->Query({&at, 1}, out)) ||
        !Good(our.backend->TopK({&top, 1}, &results))) {
      return -1;
    }
  }
  const double seconds = ThreadSeconds() - start;
  for (size_t i = 0; i < results[0].size(); ++i) items[i] = results[0][i].item;
  return seconds;
}

// `table` [items][d] outlives what is returned.
void* cmp_rank_table(const float* table, int32_t items, int32_t d) {
  const kernels::KernelSet* set = BestSet();
  if (set == nullptr) return nullptr;
  auto* ranked = new Ranked{set, {}, {}, {}};
  ranked->codes.reset(AllocateHugePages(static_cast<size_t>(kernels::RankCodes(items, d))));
  ranked->scales.reset(AllocateHugePages(4 * static_cast<size_t>(kernels::RankScales(items))));
  ranked->table =
      kernels::QuantizeItems(table, items, d, static_cast<uint8_t*>(ranked->codes.get()),
                             static_cast<float*>(ranked->scales.get()));
  return ranked;
}
int64_t cmp_rank_bytes(void* ranked) {
  const kernels::RankTable& table = static_cast<Ranked*>(ranked)->table;
  return kernels::RankCodes(table.items, table.d) + 4 * kernels::RankScales(table.items);
}
// The best k of `count` queries [count][d], to `items` and `scores` [count][k].
double cmp_rank(void* ranked, const float* queries, int64_t count, int32_t k, int32_t* items,
                float* scores) {
  const Ranked& our = *static_cast<Ranked*>(ranked);
  std::vector<kernels::Scored> best(static_cast<size_t>(count * k));
  std::vector<kernels::Scored*> places;
  std::vector<kernels::TopKQuery> asked(static_cast<size_t>(count));
  std::vector<int32_t> found(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    asked[i].query = queries + i * our.table.d;
    asked[i].k = k;
    places.push_back(best.data() + i * k);
  }
  std::vector<Line> scratch = Aligned(our.set->rank_scratch_floats(our.table.d, count));
  const double start = ThreadSeconds();
  our.set->rank(our.table, asked.data(), count, places.data(), found.data(), scratch[0].floats);
  const double seconds = ThreadSeconds() - start;
  for (size_t i = 0; i < best.size(); ++i) {
    items[i] = best[i].item;
    scores[i] = best[i].score;
  }
  return seconds;
}

}  // extern "C"
