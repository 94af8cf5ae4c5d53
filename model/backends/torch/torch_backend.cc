#include "model/backends/torch/torch_backend.h"

#include <torch/torch.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/backends/request_checks.h"
#include "model/reference/published_model.h"
#include "model/reference/streaming_model.h"
#include "model/reference/tensors.h"

namespace tim4rec {
namespace {

// Longer runs are folded in pieces, so that memory is bounded.
constexpr size_t kLongestPiece = 4096;

struct TorchSlot {
  bool allocated = false;
  int64_t last_timestamp_ms = 0;
  int64_t folded_events = 0;
  torch::Tensor record;  // [floats] of StateLayout, on the device; undefined: no events
  // Of a model with a window, instead: its events, and the query vector [D] that they encode to.
  std::vector<FoldEvent> window;
  torch::Tensor encoded;  // undefined: not made since the last change
};

// A slot's state to be, after a run.
struct Advanced {
  TorchSlot* slot;
  std::span<const FoldEvent> events;
  torch::Tensor record;
};

// The recurrent part of a published model without time is the streaming one's without uses of time.
ModelConfig RecurrentConfig(ModelConfig config) {
  if (config.variant == Variant::kPublished) {
    config.variant = Variant::kStreaming;
    config.time_write = config.time_decay = config.time_query = false;
  }
  return config;
}

NamedTensors TensorsOf(const ModelPackage& package) {
  NamedTensors tensors;
  for (const auto& [name, shape] : TensorShapes(package.config())) {
    const auto data = package.tensor(name).data;
    tensors[name] = {shape, {data.begin(), data.end()}};
  }
  return tensors;
}

template <typename Compute>
absl::Status Caught(const Compute& compute) {
  try {
    torch::NoGradGuard no_grad;
    return compute();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(absl::StrCat("libtorch: ", error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat("libtorch: ", error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("libtorch: out of memory");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("libtorch: ", error.what()));
  }
}

class TorchBackend : public Backend {
 public:
  TorchBackend(std::shared_ptr<const ModelPackage> package, torch::Device device)
      : package_(std::move(package)),
        config_(package_->config()),
        layout_(StateLayout::Of(config_)),
        device_(device),
        device_name_(device.str()) {}

  absl::Status Start() {
    UseTorchThreads(1);
    const NamedTensors tensors = TensorsOf(*package_);
    if (config_.has_window()) {
      window_model_ = PublishedModel(config_);
      return Place(tensors, &window_model_);
    }
    model_ = StreamingModel(RecurrentConfig(config_), StreamingInit());
    return Place(tensors, &model_);
  }

  std::string_view name() const override { return "torch"; }
  std::string_view isa() const override { return device_name_; }
  bool exact() const override { return false; }
  int64_t state_bytes() const override { return layout_.bytes; }

  absl::StatusOr<Slot> Allocate() override {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      const Slot slot = free_.back();
      free_.pop_back();
      slots_[slot].allocated = true;
      return slot;
    }
    slots_.emplace_back().allocated = true;
    return static_cast<Slot>(slots_.size() - 1);
  }

  void Release(Slot slot) override {
    const std::lock_guard lock(mutex_);
    slots_[slot] = TorchSlot();
    free_.push_back(slot);
  }

  absl::Status Advance(std::span<const Run> runs) override {
    std::vector<Advanced> advanced;
    for (size_t r = 0; r < runs.size(); ++r) {
      TorchSlot* slot = Find(runs[r].slot);
      if (slot == nullptr) return BadSlot("runs", r, runs[r].slot);
      if (absl::Status status = CheckEvents(runs[r], r, config_.n_items); !status.ok()) {
        return status;
      }
      if (!runs[r].events.empty()) advanced.push_back({slot, runs[r].events, {}});
    }
    if (config_.has_window()) {
      for (const Advanced& run : advanced) Push(run);
      return absl::OkStatus();
    }
    return Caught([&] {
      Fold(&advanced);
      // Nothing fails from here on.
      for (Advanced& run : advanced) {
        run.slot->record = std::move(run.record);
        Count(run);
      }
      return absl::OkStatus();
    });
  }

  absl::Status Query(std::span<const QueryRequest> requests, std::span<float> queries) override {
    absl::Status sized = CheckQueries(requests.size(), queries.size(), config_);
    if (!sized.ok()) return sized;
    std::vector<TorchSlot*> slots;
    for (size_t i = 0; i < requests.size(); ++i) {
      slots.push_back(Find(requests[i].slot));
      if (slots.back() == nullptr) return BadSlot("requests", i, requests[i].slot);
      if (slots.back()->folded_events == 0) return NoEvent(i, requests[i].slot);
    }
    if (requests.empty()) return absl::OkStatus();
    return Caught([&] {
      const auto result = (config_.has_window() ? WindowQueries(slots) : Readout(slots, requests))
                              .to(torch::kCPU)
                              .contiguous();
      std::memcpy(queries.data(), result.data_ptr<float>(), queries.size_bytes());
      return absl::OkStatus();
    });
  }

  absl::Status TopK(std::span<const TopKRequest> requests,
                    std::vector<std::vector<ScoredItem>>* results) override {
    for (size_t i = 0; i < requests.size(); ++i) {
      absl::Status checked = CheckTopK(requests[i], i, config_);
      if (!checked.ok()) return checked;
    }
    results->resize(requests.size());
    return Caught([&] {
      for (size_t i = 0; i < requests.size(); ++i) (*results)[i] = Rank(requests[i]);
      return absl::OkStatus();
    });
  }

  absl::Status Export(Slot slot, std::span<std::byte> record) const override {
    const TorchSlot* found = Find(slot);
    if (absl::Status status = CheckSlotRecord(found, slot, record.size()); !status.ok())
      return status;
    return Caught([&] {
      std::memset(record.data(), 0, record.size());
      const int64_t header[2] = {found->last_timestamp_ms, found->folded_events};
      std::memcpy(record.data(), header, sizeof(header));
      std::byte* body = record.data() + StateLayout::kHeaderBytes;
      if (config_.has_window()) {
        for (size_t i = 0; i < found->window.size(); ++i) {
          const auto& [item, timestamp_ms] = found->window[i];
          std::memcpy(body + i * sizeof(timestamp_ms), &timestamp_ms, sizeof(timestamp_ms));
          std::memcpy(body + WindowItemsAt(i), &item, sizeof(item));
        }
      } else if (found->record.defined()) {
        const auto floats = found->record.to(torch::kCPU).contiguous();
        std::memcpy(body, floats.data_ptr<float>(), FloatBytes());
      }
      return absl::OkStatus();
    });
  }

  absl::Status Import(Slot slot, std::span<const std::byte> record) override {
    TorchSlot* found = Find(slot);
    if (absl::Status status = CheckSlotRecord(found, slot, record.size()); !status.ok())
      return status;
    if (absl::Status status = CheckRecord(record, config_); !status.ok()) return status;
    return Caught([&] {
      TorchSlot imported;
      imported.allocated = true;
      int64_t header[2];
      std::memcpy(header, record.data(), sizeof(header));
      imported.last_timestamp_ms = header[0];
      imported.folded_events = header[1];
      const std::byte* body = record.data() + StateLayout::kHeaderBytes;
      if (config_.has_window()) {
        const auto events = std::min<int64_t>(header[1], config_.max_item_list_length);
        for (size_t i = 0; i < static_cast<size_t>(events); ++i) {
          FoldEvent& event = imported.window.emplace_back();
          std::memcpy(&event.timestamp_ms, body + i * sizeof(event.timestamp_ms),
                      sizeof(event.timestamp_ms));
          std::memcpy(&event.item, body + WindowItemsAt(i), sizeof(event.item));
        }
      } else {
        auto floats = torch::empty({layout_.floats});
        std::memcpy(floats.data_ptr<float>(), body, FloatBytes());
        imported.record = floats.to(device_);
      }
      *found = std::move(imported);
      return absl::OkStatus();
    });
  }

 private:
  template <typename Holder>
  absl::Status Place(const NamedTensors& tensors, Holder* model) {
    if (absl::Status status = ImportTensors(tensors, model); !status.ok()) return status;
    (*model)->eval();
    (*model)->to(device_);
    table_ = (*model)->item_vectors().detach();
    return absl::OkStatus();
  }

  // Null if it was never given out. A slot stays where it is until the end.
  TorchSlot* Find(Slot slot) const {
    const std::lock_guard lock(mutex_);
    if (slot < 0 || slot >= static_cast<Slot>(slots_.size())) return nullptr;
    return slots_[slot].allocated ? &slots_[slot] : nullptr;
  }

  absl::Status CheckSlotRecord(const TorchSlot* found, Slot slot, size_t bytes) const {
    if (found != nullptr) return CheckRecordSize(bytes, layout_.bytes);
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " is not allocated"));
  }

