// The streaming model in libtorch: written for clarity, it defines what is mathematically right (in
// float64) and is what is trained (in float32). model/README.md has the equations' origin; shapes
// are those of model/config/config.h.
#ifndef TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_
#define TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_

#include <torch/torch.h>

#include <vector>

#include "model/config/config.h"
#include "model/reference/ssd_block.h"

namespace tim4rec {

// Where training starts. Drawn from torch's default generator: torch::manual_seed first.
struct StreamingInit {
  double embedding_stddev = 0.02;
  // Real-time memories T_h of the heads, in ms, log-spaced between these two.
  double shortest_memory_ms = 3'600'000;
  double longest_memory_ms = 365.0 * 86'400'000;
  double hippo_length = 0;  // in events; as in SsdBlock
};

// W2 silu(W1 u + b1 + shift) + b2, pointwise on a time feature u [...] -> [..., out]; `shift`
// [..., hidden] may be undefined. Parameters are named as in the released code's Sequential: 1, 3.
class TimeFunctionImpl : public torch::nn::Module {
 public:
  TimeFunctionImpl(int64_t hidden, int64_t out);
  torch::Tensor forward(const torch::Tensor& u, const torch::Tensor& shift = {});

 private:
  torch::nn::Linear first_{nullptr};
  torch::nn::Linear second_{nullptr};
};
TORCH_MODULE(TimeFunction);

// SsdBlock with the streaming time path: the gap modulates the write, and the state decays over it.
class TimeAwareSsdImpl : public SsdBlock {
 public:
  TimeAwareSsdImpl(const ModelConfig& config, const StreamingInit& init);
  // x [B,L,D], gaps_ms [B,L] clamped, u [B,L] the time feature of the gaps -> [B,L,D]. `cache`, if
  // given, as in Mix.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                        const torch::Tensor& u, LayerCache* cache);

 private:
  torch::nn::Conv1d conv1d4time_1_{nullptr};  // time_write
  torch::nn::Conv1d conv1d4time_2_{nullptr};  // time_write
  TimeFunction mlp4time_scale_{nullptr};      // time_write
  torch::Tensor log_memory_ms_;               // [H], time_decay
};
TORCH_MODULE(TimeAwareSsd);

class SsdLayerImpl : public ResidualLayer {
 public:
  SsdLayerImpl(const ModelConfig& config, const StreamingInit& init);
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gaps_ms,
                        const torch::Tensor& u, LayerCache* cache);

 private:
  TimeAwareSsd ssd_{nullptr};
};
TORCH_MODULE(SsdLayer);

// Parameter names and shapes are those of TensorShapes (model/weights/package.h).
class StreamingModelImpl : public torch::nn::Module {
 public:
  StreamingModelImpl(const ModelConfig& config, const StreamingInit& init);

  // Outputs at every position, each from the events up to it alone. items int64 [B,L], padded on
  // the right with 0; gaps_ms [B,L], the gap before each event, clamped to 0 … max_gap_ms ->
  // [B,L,D]. `caches`, if given, has one entry per layer: the events come after those that it has
  // seen, and it has seen them too afterwards, so that nothing may be padded.
  torch::Tensor forward(const torch::Tensor& items, const torch::Tensor& gaps_ms,
                        std::vector<LayerCache>* caches = nullptr);

  // Query vectors read out a gap after the last event: outputs [...,D], gaps_ms [...] -> [...,D].
  // `shift` [...,M], if defined, adds to the gate's hidden layer what else is known then.
  torch::Tensor Query(const torch::Tensor& outputs, const torch::Tensor& gaps_ms,
                      const torch::Tensor& shift = {});

  // Item vectors [V,D]; the score of item v is query . item_vectors[v].
  torch::Tensor item_vectors() const { return item_embedding_->weight; }
  const ModelConfig& config() const { return config_; }

 private:
  torch::Tensor TimeFeature(const torch::Tensor& gaps_ms) const;

  const ModelConfig config_;
  torch::nn::Embedding item_embedding_{nullptr};
  torch::nn::LayerNorm in_layer_norm_{nullptr};
  Dropout dropout_{nullptr};
  std::vector<SsdLayer> layers_;
  TimeFunction query_gate_{nullptr};  // time_query
};
TORCH_MODULE(StreamingModel);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_STREAMING_MODEL_H_
