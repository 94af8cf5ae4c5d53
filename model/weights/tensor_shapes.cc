#include "absl/strings/str_cat.h"
#include "model/weights/package.h"

namespace tim4rec {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;

void AddNorm(Shapes* shapes, const std::string& prefix, int64_t size) {
  (*shapes)[prefix + ".weight"] = {size};
  (*shapes)[prefix + ".bias"] = {size};
}

void AddLinear(Shapes* shapes, const std::string& prefix, int64_t outputs, int64_t inputs) {
  (*shapes)[prefix + ".weight"] = {outputs, inputs};
  (*shapes)[prefix + ".bias"] = {outputs};
}

void AddConv(Shapes* shapes, const std::string& prefix, int64_t channels, int64_t width) {
  (*shapes)[prefix + ".weight"] = {channels, 1, width};
  (*shapes)[prefix + ".bias"] = {channels};
}

// One layer without its time path, which is where the variants differ.
void AddLayer(Shapes* shapes, const std::string& layer, const ModelConfig& c) {
  const std::string ssd = layer + ".ssd";
  for (const char* name : {".dt_bias", ".A_log", ".D"}) (*shapes)[ssd + name] = {c.num_heads()};
  AddLinear(shapes, ssd + ".in_proj", c.inner_size() + c.conv_size() + c.num_heads(),
            c.hidden_size);
  AddConv(shapes, ssd + ".conv1d", c.conv_size(), c.d_conv);
  (*shapes)[ssd + ".norm.weight"] = {c.inner_size()};
  AddLinear(shapes, ssd + ".out_proj", c.hidden_size, c.inner_size());
  AddNorm(shapes, layer + ".layer_norm", c.hidden_size);
  if (c.is_ffn) {
    AddLinear(shapes, layer + ".ffn.fc1", c.ffn_size(), c.hidden_size);
    AddLinear(shapes, layer + ".ffn.fc2", c.hidden_size, c.ffn_size());
    AddNorm(shapes, layer + ".ffn.layer_norm", c.hidden_size);
  }
}

void AddStreamingTime(Shapes* shapes, const std::string& ssd, const ModelConfig& c) {
  if (c.time_write) {
    AddConv(shapes, ssd + ".conv1d4time_1", c.num_heads(), c.d_conv);
    AddConv(shapes, ssd + ".conv1d4time_2", c.num_heads(), c.d_conv);
    AddLinear(shapes, ssd + ".mlp4time_scale.1", c.time_hidden, 1);
    AddLinear(shapes, ssd + ".mlp4time_scale.3", c.num_heads(), c.time_hidden);
  }
  if (c.time_decay) (*shapes)[ssd + ".log_memory_ms"] = {c.num_heads()};
}

void AddPublishedTime(Shapes* shapes, const std::string& ssd, const ModelConfig& c) {
  const int64_t window = c.max_item_list_length;
  AddConv(shapes, ssd + ".conv1d4time_1", c.num_heads(), c.d_conv);
  AddConv(shapes, ssd + ".conv1d4time_2", c.num_heads(), c.d_conv);
  AddLinear(shapes, ssd + ".mlp4time_scale.1", window, window);
  AddLinear(shapes, ssd + ".mlp4time_scale.3", window, window);
  AddLinear(shapes, ssd + ".time_gate_residual.1", c.p2p_residual ? window : 1, window);
  AddNorm(shapes, ssd + ".time_layer_norm", window);
}

}  // namespace

std::map<std::string, std::vector<int64_t>> TensorShapes(const ModelConfig& c) {
  Shapes shapes;
  shapes["item_embedding.weight"] = {c.n_items, c.hidden_size};
  AddNorm(&shapes, "in_layer_norm", c.hidden_size);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string layer = absl::StrCat("ssd_layers.", i);
    AddLayer(&shapes, layer, c);
    if (c.variant == Variant::kStreaming) {
      AddStreamingTime(&shapes, layer + ".ssd", c);
    } else if (c.is_time) {
      AddPublishedTime(&shapes, layer + ".ssd", c);
    }
  }
  if (c.variant == Variant::kStreaming && c.time_query) {
    AddLinear(&shapes, "query_gate.1", c.time_hidden, 1);
    AddLinear(&shapes, "query_gate.3", 2 * c.hidden_size, c.time_hidden);
  }
  if (c.variant == Variant::kPublished && c.is_time) {
    AddNorm(&shapes, "layer_norm_time", c.max_item_list_length);
  }
  return shapes;
}

}  // namespace tim4rec
