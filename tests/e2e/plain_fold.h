// What a model makes of a user's events, computed in this process one after another: what a
// server must answer and store.
#ifndef TIM4REC_TESTS_E2E_PLAIN_FOLD_H_
#define TIM4REC_TESTS_E2E_PLAIN_FOLD_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/engine/engine.h"
#include "store/event.h"
#include "tests/model/plain_trend.h"

namespace tim4rec {

// A user's events in the order of the log.
using UserLog = std::map<Position, Event>;

void AddTo(const Event& event, UserLog* log);

Lineage LineageOf(const UserLog& log, size_t events);

class PlainFold {
 public:
  // The tiny model, or that of another package.
  PlainFold();
  explicit PlainFold(const std::string& package);

  const std::string& fingerprint() const { return engine_->fingerprint(); }
  bool Knows(const Event& event) const;

  // The state record after the first `events` of the log.
  std::string State(const UserLog& log, size_t events) const;

  // "item:score bits" of the k best, best first, items of the log left out. The log holds an event
  // of a known item.
  // What the items' use adds to the scores is that of the package and of these events.
  std::vector<std::string> Top(const UserLog& log, int64_t as_of_ms, int k,
                               const RecordedEvents& recorded = {}, int64_t first_day = 0) const;

 private:
  Slot Fold(const UserLog& log, size_t events) const;

  std::unique_ptr<Engine> engine_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_E2E_PLAIN_FOLD_H_
