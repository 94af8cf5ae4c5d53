// The published model with time: re-encoding windows, ours against the libtorch reference on one
// thread, alternated in one run:
//
//   window_ratios [L] [ROUNDS]
//
// Microseconds of thread time per window, median with smallest and largest, D 64. Query vectors are
// compared.
#include <torch/torch.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "model/backends/builtin.h"
#include "model/kernels/kernel_set.h"
#include "model/reference/published_model.h"
#include "model/reference/tensors.h"
#include "tests/bench/ceilings.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

struct Served {
  std::string isa;
  std::unique_ptr<Backend> backend;
};

std::vector<Served> Backends(std::shared_ptr<const ModelPackage> package) {
  const kernels::KernelSet* sets[kernels::kMaxKernelSets];
  const int count = kernels::SupportedKernelSets(sets);
  std::vector<std::string> names = {"scalar"};
  for (int i = 0; i < count; ++i) names.push_back(sets[i]->isa);
  std::vector<Served> served;
  for (const std::string& name : names) {
    setenv("TIM4REC_FORCE_ISA", name.c_str(), 1);
    auto backend = BuiltinBackends().factories.at("cpu")(package);
    if (!backend.ok()) std::exit(1);
    served.push_back({name, *std::move(backend)});
  }
  return served;
}

void Print(const char* name, int users, std::vector<double> times, double reference) {
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::printf("batch %3d  %-9s %9.1f us per window (%.1f to %.1f)  %6.1f x libtorch\n", users, name,
              median, times.front(), times.back(), reference / median);
}

void Compare(const ModelConfig& config, const PackageContents& contents, int users, int rounds) {
  auto package = ModelPackage::FromContents(contents);
  if (!package.ok()) std::exit(1);
  std::vector<Served> served = Backends(*package);
  PublishedModel model(config);
  if (!ImportTensors(contents.tensors, &model).ok()) std::exit(1);
  model->eval();
  const int64_t length = config.max_item_list_length;
  const auto items = torch::zeros({users, length}, torch::kInt64);
  const auto seconds = torch::zeros({users, length}, torch::kFloat64);
  std::vector<std::vector<FoldEvent>> events;
  std::vector<tim4rec::Run> runs;
  std::vector<QueryRequest> requests;
  for (int user = 0; user < users; ++user) {
    const History history = RandomHistory(config, length, static_cast<uint64_t>(user) + 1);
    auto& own = events.emplace_back();
    for (int64_t i = 0; i < length; ++i) {
      const auto at = static_cast<size_t>(i);
      items[user][i] = history.items[at];
      seconds[user][i] = static_cast<double>(history.timestamps_ms[at]) / 1000;
      own.push_back({history.items[at], history.timestamps_ms[at]});
    }
  }
  for (int user = 0; user < users; ++user) {
    Slot slot = 0;
    for (Served& s : served) slot = *s.backend->Allocate();
    runs.push_back({slot, events[static_cast<size_t>(user)]});
    requests.push_back({slot, events[static_cast<size_t>(user)].back().timestamp_ms});
  }
  torch::Tensor expected;
  std::vector<double> reference_times;
  std::vector<std::vector<double>> times(served.size());
  std::vector<float> queries(static_cast<size_t>(users * config.hidden_size));
  for (int round = 0; round < rounds; ++round) {
    {
      torch::NoGradGuard no_grad;
      const double start = ThreadSeconds();
      expected = model->forward(items, seconds).select(1, length - 1).contiguous();
      reference_times.push_back(1e6 * (ThreadSeconds() - start) / users);
    }
    for (size_t i = 0; i < served.size(); ++i) {
      // A whole window again is a changed window.
      if (!served[i].backend->Advance(runs).ok()) std::exit(1);
      const double start = ThreadSeconds();
      if (!served[i].backend->Query(requests, queries).ok()) std::exit(1);
      times[i].push_back(1e6 * (ThreadSeconds() - start) / users);
      const auto ours = torch::from_blob(queries.data(), {users, config.hidden_size});
      if ((ours - expected).norm().item<double>() > 1e-4 * expected.norm().item<double>()) {
        std::printf("query vectors differ\n");
        std::exit(1);
      }
    }
  }
  std::vector<double> sorted = reference_times;
  std::sort(sorted.begin(), sorted.end());
  const double reference = sorted[sorted.size() / 2];
  Print("libtorch", users, reference_times, reference);
  for (size_t i = 0; i < served.size(); ++i) {
    Print(served[i].isa.c_str(), users, times[i], reference);
  }
}

int Main(int argc, char** argv) {
  torch::set_num_threads(1);
  ModelConfig config;
  config.variant = Variant::kPublished;
  config.time_write = config.time_decay = config.time_query = false;
  config.is_time = true;
  config.n_items = 3000;
  config.max_item_list_length = argc > 1 ? std::atoll(argv[1]) : 50;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 7;
  const PackageContents contents = MakeTinyModel(config, 1);
  for (const int users : {1, 16, 64}) Compare(config, contents, users, rounds);
  return 0;
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main(argc, argv); }
