// Writes the smallest model package there is, for the corpus (make_seeds.py).
#include <cstdio>

#include "model/weights/package.h"
#include "tests/model/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_fuzz_package DIR\n");
    return 2;
  }
  tim4rec::ModelConfig config;
  config.n_items = 4;
  config.hidden_size = 2;
  config.num_layers = 1;
  config.d_state = 1;
  config.d_conv = 2;
  config.head_dim = 2;
  config.time_hidden = 1;
  const absl::Status written = tim4rec::WritePackage(argv[1], tim4rec::MakeTinyModel(config, 1));
  if (written.ok()) return 0;
  std::fprintf(stderr, "write_fuzz_package: %s\n", std::string(written.message()).c_str());
  return 1;
}
