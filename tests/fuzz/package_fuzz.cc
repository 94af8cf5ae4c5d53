// Input: four files, each as u32le length and bytes: config.json, items.tsv, weights.safetensors,
// probe.safetensors. The rest of the input is metrics.json.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "model/weights/package.h"
#include "model/weights/safetensors.h"

namespace {

const std::string& ScratchDir() {
  static const std::string* const dir = [] {
    const bool in_memory = std::filesystem::is_directory("/dev/shm");
    const std::string base = in_memory ? "/dev/shm" : std::filesystem::temp_directory_path();
    auto* path = new std::string(base + "/tim4rec_fuzz_XXXXXX");
    if (mkdtemp(path->data()) == nullptr) std::abort();
    std::atexit([] { std::filesystem::remove_all(ScratchDir()); });
    return path;
  }();
  return *dir;
}

void TrySafetensors(const std::string& bytes) {
  std::vector<uint64_t> aligned((bytes.size() + 7) / 8);
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const auto tensors =
      tim4rec::ParseSafetensors(std::as_bytes(std::span(aligned)).first(bytes.size()));
  if (!tensors.ok()) return;
  unsigned sum = 0;
  for (const auto& [name, tensor] : *tensors) {
    for (const std::byte byte : tensor.bytes) sum += static_cast<unsigned>(byte);
  }
  volatile unsigned keep = sum;
  (void)keep;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string rest(reinterpret_cast<const char*>(data), size);
  for (const char* name :
       {"config.json", "items.tsv", "weights.safetensors", "probe.safetensors", "metrics.json"}) {
    std::string bytes = rest;
    if (std::strcmp(name, "metrics.json") != 0) {
      uint32_t length = 0;
      std::memcpy(&length, rest.data(), std::min<size_t>(rest.size(), 4));
      rest.erase(0, 4);
      bytes = rest.substr(0, length);
      rest.erase(0, length);
    }
    if (std::string(name).ends_with("safetensors")) TrySafetensors(bytes);
    std::ofstream(ScratchDir() + "/" + name, std::ios::binary) << bytes;
  }
  (void)tim4rec::ModelPackage::Open(ScratchDir());
  return 0;
}
