// The streaming model in libtorch: written for clarity, it defines what is mathematically right (in
// float64) and is what is trained (in float32). model/README.md has the equations' origin; shapes
// are those of model/config/config.h.
#ifndef TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_
#define TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_

#include <torch/torch.h>

#include <vector>

#include "model/config/config.h"

namespace tim4rec {

// Where training starts. Drawn from torch's default generator: torch::manual_seed first.
struct StreamingInit {
  double embedding_stddev = 0.02;
  // Real-time memories T_h of the heads, in ms, log-spaced between these two.
  double shortest_memory_ms = 3'600'000;
  double longest_memory_ms = 365.0 * 86'400'000;
};

// W2 silu(W1 u + b1) + b2, pointwise on a time feature u [...] -> [..., out]. Parameters are named
// as in the released code's Sequential: 1 and 3.
class TimeFunctionImpl : public torch::nn::Module {
 public:
  TimeFunctionImpl(int64_t hidden, int64_t out);
  torch::Tensor forward(const torch::Tensor& u);

 private:
  torch::nn::Linear first_{nullptr};
  torch::nn::Linear second_{nullptr};
};
TORCH_MODULE(TimeFunction);

// One time-aware state-space layer:
//   S_t = exp(A Delta_t - lambda_t) S_{t-1} + Delta_t x_t (outer) B_t,   y_t = S_t C_t + D x_t.
class TimeAwareSsdImpl : public torch::nn::Module {
 public:
  TimeAwareSsdImpl(const ModelConfig& config, const StreamingInit& init);
  // x [B,L,D], gaps_ms [B,L] clamped, u [B,L] the time feature of the gaps -> [B,L,D].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                        const torch::Tensor& u);

 private:
  torch::Tensor Activate(const torch::Tensor& x) const;
  // Depthwise causal convolution of x [B,L,C]; before the first event there are zeros.
  torch::Tensor CausalConv(const torch::nn::Conv1d& conv, const torch::Tensor& x) const;

  const ModelConfig config_;
  torch::nn::Linear in_proj_{nullptr};
  torch::nn::Linear out_proj_{nullptr};
  torch::nn::Conv1d conv1d_{nullptr};
  torch::nn::Conv1d conv1d4time_1_{nullptr};  // time_write
  torch::nn::Conv1d conv1d4time_2_{nullptr};  // time_write
  TimeFunction mlp4time_scale_{nullptr};      // time_write
  torch::Tensor dt_bias_;                     // [H]
  torch::Tensor a_log_;                       // [H]
  torch::Tensor d_;                           // [H]
  torch::Tensor log_memory_ms_;               // [H], time_decay
  torch::Tensor norm_weight_;                 // [E]
};
TORCH_MODULE(TimeAwareSsd);

class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const ModelConfig& config);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::nn::Linear fc1_{nullptr};
  torch::nn::Linear fc2_{nullptr};
  torch::nn::LayerNorm layer_norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
};
TORCH_MODULE(FeedForward);

class SsdLayerImpl : public torch::nn::Module {
 public:
  SsdLayerImpl(const ModelConfig& config, const StreamingInit& init);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                        const torch::Tensor& u);

 private:
  const bool residual_;
  TimeAwareSsd ssd_{nullptr};
  torch::nn::LayerNorm layer_norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
  FeedForward ffn_{nullptr};  // is_ffn
};
TORCH_MODULE(SsdLayer);

// Parameter names and shapes are those of TensorShapes (model/weights/package.h).
class StreamingModelImpl : public torch::nn::Module {
 public:
  StreamingModelImpl(const ModelConfig& config, const StreamingInit& init);

  // Outputs at every position, each from the events up to it alone. items int64 [B,L], padded on
  // the right with 0; gaps_ms [B,L], the gap before each event, clamped to 0 … max_gap_ms ->
  // [B,L,D].
  torch::Tensor forward(const torch::Tensor& items, const torch::Tensor& gaps_ms);

  // Query vectors read out a gap after the last event: outputs [...,D], gaps_ms [...] -> [...,D].
  torch::Tensor Query(const torch::Tensor& outputs, const torch::Tensor& gaps_ms);

  // Item vectors [V,D]; the score of item v is query . item_vectors[v].
  torch::Tensor item_vectors() const { return item_embedding_->weight; }
  const ModelConfig& config() const { return config_; }

 private:
  torch::Tensor TimeFeature(const torch::Tensor& gaps_ms) const;

  const ModelConfig config_;
  torch::nn::Embedding item_embedding_{nullptr};
  torch::nn::LayerNorm in_layer_norm_{nullptr};
  torch::nn::Dropout dropout_{nullptr};
  std::vector<SsdLayer> layers_;
  TimeFunction query_gate_{nullptr};  // time_query
};
TORCH_MODULE(StreamingModel);

// y of the recurrence above, without the D x term, in masked-matrix form: within a chunk
// y = (M o (C B^T)) (Delta x) with M_ij = exp(sum_{k=j+1..i} log_decay_k) for i >= j, else 0;
// between chunks the state is carried. x [B,L,H,P], delta and log_decay [B,L,H], b and c [B,L,N]
// -> [B,L,H,P].
torch::Tensor MaskedSsd(const torch::Tensor& x, const torch::Tensor& delta,
                        const torch::Tensor& log_decay, const torch::Tensor& b,
                        const torch::Tensor& c, int64_t chunk = 64);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_
