// Reads what a PyTorch training run leaves behind, without running anything of it: the tensors of a
// checkpoint, and the item ids of a RecBole dataset.
#ifndef TIM4REC_MODEL_WEIGHTS_TORCH_CHECKPOINT_H_
#define TIM4REC_MODEL_WEIGHTS_TORCH_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace tim4rec {

// The state dict of a file written by torch.save (PyTorch 1.6 or newer): of RecBole's checkpoint
// its entry "state_dict", else the file's own dict. Name to shape and row-major values, as float32;
// float64, float16 and bfloat16 are converted. Whatever else the file holds is passed over.
// INVALID_ARGUMENT, naming the tensor or function, on anything malformed, on integer tensors, on
// functions that torch does not write (see pickle_reader.h) and, with how to convert it, on the
// format before 1.6; DATA_LOSS on a wrong checksum.
absl::StatusOr<std::map<std::string, std::pair<std::vector<int64_t>, std::vector<float>>>>
ReadTorchCheckpoint(std::span<const std::byte> file);

// The item ids by index of a dataset that RecBole saved (a pickle): its field2id_token of its
// iid_field. Entry 0 is the padding token "[PAD]".
absl::StatusOr<std::vector<std::string>> ReadRecBoleItemTokens(std::span<const std::byte> file);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_TORCH_CHECKPOINT_H_
