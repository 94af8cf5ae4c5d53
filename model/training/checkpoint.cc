#include "model/training/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <filesystem>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/reference/tensors.h"

namespace tim4rec {
namespace {

constexpr int64_t kFormatVersion = 2;

// FNV-1a: the checkpoint only has to notice another data set.
class Digest {
 public:
  void Add(uint64_t value) {
    for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ ((value >> (8 * i)) & 0xFF)) * 1099511628211ULL;
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 14695981039346656037ULL;
};

// Makes `from`, already written, durable under the name `to`.
absl::Status SyncAndRename(const std::string& from, const std::string& to) {
  const int file = open(from.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = file >= 0 && fsync(file) == 0;
  const int error = errno;
  if (file >= 0) close(file);
  if (!synced || std::rename(from.c_str(), to.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write the checkpoint ", to, ": ",
                                               std::strerror(synced ? errno : error)));
  }
  return absl::OkStatus();
}

std::string Join(const std::map<std::string, std::string>& identity) {
  return absl::StrJoin(identity, "\n", absl::PairFormatter("\t"));
}

// Keys whose values differ, as "key (checkpoint: a, now: b)".
std::string Differences(const std::string& saved,
                        const std::map<std::string, std::string>& identity) {
  std::map<std::string, std::string> before;
  std::istringstream lines(saved);
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    if (tab != std::string::npos) before[line.substr(0, tab)] = line.substr(tab + 1);
  }
  std::vector<std::string> faults;
  for (const auto& [key, value] : identity) {
    if (before[key] != value) {
      faults.push_back(absl::StrCat(key, " (checkpoint: ", before[key], ", now: ", value, ")"));
    }
  }
  return absl::StrJoin(faults, "; ");
}

torch::Tensor MetricsTensor(const RankingMetrics& m) {
  return torch::tensor(
      {static_cast<double>(m.users), m.hr10, m.ndcg10, m.mrr10, m.hr20, m.ndcg20, m.mrr20},
      torch::kFloat64);
}

RankingMetrics MetricsFrom(const torch::Tensor& tensor) {
  const double* v = tensor.data_ptr<double>();
  return {static_cast<int64_t>(v[0]), v[1], v[2], v[3], v[4], v[5], v[6]};
}

// [epochs,2]: loss and validation NDCG@10.
torch::Tensor CurveTensor(const std::vector<EpochFigures>& curve) {
  const auto tensor = torch::zeros({static_cast<int64_t>(curve.size()), 2}, torch::kFloat64);
  double* values = tensor.data_ptr<double>();
  for (const EpochFigures& epoch : curve) {
    *values++ = epoch.loss;
    *values++ = epoch.valid_ndcg10;
  }
  return tensor;
}

std::vector<EpochFigures> CurveFrom(const torch::Tensor& tensor) {
  std::vector<EpochFigures> curve(tensor.size(0));
  const double* values = tensor.data_ptr<double>();
  for (EpochFigures& epoch : curve) {
    epoch.loss = *values++;
    epoch.valid_ndcg10 = *values++;
  }
  return curve;
}

torch::serialize::OutputArchive TensorArchive(const TrainedTensors& tensors) {
  torch::serialize::OutputArchive archive;
  int64_t index = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::string key = absl::StrCat("t", index++);
    archive.write(absl::StrCat(key, "_name"), c10::IValue(name));
    archive.write(key, torch::from_blob(const_cast<float*>(tensor.second.data()), tensor.first,
                                        torch::kFloat32)
                           .clone());
  }
  archive.write("count", c10::IValue(index));
  return archive;
}

TrainedTensors TensorsFrom(torch::serialize::InputArchive* archive) {
  c10::IValue value;
  archive->read("count", value);
  const int64_t count = value.toInt();
  TrainedTensors tensors;
  for (int64_t i = 0; i < count; ++i) {
    const std::string key = absl::StrCat("t", i);
    archive->read(absl::StrCat(key, "_name"), value);
    torch::Tensor tensor;
    archive->read(key, tensor);
    const float* data = tensor.data_ptr<float>();
    tensors[value.toStringRef()] = {tensor.sizes().vec(), {data, data + tensor.numel()}};
  }
  return tensors;
}

}  // namespace

