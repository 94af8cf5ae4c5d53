// A small interaction file with something to learn: each item is mostly followed by the next one.
#ifndef TIM4REC_TESTS_MODEL_TRAINING_SYNTHETIC_H_
#define TIM4REC_TESTS_MODEL_TRAINING_SYNTHETIC_H_

#include <cstdint>
#include <random>
#include <string>

namespace tim4rec {

inline std::string SyntheticInteractions(int users, int items, int events, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text = "user_id:token\titem_id:token\ttimestamp:float\n";
  for (int user = 0; user < users; ++user) {
    int64_t seconds = 1'600'000'000 + static_cast<int64_t>(random() % 1'000'000);
    uint64_t item = random() % items;
    for (int i = 0; i < events; ++i) {
      text += "user " + std::to_string(user) + "\titem" + std::to_string(item) + "\t" +
              std::to_string(seconds) + "\n";
      item = random() % 10 < 8 ? (item + 1) % items : random() % items;
      seconds += static_cast<int64_t>(random() % 4 == 0 ? random() % 500'000 : random() % 60);
    }
  }
  return text;
}

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_MODEL_TRAINING_SYNTHETIC_H_
