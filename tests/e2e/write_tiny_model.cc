// Writes the model that the process tests serve. After a change of the package format:
//   build/release/bin/write_tiny_model tests/e2e/testdata/tiny_model
// With a number of items, a random model of the default sizes and so many items. With two days
// (since 1970), the tiny model with a trend of random use from the first to the second.
#include <cstdio>
#include <cstdlib>

#include "model/weights/package.h"
#include "tests/e2e/tiny_model_seed.h"
#include "tests/model/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: write_tiny_model DIR [ITEMS | FIRST_DAY LAST_DAY]\n");
    return 2;
  }
  tim4rec::ModelConfig config;
  if (argc == 3) config.n_items = 1 + std::atoll(argv[2]);
  tim4rec::PackageContents contents = argc == 3
                                          ? tim4rec::MakeTinyModel(config, tim4rec::kTinyModelSeed)
                                          : tim4rec::MakeTinyModel(tim4rec::kTinyModelSeed);
  if (argc == 4) {
    contents.trend = tim4rec::RandomTrend(contents.config.n_items, std::atoll(argv[2]),
                                          std::atoll(argv[3]), tim4rec::kTinyModelSeed);
    // The probe's rankings are without it.
    for (tim4rec::ProbeCase& probe : contents.probe) probe.top_items.clear();
  }
  const absl::Status written = tim4rec::WritePackage(argv[1], contents);
  if (written.ok()) return 0;
  std::fprintf(stderr, "write_tiny_model: %s\n", std::string(written.message()).c_str());
  return 1;
}
