#include "model/training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "model/reference/tensors.h"
#include "model/training/checkpoint.h"
#include "model/training/sequence_model.h"
#include "model/training/softmax_loss.h"
#include "model/training/windows.h"

namespace tim4rec {
namespace {

using Clock = std::chrono::steady_clock;

// Adam moves a parameter by at most the learning rate per step. The weights of score terms are few
// and have far to go, about 1 in an epoch of some 50 steps, so theirs is higher by this factor.
constexpr double kTermRate = 10;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Trainer {
 public:
  Trainer(const Dataset& data, const ModelConfig& config, const TrainOptions& options,
          const TrainHooks& hooks)
      : data_(data),
        config_(config),
        options_(options),
        hooks_(hooks),
        identity_(RunIdentity(data, config, options)),
        rng_(options.seed),
        model_(Seeded(options.seed, data, config, options)),
        optimizer_(ParameterGroups(*model_), torch::optim::AdamOptions(options.learning_rate)) {}

  absl::StatusOr<TrainResult> Run() {
    if (options_.resume) {
      auto loaded = LoadCheckpoint(options_.checkpoint, identity_, &model_->module(), &optimizer_,
                                   &rng_, &progress_);
      if (!loaded.ok()) return loaded;
    }
    while (progress_.epochs_done < options_.epochs &&
           (progress_.epochs_done == 0 ||
            progress_.epochs_done - progress_.best_epoch < options_.patience)) {
      if (auto status = RunEpoch(); !status.ok()) return status;
    }
    return TrainResult{progress_.best,        progress_.best_valid, progress_.best_epoch,
                       progress_.epochs_done, progress_.loss,       progress_.curve};
  }

 private:
  static std::unique_ptr<SequenceModel> Seeded(uint64_t seed, const Dataset& data,
                                               const ModelConfig& config,
                                               const TrainOptions& options) {
    torch::manual_seed(seed);
    auto model = MakeSequenceModel(data, config, options);
    model->module().to(torch::Device(options.device));
    return model;
  }

  // All parameters but the weights of score terms, then those, if there are any.
  static std::vector<torch::optim::OptimizerParamGroup> ParameterGroups(SequenceModel& model) {
    const torch::Tensor weights = model.term_weights();
    std::vector<torch::Tensor> parameters = model.module().parameters();
    std::erase_if(parameters, [&](const auto& parameter) { return parameter.is_same(weights); });
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(parameters);
    if (weights.defined()) groups.emplace_back(std::vector<torch::Tensor>{weights});
    return groups;
  }

  void SetLearningRate(double rate) {
    auto& groups = optimizer_.param_groups();
    groups[0].options().set_lr(rate);
    if (groups.size() > 1) groups[1].options().set_lr(kTermRate * rate);
  }

  std::vector<Batch> EpochBatches(const BatchShape& shape) {
    if (shape.last_only) {
      return MakePrefixBatches(data_, shape.window, options_.batch_windows, &rng_);
    }
    return MakeBatches(data_, options_.max_length, options_.batch_events, &rng_);
  }

  absl::Status RunEpoch() {
    const auto start = Clock::now();
    model_->module().train();
    const BatchShape shape = model_->batch_shape();
    const auto batches = EpochBatches(shape);
    const int64_t steps = static_cast<int64_t>(batches.size());
    const int64_t epoch = progress_.epochs_done;  // from 0
    double loss_sum = 0;
    int64_t events = 0;
    double rate = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const double lr = LearningRate((epoch + static_cast<double>(i) / steps) / options_.epochs);
      const BatchTensors tensors =
          MakeBatchTensors(data_, batches[i], shape, config_.time.max_gap_ms)
              .To(torch::Device(options_.device));
      const double loss = Step(tensors, lr);
      if (!std::isfinite(loss)) return Diverged(epoch, i, steps, lr, loss);
      const int64_t targets = tensors.targets.size(0);
      loss_sum += loss * targets;
      events += targets;
      rate = events / std::max(1e-9, SecondsSince(start));
      if (hooks_.step) {
        const double whole = epoch_seconds_ > 0
                                 ? epoch_seconds_
                                 : SecondsSince(start) * steps / static_cast<double>(i + 1);
        hooks_.step({epoch + 1, options_.epochs, i + 1, steps, loss_sum / events, rate,
                     whole * (options_.epochs - epoch) - SecondsSince(start)});
      }
    }
    progress_.loss = loss_sum / std::max<int64_t>(1, events);
    return FinishEpoch(start, rate);
  }