  size_t FloatBytes() const { return static_cast<size_t>(layout_.floats) * sizeof(float); }
  size_t WindowItemsAt(size_t i) const {
    return static_cast<size_t>(layout_.window_items_offset) * sizeof(float) + i * sizeof(int32_t);
  }

  static void Count(const Advanced& run) {
    run.slot->last_timestamp_ms = run.events.back().timestamp_ms;
    run.slot->folded_events += static_cast<int64_t>(run.events.size());
  }

  void Push(const Advanced& run) const {
    std::vector<FoldEvent>& window = run.slot->window;
    window.insert(window.end(), run.events.begin(), run.events.end());
    const auto length = static_cast<size_t>(config_.max_item_list_length);
    if (window.size() > length) window.erase(window.begin(), window.end() - length);
    run.slot->encoded = torch::Tensor();
    Count(run);
  }

  // Runs of one event as one batch, longer ones each by itself.
  void Fold(std::vector<Advanced>* runs) {
    std::vector<Advanced*> single;
    for (Advanced& run : *runs) {
      if (run.events.size() == 1) {
        single.push_back(&run);
        continue;
      }
      torch::Tensor record = run.slot->record;
      int64_t last_ms = run.slot->last_timestamp_ms;
      bool first = run.slot->folded_events == 0;
      for (size_t begin = 0; begin < run.events.size(); begin += kLongestPiece) {
        const auto piece =
            run.events.subspan(begin, std::min(kLongestPiece, run.events.size() - begin));
        auto gaps = torch::empty({1, static_cast<int64_t>(piece.size())});
        auto items = torch::empty({1, static_cast<int64_t>(piece.size())}, torch::kInt64);
        for (size_t i = 0; i < piece.size(); ++i) {
          items.data_ptr<int64_t>()[i] = piece[i].item;
          gaps.data_ptr<float>()[i] = first ? 0 : Gap(last_ms, piece[i].timestamp_ms);
          last_ms = piece[i].timestamp_ms;
          first = false;
        }
        record = Forward(items, gaps, OrEmpty(record).unsqueeze(0))[0];
      }
      run.record = record;
    }
    if (single.empty()) return;
    const auto rows = static_cast<int64_t>(single.size());
    auto gaps = torch::empty({rows, 1});
    auto items = torch::empty({rows, 1}, torch::kInt64);
    std::vector<torch::Tensor> records;
    for (int64_t i = 0; i < rows; ++i) {
      const TorchSlot& slot = *single[i]->slot;
      const FoldEvent& event = single[i]->events[0];
      items.data_ptr<int64_t>()[i] = event.item;
      gaps.data_ptr<float>()[i] =
          slot.folded_events == 0 ? 0 : Gap(slot.last_timestamp_ms, event.timestamp_ms);
      records.push_back(OrEmpty(slot.record));
    }
    const auto after = Forward(items, gaps, torch::stack(records)).unbind(0);
    // A copy of its own, or every slot would keep the whole batch alive.
    for (int64_t i = 0; i < rows; ++i) single[i]->record = after[i].clone();
  }

