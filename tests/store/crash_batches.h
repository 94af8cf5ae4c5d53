// What the crash test's writer writes and its reader expects.
#ifndef TIM4REC_TESTS_STORE_CRASH_BATCHES_H_
#define TIM4REC_TESTS_STORE_CRASH_BATCHES_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "store/event_log.h"

namespace tim4rec {

inline constexpr int kCrashThreads = 2;
inline constexpr int kCrashUsers = 5;   // per thread
inline constexpr int kCrashEvents = 6;  // per user and batch, one of them a repeat

inline std::string CrashUser(int thread, int user) { return absl::StrCat("t", thread, "u", user); }

// Batch b of a thread: events "b" for each of its users, at times that go back and forth, and
// event 0 once more.
class CrashBatch {
 public:
  CrashBatch(int thread, int batch) {
    for (int user = 0; user < kCrashUsers; ++user) {
      names_.push_back(CrashUser(thread, user));
      std::vector<Event>& events = events_.emplace_back();
      for (int i = 0; i < kCrashEvents; ++i) {
        const int n = i == kCrashEvents - 1 ? 0 : i;
        const int64_t timestamp_ms = int64_t{batch} * 7919 % 1000 + n;
        events.push_back({"item", timestamp_ms, absl::StrCat(batch, "-", n)});
      }
    }
    for (int user = 0; user < kCrashUsers; ++user) users_.push_back({names_[user], events_[user]});
  }
  CrashBatch(const CrashBatch&) = delete;
  CrashBatch& operator=(const CrashBatch&) = delete;
  const std::vector<UserEvents>& users() const { return users_; }

 private:
  std::vector<std::string> names_;
  std::vector<std::vector<Event>> events_;
  std::vector<UserEvents> users_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_CRASH_BATCHES_H_
