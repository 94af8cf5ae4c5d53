// The chunked masked SSD and what is encoded with it, against float64 and the scalar truth, within
// the bounds of their headers. Prints its seed (TIM4REC_TEST_SEED sets it) and the largest errors.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "model/kernels/cuda/bulk.h"
#include "model/kernels/cuda/bulk_ssd.h"
#include "model/kernels/cuda/mma.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/random_model.h"

namespace tim4rec::cuda {
namespace {

using Random = std::mt19937_64;

int32_t Pick(Random& random, int32_t low, int32_t high) {
  return low + static_cast<int32_t>(random() % static_cast<uint64_t>(high - low + 1));
}

float Range(Random& random, double low, double high) {
  return static_cast<float>(std::uniform_real_distribution<double>(low, high)(random));
}

std::vector<float> Values(size_t count, double low, double high, Random& random) {
  std::vector<float> values(count);
  for (float& value : values) value = Range(random, low, high);
  return values;
}

// From memories of thousands of events to none, and gaps of years.
float RandomLog(Random& random) {
  switch (random() % 6) {
    case 0:
      return 0;
    case 1:
      return -Range(random, 0, 1e-3);
    case 2:
      return -Range(random, 0, 20);
    case 3:
      return random() % 4 == 0 ? -Range(random, 0, 1e10) : -Range(random, 80, 130);
    default:
      return -Range(random, 0, 0.5);
  }
}

struct Case {
  int32_t count, h, p, n;
  bool initial, final;
  std::vector<int32_t> first;
};

// Returns the largest error in units of 2^-11 of the magnitudes' sum.
double CheckSsd(const Case& c, Random& random) {
  const auto t = static_cast<size_t>(c.first.back());
  const int32_t width = c.h * c.p + 2 * c.n + 3;
  const int32_t y_width = c.h * c.p + 1;
  const double log_scale = std::exp(Range(random, -6, 0));
  const auto rows = Values(t * width, -2, 2, random);
  auto delta = Values(t * c.h, 0, 1, random);
  for (float& value : delta) value = static_cast<float>(log_scale) * value * value;
  std::vector<float> log_carry(t * c.h);
  for (float& value : log_carry) value = RandomLog(random);
  const auto skip = Values(static_cast<size_t>(c.h), -1, 1, random);
  const size_t state_floats = static_cast<size_t>(c.h) * c.n * c.p;
  const auto initial = Values(c.initial ? state_floats * c.count : 0, -3, 3, random);

  const DeviceArray<float> device_rows(rows), device_delta(delta), device_log(log_carry),
      device_skip(skip), device_initial(initial);
  const DeviceArray<int32_t> device_first(c.first);
  const DeviceArray<float> y(t * y_width), final(c.final ? state_floats * c.count : 0);
  BulkSsd arguments = {};
  arguments.count = c.count;
  arguments.h = c.h;
  arguments.p = c.p;
  arguments.n = c.n;
  arguments.first = device_first.data();
  arguments.x = device_rows.data();
  arguments.b = arguments.x + c.h * c.p;
  arguments.c = arguments.b + c.n;
  arguments.stride = width;
  arguments.delta = device_delta.data();
  arguments.log_carry = device_log.data();
  arguments.skip = device_skip.data();
  arguments.initial = c.initial ? device_initial.data() : nullptr;
  arguments.final = c.final ? final.data() : nullptr;
  arguments.y = y.data();
  arguments.y_stride = y_width;
  Check(RunBulkSsd(arguments, nullptr));
  const std::vector<float> results = y.Download(), states = final.Download();

  const std::string what = std::to_string(c.count) + " sequences of " + std::to_string(t) +
                           " events, H " + std::to_string(c.h) + ", P " + std::to_string(c.p) +
                           ", N " + std::to_string(c.n);
  double largest = 0;
  const auto compare = [&](float got, double exact, double magnitude, const char* name) {
    const double error = std::fabs(got - exact) / (magnitude + 1e-30) * 2048;
    Expect(error <= 5, what + ": " + name + " " + std::to_string(got) + " instead of " +
                           std::to_string(exact) + ", error " + std::to_string(error));
    largest = std::max(largest, error);
  };
  std::vector<double> state(static_cast<size_t>(c.n) * c.p), sizes(state.size());
  for (int32_t s = 0; s < c.count; ++s) {
    for (int32_t h = 0; h < c.h; ++h) {
      const size_t from = s * state_floats + static_cast<size_t>(h) * c.n * c.p;
      for (size_t i = 0; i < state.size(); ++i) {
        state[i] = c.initial ? static_cast<double>(initial[from + i]) : 0;
        sizes[i] = std::fabs(state[i]);
      }
      for (int32_t at = c.first[s]; at < c.first[s + 1]; ++at) {
        const float* x = rows.data() + static_cast<size_t>(at) * width + h * c.p;
        const float* b = rows.data() + static_cast<size_t>(at) * width + c.h * c.p;
        const double carry =
            std::exp(static_cast<double>(log_carry[static_cast<size_t>(at) * c.h + h]));
        const double step = delta[static_cast<size_t>(at) * c.h + h];
        for (int32_t p = 0; p < c.p; ++p) {
          double sum = static_cast<double>(skip[h]) * x[p], magnitude = std::fabs(sum);
          for (int32_t n = 0; n < c.n; ++n) {
            const size_t i = static_cast<size_t>(n) * c.p + p;
            const double written = step * x[p] * b[n];
            state[i] = carry * state[i] + written;
            sizes[i] = carry * sizes[i] + std::fabs(written);
            sum += state[i] * b[c.n + n];
            magnitude += sizes[i] * std::fabs(b[c.n + n]);
          }
          compare(results[static_cast<size_t>(at) * y_width + h * c.p + p], sum, magnitude, "y");
        }
        Expect(std::isnan(results[static_cast<size_t>(at) * y_width + y_width - 1]),
               what + ": wrote between the rows of y");
      }
      if (!c.final) continue;
      for (size_t i = 0; i < state.size(); ++i) {
        compare(states[from + i], state[i], sizes[i], "state");
      }
    }
  }
  return largest;
}

Case RandomCase(int32_t count, int32_t longest, int32_t h, int32_t p, int32_t n, Random& random) {
  Case c = {count, h, p, n, random() % 2 == 0, random() % 2 == 0, {0}};
  for (int32_t i = 0; i < count; ++i) {
    c.first.push_back(c.first.back() + (random() % 8 == 0 ? 0 : Pick(random, 1, longest)));
  }
  return c;
}

void SsdIsWithinItsBound(Random& random) {
  double largest = 0;
  for (const int32_t longest : {1, 7, 16, 17, 63, 64, 65, 130, 200}) {
    largest = std::max(largest, CheckSsd(RandomCase(3, longest, 4, 32, 32, random), random));
  }
  for (int i = 0; i < (TakesLarge() ? 500 : 25); ++i) {
    const Case c = RandomCase(Pick(random, 1, 5), Pick(random, 1, 150), Pick(random, 1, 3),
                              Pick(random, 1, 70), Pick(random, 1, 70), random);
    largest = std::max(largest, CheckSsd(c, random));
  }
  // Chunks shrink, then the parts of P.
  for (const int32_t n : {256, 512, 1024}) {
    largest = std::max(largest, CheckSsd(RandomCase(1, 40, 1, 9, n, random), random));
  }
  std::printf("(largest error %.2f of 5 2^-11) ", largest);
}

// A gap of years in the middle: what follows is as if it were the beginning, and as precise.
void SsdForgetsWhatIsYearsAgo(Random& random) {
  constexpr int32_t kN = 16, kP = 8, kLength = 64;
  const auto rows = Values(static_cast<size_t>(kLength) * (kP + 2 * kN), -1, 1, random);
  const auto delta = Values(kLength, 0, 1, random);
  auto run = [&](const std::vector<float>& log_carry, int32_t from) {
    const DeviceArray<float> device_rows(rows), device_delta(delta), device_log(log_carry),
        device_skip(std::vector<float>{0.5f});
    const DeviceArray<int32_t> first(std::vector<int32_t>{from, kLength});
    const DeviceArray<float> y(static_cast<size_t>(kLength) * kP);
    BulkSsd a = {};
    a.count = a.h = 1;
    a.p = kP;
    a.n = kN;
    a.first = first.data();
    a.x = device_rows.data();
    a.b = a.x + kP;
    a.c = a.b + kN;
    a.stride = kP + 2 * kN;
    a.delta = device_delta.data();
    a.log_carry = device_log.data();
    a.skip = device_skip.data();
    a.y = y.data();
    a.y_stride = kP;
    Check(RunBulkSsd(a, nullptr));
    return y.Download();
  };
  std::vector<float> log_carry = Values(kLength, -0.1, 0, random);
  log_carry[32] = -1e10f;
  const auto all = run(log_carry, 0), rest = run(log_carry, 32);
  for (size_t i = 32 * kP; i < all.size(); ++i) {
    const double tolerance = 0x1p-9 * (1 + std::fabs(rest[i]));
    Expect(std::fabs(all[i] - rest[i]) <= tolerance, "events after a gap of years differ");
  }
}

// ---- whole models

struct History {
  std::vector<kernels::Event> events;
  int64_t as_of_ms;
};

// The query vector by scalar code.
std::vector<float> ScalarQuery(const gpu_test::Model& model, const History& history) {
  const kernels::Dims& dims = model.dims;
  std::vector<float> query(static_cast<size_t>(dims.d));
  std::vector<uint64_t> record(static_cast<size_t>(gpu_test::RecordBytes(dims) / 8 + 2));
  auto* state = reinterpret_cast<kernels::StateHeader*>(record.data());
  const auto count = static_cast<int64_t>(history.events.size());
  const int64_t floats =
      dims.window > 0 ? kernels::WindowScratchFloats(dims) : kernels::ScratchFloats(dims);
  std::vector<double> scratch(static_cast<size_t>(floats) + 16);
  auto* at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
  if (dims.window > 0) {
    kernels::PushWindow(dims, history.events.data(), count, state);
    kernels::EncodeWindow(dims, model.weights, state, at, query.data());
  } else {
    kernels::Scan(dims, model.weights, history.events.data(), count, state, at);
    kernels::Query(dims, model.weights, state, history.as_of_ms, at, query.data());
  }
  return query;
}

// Every Linear's weights, to tf32.
void RoundWeights(const gpu_test::Model& model) {
  const kernels::Dims& s = model.dims;
  const auto round = [](const float* values, int64_t count) {
    for (int64_t i = 0; values != nullptr && i < count; ++i) {
      const_cast<float*>(values)[i] = RoundToTf32(values[i]);
    }
  };
  for (const kernels::LayerWeights& w : model.layers) {
    round(w.in_proj, int64_t{s.d} * s.projections());
    round(w.out_proj, int64_t{s.e} * s.d);
    round(w.fc1, int64_t{s.d} * s.f);
    round(w.fc2, int64_t{s.f} * s.d);
  }
}

double Distance(const std::vector<float>& a, const float* b) {
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) squares += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(squares);
}

// The largest error of a query vector, relative to it, and as a multiple of the error that scalar
// code makes whose weights are rounded to tf32.
struct EncodeError {
  double relative = 0, multiple = 0;
};

// The encoding of some of the histories, in that order; of windows, out of their records too.
std::vector<float> Encode(const BulkModel& bulk, const kernels::Dims& dims,
                          const std::vector<History>& histories,
                          const std::vector<size_t>& chosen) {
  std::vector<kernels::Event> events;
  std::vector<int32_t> first = {0};
  std::vector<int64_t> as_of;
  for (const size_t i : chosen) {
    events.insert(events.end(), histories[i].events.begin(), histories[i].events.end());
    first.push_back(static_cast<int32_t>(events.size()));
    as_of.push_back(histories[i].as_of_ms);
  }
  const auto count = static_cast<int32_t>(chosen.size());
  const auto rows = static_cast<int32_t>(events.size());
  const DeviceArray<kernels::Event> device_events(events);
  const DeviceArray<int32_t> device_first(first);
  const DeviceArray<int64_t> device_as_of(as_of);
  const DeviceArray<char> workspace(BulkModel::WorkspaceBytes(dims, count, rows));
  const DeviceArray<float> queries(chosen.size() * static_cast<size_t>(dims.d));
  Check(bulk.Encode(device_events.data(), device_first.data(), count, rows, device_as_of.data(),
                    queries.data(), workspace.data(), nullptr));
  const std::vector<float> results = queries.Download();
  if (dims.window == 0) return results;
  const auto record = static_cast<size_t>(gpu_test::RecordBytes(dims));
  std::vector<uint64_t> records(record / 8 * chosen.size());
  const DeviceArray<uint64_t> device_records(records.size());
  std::vector<DeviceQuery> windows;
  for (size_t i = 0; i < chosen.size(); ++i) {
    const std::vector<kernels::Event>& window = histories[chosen[i]].events;
    kernels::PushWindow(dims, window.data(), static_cast<int64_t>(window.size()),
                        reinterpret_cast<kernels::StateHeader*>(records.data() + record / 8 * i));
    windows.push_back(
        {reinterpret_cast<const kernels::StateHeader*>(device_records.data() + record / 8 * i), 0});
  }
  Check(Describe(cudaMemcpy(device_records.data(), records.data(), record * chosen.size(),
                            cudaMemcpyHostToDevice)));
  const DeviceArray<DeviceQuery> device_windows(windows);
  const DeviceArray<float> from_records(results.size());
  Check(bulk.EncodeWindows(device_windows.data(), device_first.data(), count, rows,
                           from_records.data(), workspace.data(), nullptr));
  const std::vector<float> others = from_records.Download();
  Expect(std::memcmp(others.data(), results.data(), sizeof(float) * results.size()) == 0,
         "windows in records are encoded to other bits");
  return results;
}

// Some of the histories, in any order, have the bits that they had among all.
void CheckOtherBatch(const BulkModel& bulk, const kernels::Dims& dims,
                     const std::vector<History>& histories, const std::vector<float>& results,
                     Random& random) {
  std::vector<size_t> chosen(histories.size());
  std::iota(chosen.begin(), chosen.end(), size_t{0});
  std::shuffle(chosen.begin(), chosen.end(), random);
  chosen.resize(1 + random() % (chosen.size() - 1));
  const std::vector<float> others = Encode(bulk, dims, histories, chosen);
  const auto d = static_cast<size_t>(dims.d);
  for (size_t i = 0; i < chosen.size(); ++i) {
    Expect(std::memcmp(others.data() + i * d, results.data() + chosen[i] * d, 4 * d) == 0,
           "history " + std::to_string(chosen[i]) + " has other bits in another batch");
  }
}

void CheckEncode(const gpu_test::Sizes& sizes, int32_t count, int32_t longest, EncodeError* error,
                 Random& random) {
  const uint64_t seed = random();
  Random first_random(seed), second_random(seed);
  const auto model = gpu_test::MakeModel(sizes, &first_random);
  const auto rounded = gpu_test::MakeModel(sizes, &second_random);
  const kernels::Dims& dims = model->dims;
  std::vector<History> histories;
  if (dims.window > 0) longest = std::min(longest, dims.window);
  for (int32_t i = 0; i < count; ++i) {
    int64_t clock_ms = 1'600'000'000'000;
    History& history = histories.emplace_back();
    history.events = gpu_test::RandomEvents(dims, Pick(random, 1, longest), &clock_ms, &random);
    history.as_of_ms = clock_ms + static_cast<int64_t>(random() % 100'000'000'000);
  }
  const DeviceArray<float> embedding(
      std::vector<float>(model->weights.embedding,
                         model->weights.embedding + static_cast<size_t>(dims.items) * dims.d));
  std::unique_ptr<const BulkModel> bulk;
  Check(BulkModel::Create(dims, model->weights, embedding.data(), &bulk));
  std::vector<size_t> all(histories.size());
  std::iota(all.begin(), all.end(), size_t{0});
  const std::vector<float> results = Encode(*bulk, dims, histories, all);
  CheckOtherBatch(*bulk, dims, histories, results, random);

  // What rounding the weights does, taken over all histories: one alone may be lucky.
  std::vector<std::vector<float>> exact;
  double plain = 0;
  for (const History& history : histories) exact.push_back(ScalarQuery(*model, history));
  RoundWeights(*rounded);
  for (int32_t i = 0; i < count; ++i) {
    const std::vector<float>& right = exact[static_cast<size_t>(i)];
    const std::vector<float> other = ScalarQuery(*rounded, histories[static_cast<size_t>(i)]);
    const std::vector<float> zeros(right.size());
    plain = std::max(plain, Distance(right, other.data()) / Distance(zeros, right.data()));
  }
  for (int32_t i = 0; i < count; ++i) {
    const std::vector<float>& right = exact[static_cast<size_t>(i)];
    const std::vector<float> zeros(right.size());
    const double relative = Distance(right, results.data() + static_cast<size_t>(i) * dims.d) /
                            Distance(zeros, right.data());
    const double multiple = relative / (plain + 0x1p-11);
    Expect(multiple <= 4, "D " + std::to_string(dims.d) + ", E " + std::to_string(dims.e) + ", P " +
                              std::to_string(dims.p) + ", N " + std::to_string(dims.n) +
                              ", window " + std::to_string(dims.window) + ", history " +
                              std::to_string(i) + ": relative error " + std::to_string(relative) +
                              ", with rounded weights " + std::to_string(plain));
    error->relative = std::max(error->relative, relative);
    error->multiple = std::max(error->multiple, multiple);
  }
}

void EncodesServedSizes(Random& random) {
  EncodeError error;
  for (int i = 0; i < (TakesLarge() ? 20 : 2); ++i) {
    gpu_test::Sizes sizes = gpu_test::ServedSizes(64);
    CheckEncode(sizes, 5, TakesLarge() ? 200 : 90, &error, random);
    sizes.time_write = sizes.time_decay = sizes.time_query = false;
    sizes.window = 50;
    sizes.window_gate_per_event = i % 2 == 0;
    CheckEncode(sizes, 5, 50, &error, random);
  }
  std::printf("(relative error %.2g, %.2f times that of rounded weights) ", error.relative,
              error.multiple);
}

void EncodesAnySize(Random& random) {
  EncodeError error;
  for (int i = 0; i < (TakesLarge() ? 100 : 10); ++i) {
    gpu_test::Sizes sizes =
        i % 2 == 0 ? gpu_test::RandomSizes(&random) : gpu_test::RandomWindowSizes(&random);
    sizes.d += 8;  // norms of few values multiply any error
    sizes.p = sizes.expand * sizes.d % 4 == 0 && i % 3 == 0 ? 4 : sizes.expand * sizes.d;
    CheckEncode(sizes, 4, 100, &error, random);
  }
  std::printf("(relative error %.2g, %.2f times that of rounded weights) ", error.relative,
              error.multiple);
}

}  // namespace
}  // namespace tim4rec::cuda

int main() {
  using namespace tim4rec::cuda;
  if (!HasDevice()) return 77;
  return RunTests({{"SsdIsWithinItsBound", SsdIsWithinItsBound},
                   {"SsdForgetsWhatIsYearsAgo", SsdForgetsWhatIsYearsAgo},
                   {"EncodesServedSizes", EncodesServedSizes},
                   {"EncodesAnySize", EncodesAnySize}});
}
