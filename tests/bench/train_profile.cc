// What a training step's time goes into: thread CPU seconds by libtorch operator, the operators it
// calls left out. Wraps the production trainer, and stops it after some steps.
//   train_profile FILE [VARIANT] [STEPS] [MAX_LENGTH] [BATCH]
// VARIANT: streaming, no-time, published, published-no-time or sasrec. BATCH: events of a step, or
// windows of a step of `published`.
#include <malloc.h>
#include <sys/resource.h>
#include <time.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/training/dataset.h"
#include "model/training/interactions.h"
#include "model/training/trainer.h"
#include "model/training/windows.h"

namespace tim4rec {
namespace {

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Figures {
  double seconds = 0;
  int64_t calls = 0;
};

// Of this thread, which is the only one that computes.
std::map<std::string, Figures> figures;
std::vector<double> inner;  // seconds of the calls within each open one

struct Open : at::ObserverContext {
  double start = CpuSeconds();
};

std::unique_ptr<at::ObserverContext> Begin(const at::RecordFunction&) {
  inner.push_back(0);
  return std::make_unique<Open>();
}

void End(const at::RecordFunction& function, at::ObserverContext* context) {
  const double seconds = CpuSeconds() - static_cast<Open*>(context)->start;
  Figures& f = figures[function.name()];
  f.seconds += seconds - inner.back();
  ++f.calls;
  inner.pop_back();
  if (!inner.empty()) inner.back() += seconds;
}

struct Enough {};

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: train_profile FILE [VARIANT] [STEPS] [MAX_LENGTH] [BATCH]\n");
    return 2;
  }
  const std::string variant = argc > 2 ? argv[2] : "streaming";
  const int64_t most = argc > 3 ? std::atoll(argv[3]) : 20;
  const auto table = ReadInteractions(argv[1], {});
  const auto data = table.ok() ? BuildDataset(*table, 5, {}) : table.status();
  if (!data.ok()) {
    std::fprintf(stderr, "%s\n", data.status().ToString().c_str());
    return 1;
  }
  ModelConfig config;
  TrainOptions options;
  config.n_items = static_cast<int64_t>(data->items.size());
  config.time = FitTimeConstants(*data);
  config.dropout_prob = 0.3;
  if (variant.rfind("published", 0) == 0) {
    config.variant = Variant::kPublished;
    config.is_time = variant == "published";
  }
  if (variant == "no-time") config.time_write = config.time_decay = config.time_query = false;
  options.sasrec = variant == "sasrec";
  if (argc > 4) options.max_length = config.max_item_list_length = std::atoll(argv[4]);
  if (argc > 5) options.batch_events = options.batch_windows = std::atoll(argv[5]);

  // As `tim4rec train` does.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  double targets = 0;  // of an epoch
  for (const UserHistory& user : data->users) {
    targets += static_cast<double>(std::max<int64_t>(0, user.train_size() - 1));
  }
  double start = 0, epoch_steps = 1;
  int64_t steps = 0;
  TrainHooks hooks;
  hooks.validate = [](const TrainedTensors&) { return RankingMetrics(); };
  hooks.step = [&](const StepReport& report) {
    // The first step warms up.
    epoch_steps = static_cast<double>(report.steps);
    if (steps++ == 0) {
      figures.clear();
      start = CpuSeconds();
    }
    if (steps > most) throw Enough();
  };
  at::addGlobalCallback(at::RecordFunctionCallback(Begin, End));
  try {
    const auto trained = Train(*data, config, options, hooks);
    if (!trained.ok()) std::fprintf(stderr, "%s\n", trained.status().ToString().c_str());
  } catch (const Enough&) {
  }
  const double seconds = CpuSeconds() - start;
  at::clearCallbacks();

  std::vector<std::pair<std::string, Figures>> sorted(figures.begin(), figures.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double counted = 0;
  for (const auto& [name, f] : sorted) counted += f.seconds;
  std::printf("%s, %lld steps: %.3f CPU seconds, about %.0f predictions/s (thread CPU time)\n",
              variant.c_str(), static_cast<long long>(steps - 1), seconds,
              targets / epoch_steps * static_cast<double>(steps - 1) / seconds);
  std::printf("%6.1f %%  outside of operators\n", 100 * (seconds - counted) / seconds);
  for (const auto& [name, f] : sorted) {
    if (f.seconds < 0.004 * seconds) break;
    std::printf("%6.1f %%  %8.1f us a call  %7lld calls  %s\n", 100 * f.seconds / seconds,
                1e6 * f.seconds / static_cast<double>(f.calls), static_cast<long long>(f.calls),
                name.c_str());
  }
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  std::printf("peak resident memory %.0f MB\n", static_cast<double>(usage.ru_maxrss) / 1024);
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Run(argc, argv); }
