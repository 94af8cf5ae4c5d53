// The seed of the committed model, testdata/tiny_model.
#ifndef TIM4REC_TESTS_E2E_TINY_MODEL_SEED_H_
#define TIM4REC_TESTS_E2E_TINY_MODEL_SEED_H_

#include <cstdint>

namespace tim4rec {

inline constexpr uint64_t kTinyModelSeed = 20'260'101;

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_E2E_TINY_MODEL_SEED_H_