std::map<std::string, std::string> RunIdentity(const Dataset& data, const ModelConfig& config,
                                               const TrainOptions& options) {
  Digest digest;
  for (const UserHistory& history : data.users) {
    digest.Add(history.items.size());
    for (const int32_t item : history.items) digest.Add(item);
    for (const int64_t time : history.timestamps_ms) digest.Add(time);
  }
  std::string json = config.ToJson();
  std::erase(json, '\n');
  return {
      {"config", json},
      {"data", absl::StrCat(data.users.size(), " users, ", data.n_events, " events, digest ",
                            absl::Hex(digest.value()))},
      {"model", options.sasrec ? absl::StrCat("sasrec, attention heads ", options.attention_heads)
                               : "as configured"},
      {"query features",
       absl::StrCat(options.query.calendar ? "calendar " : "", options.query.trend ? "trend " : "",
                    options.query.age ? "age" : "")},
      {"initialisation", NameOf(options.init)},
      {"seed", absl::StrCat(options.seed)},
      {"learning rate", absl::StrCat(options.learning_rate)},
      {"warm-up steps", absl::StrCat(options.warmup_steps)},
      {"clip norm", absl::StrCat(options.clip_norm)},
      {"batch size", absl::StrCat(options.batch_events)},
      {"windows of a step", absl::StrCat(options.batch_windows)},
      {"maximal length", absl::StrCat(options.max_length)}};
}

absl::Status SaveCheckpoint(const std::string& path,
                            const std::map<std::string, std::string>& identity,
                            const torch::nn::Module& model,
                            const torch::optim::Optimizer& optimizer, const std::mt19937_64& rng,
                            const TrainProgress& progress) {
  const std::string partial = path + ".partial";
  try {
    torch::serialize::OutputArchive archive, model_archive, optimizer_archive;
    archive.write("format_version", c10::IValue(kFormatVersion));
    archive.write("identity", c10::IValue(Join(identity)));
    model.save(model_archive);
    archive.write("model", model_archive);
    optimizer.save(optimizer_archive);
    archive.write("optimizer", optimizer_archive);
    auto best = TensorArchive(progress.best);
    archive.write("best", best);
    std::ostringstream generator;
    generator << rng;
    archive.write("rng", c10::IValue(generator.str()));
    archive.write("torch_rng", at::detail::getDefaultCPUGenerator().get_state());
    archive.write("epochs_done", c10::IValue(progress.epochs_done));
    archive.write("steps_done", c10::IValue(progress.steps_done));
    archive.write("loss", c10::IValue(progress.loss));
    archive.write("best_epoch", c10::IValue(progress.best_epoch));
    archive.write("best_valid", MetricsTensor(progress.best_valid));
    archive.write("curve", CurveTensor(progress.curve));
    archive.save_to(partial);
  } catch (const c10::Error& error) {
    return absl::UnavailableError(absl::StrCat("cannot write the checkpoint ", partial, ": ",
                                               error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot write the checkpoint ", partial, ": ", error.what()));
  }
  return SyncAndRename(partial, path);
}

absl::Status LoadCheckpoint(const std::string& path,
                            const std::map<std::string, std::string>& identity,
                            torch::nn::Module* model, torch::optim::Optimizer* optimizer,
                            std::mt19937_64* rng, TrainProgress* progress) {
  std::error_code error_code;
  if (!std::filesystem::exists(path, error_code)) {
    return absl::NotFoundError(absl::StrCat("nothing to resume: there is no checkpoint ", path,
                                            "; start without --resume"));
  }
  try {
    torch::serialize::InputArchive archive, model_archive, optimizer_archive, best;
    archive.load_from(path);
    c10::IValue value;
    archive.read("format_version", value);
    if (value.toInt() != kFormatVersion) {
      return absl::InvalidArgumentError(absl::StrCat("the checkpoint ", path, " has the format ",
                                                     value.toInt(), ", expected ", kFormatVersion));
    }
    archive.read("identity", value);
    const std::string differences = Differences(value.toStringRef(), identity);
    if (!differences.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the checkpoint ", path, " is of another run: ", differences,
                       "; give the same data and options to resume, or start without --resume"));
    }
    archive.read("best", best);
    progress->best = TensorsFrom(&best);
    const auto read_int = [&](const char* key) {
      archive.read(key, value);
      return value.toInt();
    };
    progress->epochs_done = read_int("epochs_done");
    progress->steps_done = read_int("steps_done");
    progress->best_epoch = read_int("best_epoch");
    archive.read("loss", value);
    progress->loss = value.toDouble();
    torch::Tensor tensor;
    archive.read("best_valid", tensor);
    progress->best_valid = MetricsFrom(tensor);
    archive.read("curve", tensor);
    progress->curve = CurveFrom(tensor);
    archive.read("rng", value);
    std::istringstream(value.toStringRef()) >> *rng;
    archive.read("model", model_archive);
    model->load(model_archive);
    archive.read("optimizer", optimizer_archive);
    optimizer->load(optimizer_archive);
    torch::Tensor generator_state;
    archive.read("torch_rng", generator_state);
    auto generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(generator_state);
  } catch (const c10::Error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a readable checkpoint: ", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not a readable checkpoint: ", error.what()));
  }
  return absl::OkStatus();
}

}  // namespace tim4rec