  // Validates, keeps the best, writes the checkpoint and reports.
  absl::Status FinishEpoch(Clock::time_point start, double rate) {
    model_->module().eval();
    TrainedTensors tensors = ExportParameters(model_->module());
    const auto valid = hooks_.validate(tensors);
    if (!valid.ok()) return valid.status();
    ++progress_.epochs_done;
    progress_.curve.push_back({progress_.loss, valid->ndcg10});
    if (progress_.best_epoch == 0 || valid->ndcg10 > progress_.best_valid.ndcg10) {
      progress_.best_epoch = progress_.epochs_done;
      progress_.best_valid = *valid;
      progress_.best = std::move(tensors);
    }
    if (!options_.checkpoint.empty()) {
      auto saved = SaveCheckpoint(options_.checkpoint, identity_, model_->module(), optimizer_,
                                  rng_, progress_);
      if (!saved.ok()) return saved;
    }
    epoch_seconds_ = SecondsSince(start);
    if (hooks_.epoch) {
      hooks_.epoch({progress_.epochs_done, options_.epochs, progress_.loss, *valid,
                    progress_.best_epoch, rate,
                    epoch_seconds_ * (options_.epochs - progress_.epochs_done)});
    }
    return absl::OkStatus();
  }

  // One optimiser step; the loss before it. With a loss that is not finite, nothing is changed.
  double Step(const BatchTensors& tensors, double learning_rate) {
    const auto queries = model_->Queries(tensors);
    auto table = model_->item_vectors();
    ScoreTerms terms = model_->Terms(tensors);
    const SoftmaxLoss softmax = FullSoftmaxLoss(queries.detach(), table.detach(), tensors.targets,
                                                options_.softmax_block_floats, terms);
    if (!std::isfinite(softmax.loss)) return softmax.loss;
    optimizer_.zero_grad();
    queries.backward(softmax.query_gradient);
    table.mutable_grad().add_(softmax.table_gradient);
    if (terms.weights.defined()) terms.weights.mutable_grad() = softmax.weight_gradient;
    torch::nn::utils::clip_grad_norm_(model_->module().parameters(), options_.clip_norm);
    SetLearningRate(learning_rate);
    optimizer_.step();
    ++progress_.steps_done;
    return softmax.loss;
  }

  // `done`: share of the whole run, 0 … 1.
  double LearningRate(double done) const {
    const double warmup =
        std::min(1.0, (progress_.steps_done + 1.0) / std::max<int64_t>(1, options_.warmup_steps));
    const double cosine = 0.05 + 0.95 * 0.5 * (1 + std::cos(M_PI * done));
    return options_.learning_rate * warmup * cosine;
  }

  absl::Status Diverged(int64_t epoch, int64_t step, int64_t steps, double lr, double loss) const {
    return absl::AbortedError(absl::StrFormat(
        "training diverged: the loss is %g at step %d of %d of epoch %d, learning rate %.3g; lower "
        "--lr (it is %g) or --clip-norm, or raise --batch-size%s",
        loss, step + 1, steps, epoch + 1, lr, options_.learning_rate,
        progress_.epochs_done > 0 && !options_.checkpoint.empty()
            ? absl::StrCat("; the state after epoch ", progress_.epochs_done, " is in ",
                           options_.checkpoint)
            : ""));
  }

