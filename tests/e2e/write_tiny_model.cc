// Writes the model that the process tests serve. After a change of the package format:
//   build/release/bin/write_tiny_model tests/e2e/testdata/tiny_model
#include <cstdio>

#include "model/weights/package.h"
#include "tests/e2e/tiny_model_seed.h"
#include "tests/model/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_tiny_model DIR\n");
    return 2;
  }
  const absl::Status written =
      tim4rec::WritePackage(argv[1], tim4rec::MakeTinyModel(tim4rec::kTinyModelSeed));
  if (written.ok()) return 0;
  std::fprintf(stderr, "write_tiny_model: %s\n", std::string(written.message()).c_str());
  return 1;
}
