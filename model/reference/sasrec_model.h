// SASRec (arXiv 1808.09781): causal self-attention over item and position vectors, built as RecBole
// builds it. A baseline to compare with: no backend serves it.
#ifndef TIM4REC_MODEL_REFERENCE_SASREC_MODEL_H_
#define TIM4REC_MODEL_REFERENCE_SASREC_MODEL_H_

#include <torch/torch.h>

#include <vector>

#include "model/reference/dropout.h"

namespace tim4rec {

struct SasrecConfig {
  int64_t n_items = 0;  // V, the padding index 0 included
  int64_t hidden_size = 64;
  int64_t num_layers = 2;
  int64_t num_heads = 2;    // divides hidden_size
  int64_t max_length = 50;  // L, the most events it sees
  double dropout_prob = 0.2;
};

class SasrecLayerImpl : public torch::nn::Module {
 public:
  explicit SasrecLayerImpl(const SasrecConfig& config);
  // x [B,L,D]; `future` [L,L] true where position j lies after i.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& future);

 private:
  const int64_t heads_;
  torch::nn::Linear in_proj_{nullptr};  // query, key and value
  torch::nn::Linear out_proj_{nullptr};
  torch::nn::Linear fc1_{nullptr};
  torch::nn::Linear fc2_{nullptr};
  torch::nn::LayerNorm attention_norm_{nullptr};
  torch::nn::LayerNorm ffn_norm_{nullptr};
  Dropout dropout_{nullptr};
};
TORCH_MODULE(SasrecLayer);

class SasrecModelImpl : public torch::nn::Module {
 public:
  explicit SasrecModelImpl(const SasrecConfig& config);

  // Outputs at every position [B,L,D], each from the events up to it alone. items int64 [B,L],
  // padded on the right with 0, L at most max_length; the first event has position 0.
  torch::Tensor forward(const torch::Tensor& items);

  // Item vectors [V,D]; the score of item v is output . item_vectors[v].
  torch::Tensor item_vectors() const { return item_embedding_->weight; }
  const SasrecConfig& config() const { return config_; }

 private:
  const SasrecConfig config_;
  torch::nn::Embedding item_embedding_{nullptr};
  torch::nn::Embedding position_embedding_{nullptr};
  torch::nn::LayerNorm layer_norm_{nullptr};
  Dropout dropout_{nullptr};
  std::vector<SasrecLayer> layers_;
};
TORCH_MODULE(SasrecModel);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_SASREC_MODEL_H_
