// Concurrent calls made into one.
#ifndef TIM4REC_MODEL_BACKENDS_CUDA_COMBINER_H_
#define TIM4REC_MODEL_BACKENDS_CUDA_COMBINER_H_

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

namespace tim4rec::cuda {

// A call that finds nobody at work begins at once, alone; those that come meanwhile wait and are
// then done together, by one of them. Thread-safe.
template <typename Work>
class Combiner {
 public:
  // Returns once `process(works)` has returned for a list that holds `work`; called from the thread
  // of one of them, never twice at a time. A list is never empty.
  template <typename Process>
  void Do(Work* work, const Process& process) {
    Entry entry{work};
    std::unique_lock lock(mutex_);
    waiting_.push_back(&entry);
    changed_.wait(lock, [&] { return entry.done || !busy_; });
    if (entry.done) return;
    busy_ = true;
    const std::vector<Entry*> taken = std::exchange(waiting_, {});
    lock.unlock();
    std::vector<Work*> works;
    for (const Entry* one : taken) works.push_back(one->work);
    process(works);
    lock.lock();
    for (Entry* one : taken) one->done = true;
    busy_ = false;
    changed_.notify_all();
  }

 private:
  struct Entry {
    Work* work;
    bool done = false;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false;
  std::vector<Entry*> waiting_;
};

}  // namespace tim4rec::cuda

#endif  // TIM4REC_MODEL_BACKENDS_CUDA_COMBINER_H_
