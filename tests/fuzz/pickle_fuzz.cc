// Input: the pickle.
#include <cstdint>
#include <span>

#include "model/weights/pickle_reader.h"
#include "model/weights/torch_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const auto graph = tim4rec::ReadPickle(bytes);
  if (graph.ok()) {
    const tim4rec::PickleNode& root = graph->root();
    graph->Find(root, "state_dict");
    graph->Element(root, 0);
    graph->Argument(root, 0);
    graph->Called(root);
  }
  (void)tim4rec::ReadRecBoleItemTokens(bytes);
  return 0;
}