  torch::Tensor OrEmpty(const torch::Tensor& record) const {
    return record.defined() ? record : torch::zeros({layout_.floats}, device_);
  }

  float Gap(int64_t from_ms, int64_t to_ms) const {
    return static_cast<float>(std::clamp<int64_t>(to_ms - from_ms, 0, config_.time.max_gap_ms));
  }

  // items and gaps [B,L], records [B,floats] -> [B,floats].
  torch::Tensor Forward(const torch::Tensor& items, const torch::Tensor& gaps,
                        const torch::Tensor& records) {
    std::vector<LayerCache> caches = Caches(records);
    const auto outputs = model_->forward(items.to(device_), gaps.to(device_), &caches);
    auto after = torch::zeros_like(records);
    std::vector<LayerCache> places = Caches(after);
    for (size_t i = 0; i < places.size(); ++i) {
      places[i].ssm.copy_(caches[i].ssm);
      places[i].conv.copy_(caches[i].conv);
      if (!places[i].time_conv1.defined()) continue;
      places[i].time_conv1.copy_(caches[i].time_conv1);
      places[i].time_conv2.copy_(caches[i].time_conv2);
    }
    Output(after).copy_(outputs.select(1, -1));
    return after;
  }

  // Views of the layers' states in records [B,floats].
  std::vector<LayerCache> Caches(const torch::Tensor& records) const {
    const int64_t rows = records.size(0), heads = config_.num_heads(), tail = config_.d_conv - 1;
    std::vector<LayerCache> caches;
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const auto view = [&](int64_t offset, const std::vector<int64_t>& shape) {
        int64_t floats = 1;
        std::vector<int64_t> sizes = {rows};
        for (const int64_t extent : shape) {
          floats *= extent;
          sizes.push_back(extent);
        }
        return records.narrow(1, i * layout_.layer_floats + offset, floats).view(sizes);
      };
      LayerCache& cache = caches.emplace_back();
      cache.ssm = view(layout_.ssm_offset, {heads, config_.d_state, config_.head_dim})
                      .transpose(-1, -2);  // a record has p fastest
      cache.conv = view(layout_.conv_offset, {tail, config_.conv_size()});
      if (config_.variant != Variant::kStreaming || !config_.time_write) continue;
      cache.time_conv1 = view(layout_.time_conv1_offset, {tail, heads});
      cache.time_conv2 = view(layout_.time_conv2_offset, {tail, heads});
    }
    return caches;
  }

