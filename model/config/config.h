// Hyper-parameters of a model and the layout of a user's state that follows from them.
//
// Shape legend, used throughout model/: B batch, L run length, D hidden_size, E = expand * D,
// P head_dim, H = E / P, N d_state, K d_conv, M time_hidden, F = 4 * D, V n_items (index 0 is
// padding).
#ifndef TIM4REC_MODEL_CONFIG_CONFIG_H_
#define TIM4REC_MODEL_CONFIG_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tim4rec {

// kStreaming: causal, one event updates the state in O(1). kPublished: what the released TiM4Rec
// code computes (arXiv 2409.16182).
enum class Variant { kStreaming, kPublished };

enum class Activation { kSilu, kHardswish };

// Maps a gap in milliseconds to the model's time feature
//   u = (log1p(min(gap, max_gap_ms) / tau0_ms) - mean) / stddev.
// Fixed at training time from the training gaps, and part of the fingerprint.
struct TimeConstants {
  double tau0_ms = 60'000;
  double mean = 0;
  double stddev = 1;
  int64_t max_gap_ms = 365LL * 86'400'000;
};

// Immutable once validated. Field names in config.json are the member names.
struct ModelConfig {
  Variant variant = Variant::kStreaming;
  int64_t n_items = 0;  // V, the padding index 0 included
  int64_t hidden_size = 64;
  int64_t num_layers = 2;
  int64_t d_state = 32;
  int64_t d_conv = 4;
  int64_t expand = 2;
  int64_t head_dim = 32;
  bool is_ffn = true;
  Activation conv_activation = Activation::kSilu;
  double norm_eps = 1e-5;
  double dropout_prob = 0.2;  // training only

  // kStreaming only: which uses of time the model has.
  bool time_write = true;    // the gap modulates how strongly an event is written (Delta)
  bool time_decay = true;    // the carried state decays over real time, exp(-gap / T_h)
  bool time_query = true;    // the gap from the last event to the query modulates the readout
  int64_t time_hidden = 16;  // M, hidden width of the pointwise time functions
  TimeConstants time;

  // kPublished only.
  bool is_time = false;
  bool p2p_residual = false;
  int64_t max_item_list_length = 50;  // L, the window

  // Whether a user's state is a window of events instead of a recurrent one.
  bool has_window() const { return variant == Variant::kPublished && is_time; }
  int64_t inner_size() const { return expand * hidden_size; }
  int64_t num_heads() const { return inner_size() / head_dim; }
  int64_t conv_size() const { return inner_size() + 2 * d_state; }
  int64_t ffn_size() const { return 4 * hidden_size; }

  // INVALID_ARGUMENT listing every fault at once, each with the field's name and limit.
  absl::Status Validate() const;

  // JSON of all fields, keys sorted. FromJson takes defaults for missing keys and runs Validate;
  // unknown keys and wrong types are INVALID_ARGUMENT, all of them named at once.
  std::string ToJson() const;
  static absl::StatusOr<ModelConfig> FromJson(const std::string& json);

  // What of the configuration a state depends on, as canonical text: the fields of this variant,
  // without those of training only. A field added later must be left out where it has the value
  // that older packages imply, so that their fingerprints stay.
  std::string FingerprintText() const;
};

// Where each tensor of a user's state lies. A state is one contiguous record, the same bytes on
// every backend and on disk, little-endian, its size a multiple of 16 bytes:
//
//   offset 0   int64  last_timestamp_ms   of the last folded event; 0 if none
//   offset 8   int64  folded_events       number of events folded in
//   offset 16  float32 tensors, per layer: S [H,N,P] (p fastest: SIMD runs over p, the N-sum stays
//              in a lane), conv tail [K-1, E+2N] oldest first, then with time_write two time-conv
//              tails [K-1, H]; zero padding of each layer to 16 bytes; after the layers the last
//              output [D]; zero padding to 16 bytes.
//
// A published model with is_time cannot update a state: its record holds the window of the last L =
// max_item_list_length events instead, and folded_events counts all that were ever folded:
//
//   offset 16  int64 timestamps in ms [L], then int32 items [L], oldest first, the places of events
//              that are not there yet zero; zero padding to 16 bytes
//
// The empty state is all zero bytes. Offsets below are in floats, from byte 16.
struct StateLayout {
  int64_t ssm_offset = 0;           // within a layer, S [H,N,P]
  int64_t conv_offset = 0;          // within a layer, [K-1, E+2N]
  int64_t time_conv1_offset = 0;    // within a layer, [K-1, H]; only with time_write
  int64_t time_conv2_offset = 0;    // within a layer, [K-1, H]; only with time_write
  int64_t layer_floats = 0;         // stride from a layer to the next
  int64_t output_offset = 0;        // [D]
  int64_t window_items_offset = 0;  // only with a window, which has none of those above
  int64_t floats = 0;               // all of it, padding included
  int64_t bytes = 0;                // 16 + 4 * floats

  static constexpr int64_t kHeaderBytes = 16;
  // Part of every fingerprint; raised whenever the order or meaning of a record's bytes changes, or
  // the arithmetic that makes them.
  static constexpr int kVersion = 1;

  static StateLayout Of(const ModelConfig& config);
  // Of the recurrent record into which a window is folded to encode it; else the same.
  static StateLayout Recurrent(const ModelConfig& config);
};

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CONFIG_CONFIG_H_
