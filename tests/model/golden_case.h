// The golden vectors of the published model, where they are at hand: see README.md beside them.
#ifndef TIM4REC_TESTS_MODEL_GOLDEN_CASE_H_
#define TIM4REC_TESTS_MODEL_GOLDEN_CASE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "model/weights/package.h"
#include "model/weights/safetensors.h"

namespace tim4rec {

struct GoldenCase {
  std::string name;
  std::string dir;
  PackageContents contents;                    // config, tensors, items "1" …, no probe
  std::map<std::string, SafeTensor> expected;  // as its README describes
  std::unique_ptr<MappedFile> file;            // what `expected` views

  int64_t batch() const { return expected.at("item_seq").shape[0]; }
  int64_t window() const { return expected.at("item_seq").shape[1]; }
  // One row's history without its padding, timestamps in ms.
  std::vector<int32_t> Items(int64_t row) const;
  std::vector<int64_t> TimestampsMs(int64_t row) const;
  std::span<const double> Query(int64_t row) const;  // [D]
  std::vector<int32_t> TopItems(int64_t row) const;  // [20]
};

// The folders of cases; empty where there are none.
std::vector<std::string> GoldenCaseDirs();
// Where the cases are looked for.
std::string GoldenRoot();
// Aborts the test on a malformed case.
GoldenCase LoadGoldenCase(const std::string& dir);

// |a - b| / |b| in the Euclidean norm.
double RelativeError(std::span<const double> a, std::span<const double> b);

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_GOLDEN_CASE_H_