  // [...,floats] -> [...,D]
  torch::Tensor Output(const torch::Tensor& records) const {
    return records.narrow(-1, layout_.output_offset, config_.hidden_size);
  }

  // [B,D]
  torch::Tensor Readout(const std::vector<TorchSlot*>& slots,
                        std::span<const QueryRequest> requests) {
    const auto rows = static_cast<int64_t>(slots.size());
    std::vector<torch::Tensor> outputs;
    auto gaps = torch::empty({rows});
    for (int64_t i = 0; i < rows; ++i) {
      outputs.push_back(Output(slots[i]->record));
      gaps.data_ptr<float>()[i] = Gap(slots[i]->last_timestamp_ms, requests[i].as_of_ms);
    }
    return model_->Query(torch::stack(outputs), gaps.to(device_));
  }

  // [B,D]
  torch::Tensor WindowQueries(const std::vector<TorchSlot*>& slots) {
    std::vector<torch::Tensor> queries;
    for (TorchSlot* slot : slots) {
      if (!slot->encoded.defined()) slot->encoded = Encode(slot->window);
      queries.push_back(slot->encoded);
    }
    return torch::stack(queries);
  }

  torch::Tensor Encode(const std::vector<FoldEvent>& window) {
    const auto length = static_cast<int64_t>(window.size());
    auto items = torch::empty({1, length}, torch::kInt64);
    auto seconds = torch::zeros({1, config_.max_item_list_length}, torch::kFloat64);
    for (int64_t i = 0; i < length; ++i) {
      items.data_ptr<int64_t>()[i] = window[i].item;
      seconds.data_ptr<double>()[i] = static_cast<double>(window[i].timestamp_ms) / 1000;
    }
    const auto last = torch::full({1}, length - 1, torch::kInt64);
    return window_model_->LastOutputs(items.to(device_), seconds.to(device_), last.to(device_))[0];
  }