  const Dataset& data_;
  const ModelConfig& config_;
  const TrainOptions& options_;
  const TrainHooks& hooks_;
  const std::map<std::string, std::string> identity_;
  std::mt19937_64 rng_;
  const std::unique_ptr<SequenceModel> model_;
  torch::optim::Adam optimizer_;
  TrainProgress progress_;
  double epoch_seconds_ = 0;
};

}  // namespace

const char* NameOf(Initialisation init) {
  switch (init) {
    case Initialisation::kMamba2:
      return "mamba2";
    case Initialisation::kHippo:
      return "hippo";
    case Initialisation::kLogTimescales:
      return "log-timescales";
  }
  return "invalid";
}

absl::Status TrainOptions::Validate() const {
  std::vector<std::string> faults;
  const auto require = [&](bool fine, const std::string& fault) {
    if (!fine) faults.push_back(fault);
  };
  require(epochs >= 1, absl::StrCat("epochs is ", epochs, "; expected at least 1"));
  require(patience >= 1, absl::StrCat("patience is ", patience, "; expected at least 1"));
  require(learning_rate > 0 && std::isfinite(learning_rate),
          absl::StrCat("learning rate is ", learning_rate, "; expected a positive number"));
  require(warmup_steps >= 0,
          absl::StrCat("warm-up steps is ", warmup_steps, "; expected 0 or more"));
  require(clip_norm > 0, absl::StrCat("clip norm is ", clip_norm, "; expected a positive number"));
  require(batch_events >= 1, absl::StrCat("batch size is ", batch_events, "; expected at least 1"));
  require(batch_windows >= 1,
          absl::StrCat("windows of a step is ", batch_windows, "; expected at least 1"));
  require(attention_heads >= 1,
          absl::StrCat("attention heads is ", attention_heads, "; expected at least 1"));
  require(max_length >= 1, absl::StrCat("maximal length is ", max_length, "; expected at least 1"));
  require(device == "cpu" || device == "cuda",
          absl::StrCat("device is ", device, "; expected cpu or cuda"));
  require(softmax_block_floats >= 1, "softmax block is empty; expected at least 1 float");
  require(!resume || !checkpoint.empty(), "resume needs a checkpoint");
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("training: ", absl::StrJoin(faults, "; ")));
}

absl::StatusOr<TrainResult> Train(const Dataset& data, const ModelConfig& config,
                                  const TrainOptions& options, const TrainHooks& hooks) {
  if (auto checked = options.Validate(); !checked.ok()) return checked;
  if (auto checked = config.Validate(); !checked.ok()) return checked;
  if (options.sasrec && config.hidden_size % options.attention_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("training: attention heads is ", options.attention_heads,
                     "; expected a divisor of hidden_size, ", config.hidden_size));
  }
  if (options.query.any() && (options.sasrec || config.variant != Variant::kStreaming)) {
    return absl::InvalidArgumentError("training: query features are of the streaming variant");
  }
  if (options.query.calendar && !config.time_query) {
    return absl::InvalidArgumentError(
        "training: the query feature calendar needs gap, whose gate it enters");
  }
  if (config.n_items != static_cast<int64_t>(data.items.size())) {
    return absl::InvalidArgumentError(absl::StrCat("training: n_items is ", config.n_items,
                                                   " and the data has ", data.items.size()));
  }
  const bool trainable = std::any_of(data.users.begin(), data.users.end(),
                                     [](const UserHistory& h) { return h.train_size() >= 2; });
  if (!trainable) {
    return absl::InvalidArgumentError(
        "training: no user has two training events (the last two events of each are held out)");
  }
  if (options.device == "cuda" && !torch::cuda::is_available()) {
    return absl::FailedPreconditionError(
        "training: the device is cuda, and libtorch " TORCH_VERSION
        " here has no CUDA or finds no device; build with a libtorch that has it, or train on cpu");
  }
  try {
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    UseTorchThreads(options.threads > 0 ? options.threads : cores);
    return Trainer(data, config, options, hooks).Run();
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat("training: ", error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "training: out of memory; lower --batch-size or the dimensions");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("training: ", error.what()));
  }
}

}  // namespace tim4rec
