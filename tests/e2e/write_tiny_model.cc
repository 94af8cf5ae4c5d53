// Writes the model that the process tests serve. After a change of the package format:
//   build/release/bin/write_tiny_model tests/e2e/testdata/tiny_model
// With a number of items, a random model of the default sizes and so many items.
#include <cstdio>
#include <cstdlib>

#include "model/weights/package.h"
#include "tests/e2e/tiny_model_seed.h"
#include "tests/model/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: write_tiny_model DIR [ITEMS]\n");
    return 2;
  }
  tim4rec::ModelConfig config;
  if (argc == 3) config.n_items = 1 + std::atoll(argv[2]);
  const absl::Status written = tim4rec::WritePackage(
      argv[1], argc == 2 ? tim4rec::MakeTinyModel(tim4rec::kTinyModelSeed)
                         : tim4rec::MakeTinyModel(config, tim4rec::kTinyModelSeed));
  if (written.ok()) return 0;
  std::fprintf(stderr, "write_tiny_model: %s\n", std::string(written.message()).c_str());
  return 1;
}
