// The published TiM4Rec (arXiv 2409.16182) in libtorch, as its released code computes it: served
// for existing checkpoints, in float64 the truth about them. Where code and paper differ, the code
// decides. Shapes are those of model/config/config.h; L is max_item_list_length.
#ifndef TIM4REC_MODEL_REFERENCE_PUBLISHED_MODEL_H_
#define TIM4REC_MODEL_REFERENCE_PUBLISHED_MODEL_H_

#include <torch/torch.h>

#include <vector>

#include "model/config/config.h"
#include "model/reference/ssd_block.h"

namespace tim4rec {

// Linear layers along the window, named by their place in the released code's Sequential, where a
// dropout comes first: 1 alone ([...,L] -> [...,out]), or 1, SiLU and 3 (both L -> L).
class WindowFunctionImpl : public torch::nn::Module {
 public:
  WindowFunctionImpl(int64_t window, int64_t out, bool two_layers, double dropout);
  torch::Tensor forward(const torch::Tensor& tau);

 private:
  Dropout dropout_{nullptr};
  torch::nn::Linear first_{nullptr};
  torch::nn::Linear second_{nullptr};  // two_layers
};
TORCH_MODULE(WindowFunction);

// The block's output and, with is_time, the next layer's time [B,H,L].
struct TimedOutput {
  torch::Tensor hidden;
  torch::Tensor time;
};

// SsdBlock with the published time path, whose layers run along the window: every event's Delta
// depends on all timestamps of the window.
class PublishedSsdImpl : public SsdBlock {
 public:
  explicit PublishedSsdImpl(const ModelConfig& config);
  // x [B,n,D] of the first n <= L events; tau [B,H,L], undefined without is_time. `last` as in Mix.
  TimedOutput forward(const torch::Tensor& x, const torch::Tensor& tau, const torch::Tensor& last);

 private:
  torch::nn::Conv1d conv1d4time_1_{nullptr};
  torch::nn::Conv1d conv1d4time_2_{nullptr};
  WindowFunction mlp4time_scale_{nullptr};
  WindowFunction time_gate_residual_{nullptr};
  torch::nn::LayerNorm time_layer_norm_{nullptr};
};
TORCH_MODULE(PublishedSsd);

class PublishedLayerImpl : public ResidualLayer {
 public:
  explicit PublishedLayerImpl(const ModelConfig& config);
  TimedOutput forward(const torch::Tensor& x, const torch::Tensor& tau, const torch::Tensor& last);

 private:
  PublishedSsd ssd_{nullptr};
};
TORCH_MODULE(PublishedLayer);

// Parameter names and shapes are those of TensorShapes (model/weights/package.h).
class PublishedModelImpl : public torch::nn::Module {
 public:
  explicit PublishedModelImpl(const ModelConfig& config);

  // Outputs at every position [B,L,D] of windows padded on the right with zeros. items int64 [B,L];
  // seconds [B,L], since 1970, of any dtype: rounded to float32 before differences are taken, as
  // the released code holds them. Without is_time `seconds` is not read and may be undefined, and
  // any length will do. `layers`, if given, receives what each layer gives.
  torch::Tensor forward(const torch::Tensor& items, const torch::Tensor& seconds,
                        std::vector<TimedOutput>* layers = nullptr) {
    return Run(items, seconds, {}, layers);
  }

  // Outputs [B,D] at the positions last, int64 [B], alone, for about half of what all cost. Items
  // [B,n] may be cut after the longest window, since the padding is seen in `seconds` alone.
  torch::Tensor LastOutputs(const torch::Tensor& items, const torch::Tensor& seconds,
                            const torch::Tensor& last) {
    return Run(items, seconds, last, nullptr).squeeze(1);
  }

  // Item vectors [V,D]; the score of item v is output . item_vectors[v].
  torch::Tensor item_vectors() const { return item_embedding_->weight; }
  const ModelConfig& config() const { return config_; }

 private:
  // [B,L] -> [B,H,L]
  torch::Tensor InitialTime(const torch::Tensor& seconds);
  torch::Tensor Run(const torch::Tensor& items, const torch::Tensor& seconds,
                    const torch::Tensor& last, std::vector<TimedOutput>* layers);

  const ModelConfig config_;
  torch::nn::Embedding item_embedding_{nullptr};
  torch::nn::LayerNorm in_layer_norm_{nullptr};
  torch::nn::LayerNorm layer_norm_time_{nullptr};  // is_time
  Dropout dropout_{nullptr};
  std::vector<PublishedLayer> layers_;
};
TORCH_MODULE(PublishedModel);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_PUBLISHED_MODEL_H_
