// Trains a model of either variant, or the baseline SASRec: softmax over the whole catalogue, the
// best epoch by validation kept. Causal models learn from every position of every sequence at once;
// the published variant with time is not causal and learns from the last position of a window per
// target, as its released code does.
#ifndef TIM4REC_MODEL_TRAINING_TRAINER_H_
#define TIM4REC_MODEL_TRAINING_TRAINER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config/config.h"
#include "model/evaluation/metrics.h"
#include "model/training/dataset.h"

namespace tim4rec {

// Where the decay rates of a streaming model start.
enum class Initialisation {
  kMamba2,  // A uniform in [1,16], Delta log-uniform in [0.001,0.1]; decay over real time off
  kHippo,   // A_h = h + 1, one Delta = 1 / (median window length); decay over real time off
  kLogTimescales,  // Mamba-2's, and real-time memories log-spaced over the training gaps
};

const char* NameOf(Initialisation init);  // "mamba2", "hippo", "log-timescales"

// What a streaming model knows of the time of a query besides the gap before it (ModelConfig's
// time_query). Engines serve the trend (ItemTrend); the others are candidates that are measured.
struct QueryFeatures {
  bool calendar = false;  // hour of the day and day of the week in UTC, into the gate of the gap
  bool trend = false;     // a learned weight times ItemTimeline::Trend is added to the scores
  bool age = false;       // the same with ItemTimeline::Age; items first seen later are left out

  bool any() const { return calendar || trend || age; }
};

struct TrainOptions {
  int64_t epochs = 20;          // at most
  int64_t patience = 5;         // epochs without a better validation NDCG@10 before it stops
  double learning_rate = 2e-3;  // highest; rises over the warm-up, then falls along a cosine to 5 %
  int64_t warmup_steps = 50;
  double clip_norm = 1;         // gradients with a larger Euclidean norm are scaled down to it
  int64_t batch_events = 2048;  // events of a step, padding included
  int64_t max_length = 200;     // longer histories are cut into windows of this many events
  // The published variant with time: windows of a step, of max_item_list_length events each. The
  // two above do not apply.
  int64_t batch_windows = 512;
  Initialisation init = Initialisation::kLogTimescales;
  uint64_t seed = 1;
  // Of torch; 0: one per core. The operations of small models are too short to share: more than 1
  // pays from a hidden size of about 128 on, on otherwise idle cores.
  int threads = 1;
  // Where steps are computed: "cpu", or "cuda" where libtorch has it; not bit-reproducible there.
  std::string device = "cpu";
  int64_t softmax_block_floats = 1 << 22;  // scores alive at a time: 16 MiB

  // Train SASRec instead of the configuration's variant: a baseline that no engine serves. Of the
  // configuration it takes n_items, hidden_size, num_layers and dropout_prob; it sees the last
  // `max_length` events.
  bool sasrec = false;
  int64_t attention_heads = 2;  // of SASRec; divides hidden_size

  QueryFeatures query;

  // Whether an engine can serve what is trained; else EvaluateWithTorch ranks with it.
  bool served() const { return !sasrec && !query.calendar && !query.age; }

  // Written after each epoch, and read by `resume`. Empty: no checkpoint.
  std::string checkpoint;
  // Go on from the checkpoint as if the run had not been interrupted.
  bool resume = false;

  // INVALID_ARGUMENT listing every fault at once.
  absl::Status Validate() const;
};

struct StepReport {
  int64_t epoch = 0, epochs = 0;  // epoch from 1
  int64_t step = 0, steps = 0;    // of this epoch, from 1
  double loss = 0;                // mean of this epoch so far
  double events_per_second = 0;   // of this epoch so far
  double seconds_left = 0;        // to the end of the last epoch, if it does not stop early
};

struct EpochReport {
  int64_t epoch = 0, epochs = 0;
  double loss = 0;
  RankingMetrics valid;
  int64_t best_epoch = 0;
  double events_per_second = 0;
  double seconds_left = 0;
};

// Tensors by name: shape and row-major data, as in PackageContents.
using TrainedTensors = std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>>;

struct TrainHooks {
  // Validation accuracy of the model with these tensors, computed as it will be served, or as
  // EvaluateWithTorch does. Required.
  std::function<absl::StatusOr<RankingMetrics>(const TrainedTensors&)> validate;
  std::function<void(const StepReport&)> step;    // may be empty
  std::function<void(const EpochReport&)> epoch;  // may be empty
};

// One point of the learning curves.
struct EpochFigures {
  double loss = 0;
  double valid_ndcg10 = 0;
};

struct TrainResult {
  TrainedTensors tensors;  // of the best epoch
  RankingMetrics valid;    // of the best epoch
  int64_t best_epoch = 0;
  int64_t epochs_run = 0;           // the resumed ones included
  double loss = 0;                  // of the last epoch
  std::vector<EpochFigures> curve;  // per epoch, the resumed ones included
};

// `config` has n_items and time filled in. The same data, config, options and seed on the same
// machine give the same bits, whether resumed or not.
//
// INVALID_ARGUMENT: options, config, or a checkpoint of another data set or configuration.
// FAILED_PRECONDITION: no such device. NOT_FOUND: nothing to resume. ABORTED: the loss is not
// finite; says at which step and learning rate. The status of `validate` or of writing the
// checkpoint, as it is. A run that fails or is killed leaves the checkpoint of its last whole
// epoch.
absl::StatusOr<TrainResult> Train(const Dataset& data, const ModelConfig& config,
                                  const TrainOptions& options, const TrainHooks& hooks);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_TRAINING_TRAINER_H_