  std::vector<ScoredItem> Rank(const TopKRequest& request) const {
    const auto host = torch::TensorOptions(torch::kBool);
    auto eligible = request.candidates_only ? torch::zeros({config_.n_items}, host)
                                            : torch::ones({config_.n_items}, host);
    bool* marks = eligible.data_ptr<bool>();
    if (request.candidates_only) {
      for (const int32_t item : request.candidates) marks[item] = true;
    }
    for (const int32_t item : request.excluded) {
      if (item >= 0 && item < config_.n_items) marks[item] = false;
    }
    for (int64_t item = 0; item < config_.n_items && !request.eligible.empty(); ++item) {
      if ((request.eligible[item / 64] >> (item % 64) & 1) == 0) marks[item] = false;
    }
    marks[0] = false;
    const auto items = eligible.to(device_).nonzero().squeeze(1);  // ascending
    const int64_t k = std::min<int64_t>(request.k, items.size(0));
    if (k == 0) return {};
    const auto query =
        torch::from_blob(const_cast<float*>(request.query.data()), {config_.hidden_size})
            .to(device_);
    constexpr float kWorst = -std::numeric_limits<float>::infinity();
    auto all = table_.mv(query);
    if (!request.boost.empty()) {
      all.add_(torch::from_blob(const_cast<float*>(request.boost.data()), {config_.n_items})
                   .to(device_));
    }
    all = all.index_select(0, items);
    const auto scores = torch::where(all.isnan(), torch::full_like(all, kWorst), all);
    // topk breaks ties as it likes: it only finds the least score that counts, and a stable sort
    // of those that reach it, by ascending index, decides.
    const auto least = std::get<0>(scores.topk(k)).min();
    const auto reach = (scores >= least).nonzero().squeeze(1);
    const auto [sorted, order] = scores.index_select(0, reach).sort(
        /*stable=*/true, /*dim=*/0, /*descending=*/true);
    const auto best =
        items.index_select(0, reach.index_select(0, order.slice(0, 0, k))).to(torch::kCPU);
    const auto values = sorted.slice(0, 0, k).to(torch::kCPU).contiguous();
    std::vector<ScoredItem> top;
    for (int64_t i = 0; i < k; ++i) {
      top.push_back(
          {static_cast<int32_t>(best.data_ptr<int64_t>()[i]), values.data_ptr<float>()[i]});
    }
    return top;
  }

  const std::shared_ptr<const ModelPackage> package_;
  const ModelConfig& config_;
  const StateLayout layout_;
  const torch::Device device_;
  const std::string device_name_;
  // In evaluation mode, which changes nothing in them; modules are not const-correct.
  StreamingModel model_{nullptr};         // without a window
  PublishedModel window_model_{nullptr};  // with one
  torch::Tensor table_;                   // [V,D]

  mutable std::mutex mutex_;
  mutable std::deque<TorchSlot> slots_;  // which there are is guarded by mutex_, each by its user
  std::vector<Slot> free_;               // guarded by mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateTorchBackend(
    std::shared_ptr<const ModelPackage> package) {
  std::unique_ptr<TorchBackend> backend;
  const absl::Status started = Caught([&] {
    const torch::Device device(torch::cuda::is_available() ? torch::kCUDA : torch::kCPU);
    backend = std::make_unique<TorchBackend>(std::move(package), device);
    return backend->Start();
  });
  if (!started.ok()) return started;
  return backend;
}

}  // namespace tim4rec
