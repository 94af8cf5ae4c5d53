// Both variants in float64, written from the formulas alone, over whole histories at once: what
// every incremental float32 implementation is compared with.
#ifndef TIM4REC_TESTS_MODEL_FLOAT64_MODEL_H_
#define TIM4REC_TESTS_MODEL_FLOAT64_MODEL_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/weights/package.h"

namespace tim4rec {

class Float64Model {
 public:
  // Keeps a reference to `contents`.
  explicit Float64Model(const PackageContents& contents) : contents_(contents) {}

  // The query vector [D] after the history, at `as_of_ms`; of a published model with time, after
  // its last window.
  std::vector<double> Query(const std::vector<int32_t>& items,
                            const std::vector<int64_t>& timestamps_ms, int64_t as_of_ms) const;

  // The best k of the whole catalogue for a query vector.
  std::vector<int32_t> TopItems(const std::vector<double>& query, int64_t k) const;

 private:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;  // [L][channels]

  double Feature(double gap_ms) const;
  Row Weight(const std::string& name) const;
  Row Linear(const std::string& prefix, const Row& x) const;
  Rows Convolve(const std::string& prefix, const Rows& x) const;
  double Activate(double x) const;
  Row LayerNorm(const std::string& prefix, const Row& x, double eps) const;
  // `gate` [L][H], empty without one, multiplies dt.
  Rows Layer(const std::string& prefix, const Rows& x, const Row& gaps_ms, const Rows& gate) const;
  Rows Ssd(const std::string& prefix, const Rows& x, const Row& gaps_ms, const Rows& gate) const;
  Rows StreamingGate(const std::string& prefix, const Row& gaps_ms) const;
  // The gate over a whole window from its time tau [H][L], which becomes the next layer's.
  Rows PublishedGate(const std::string& prefix, Rows* tau) const;
  Rows InitialTime(const std::vector<int64_t>& timestamps_ms) const;
  bool HasQueryGate() const;

  const PackageContents& contents_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_FLOAT64_MODEL_H_
