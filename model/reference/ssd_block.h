// What the streaming and the published model share: the state-space block without its time path,
// what follows it in a layer, and the masked-matrix form of its scan. Shapes are those of
// model/config/config.h.
#ifndef TIM4REC_MODEL_REFERENCE_SSD_BLOCK_H_
#define TIM4REC_MODEL_REFERENCE_SSD_BLOCK_H_

#include <torch/torch.h>

#include "model/config/config.h"
#include "model/reference/dropout.h"

namespace tim4rec {

torch::nn::LayerNorm MakeLayerNorm(int64_t size, double eps);
torch::nn::Conv1d MakeDepthwiseConv(int64_t channels, int64_t kernel);

// y_t = S_t C_t of the recurrence S_t = exp(log_decay_t) S_{t-1} + Delta_t x_t (outer) B_t, in
// masked-matrix form: within a chunk y = (M o (C B^T)) (Delta x) with
// M_ij = exp(sum_{k=j+1..i} log_decay_k) for i >= j, else 0; between chunks the state is carried.
// x [B,L,H,P], delta and log_decay [B,L,H], b and c [B,L,N] -> [B,L,H,P]. `state` [B,H,P,N], if
// given, is S before the first event, and becomes S after the last; otherwise it begins with zeros.
torch::Tensor MaskedSsd(const torch::Tensor& x, const torch::Tensor& delta,
                        const torch::Tensor& log_decay, const torch::Tensor& b,
                        const torch::Tensor& c, int64_t chunk = 64, torch::Tensor* state = nullptr);

// y of MaskedSsd at one position of each row alone: last int64 [B], c [B,N] of those positions ->
// [B,H,P]. What comes after a position is not read.
torch::Tensor LastSsd(const torch::Tensor& x, const torch::Tensor& delta,
                      const torch::Tensor& log_decay, const torch::Tensor& b,
                      const torch::Tensor& c, const torch::Tensor& last);

// x [B,L,...] at the positions last [B] -> [B,1,...].
torch::Tensor AtLast(const torch::Tensor& x, const torch::Tensor& last);

// What a layer keeps of B histories to go on from: as in StateLayout. Zeros: no events.
struct LayerCache {
  torch::Tensor ssm;         // S [B,H,P,N]
  torch::Tensor conv;        // [B,K-1,E+2N]
  torch::Tensor time_conv1;  // [B,K-1,H], time_write
  torch::Tensor time_conv2;  // [B,K-1,H], time_write
};

// The state-space block: S_t = exp(A Delta_t - lambda_t) S_{t-1} + Delta_t x_t (outer) B_t,
// y_t = S_t C_t + D x_t. A time path, added by who derives from it, enters through Mix.
class SsdBlock : public torch::nn::Module {
 protected:
  // `hippo_length` decides where the decay rates start. 0: as in Mamba-2, A uniform in [1,16],
  // Delta log-uniform in [0.001,0.1]. Otherwise A_h = h + 1 with one Delta = 1 / hippo_length: the
  // heads' exponentials span what the first H basis functions of HiPPO-LegS do over that many
  // events.
  explicit SsdBlock(const ModelConfig& config, double hippo_length = 0);

  // x [B,L,D] -> [B,L,D]. `write` [B,L,H], if defined, multiplies dt before Delta is taken of it;
  // `decay` [B,L,H], if defined, is lambda. With `last` int64 [B], the output at these positions
  // alone: [B,1,D], for much less than all of them cost. With `cache`, events come after those that
  // it has seen, and it has seen them too afterwards; not together with `last`.
  torch::Tensor Mix(const torch::Tensor& x, const torch::Tensor& write, const torch::Tensor& decay,
                    const torch::Tensor& last = {}, LayerCache* cache = nullptr);
  torch::Tensor Activate(const torch::Tensor& x) const;
  // Depthwise causal convolution of x [B,L,C]. Before the first event there is `tail` [B,K-1,C],
  // which becomes that of the last; without one there are zeros.
  torch::Tensor CausalConv(const torch::nn::Conv1d& conv, const torch::Tensor& x,
                           torch::Tensor* tail = nullptr) const;

  const ModelConfig config_;

 private:
  torch::nn::Linear in_proj_{nullptr};
  torch::nn::Linear out_proj_{nullptr};
  torch::nn::Conv1d conv1d_{nullptr};
  torch::Tensor dt_bias_;      // [H]
  torch::Tensor a_log_;        // [H]
  torch::Tensor d_;            // [H]
  torch::Tensor norm_weight_;  // [E]
};

class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(const ModelConfig& config);
  torch::Tensor forward(const torch::Tensor& x);

 private:
  torch::nn::Linear fc1_{nullptr};
  torch::nn::Linear fc2_{nullptr};
  torch::nn::LayerNorm layer_norm_{nullptr};
  Dropout dropout_{nullptr};
};
TORCH_MODULE(FeedForward);

// A layer but for its state-space block, which who derives from it registers as "ssd".
class ResidualLayer : public torch::nn::Module {
 protected:
  explicit ResidualLayer(const ModelConfig& config) : residual_(config.num_layers > 1) {}
  // Once, after "ssd": the order of registration is the order of random initial values.
  void RegisterTail(const ModelConfig& config);
  // The block's output and the layer's input [B,L,D] -> the layer's output [B,L,D].
  torch::Tensor Finish(const torch::Tensor& mixed, const torch::Tensor& x);

 private:
  const bool residual_;
  torch::nn::LayerNorm layer_norm_{nullptr};
  Dropout dropout_{nullptr};
  FeedForward ffn_{nullptr};  // is_ffn
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_REFERENCE_SSD_BLOCK_H_
