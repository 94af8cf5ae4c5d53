// A pipeline over a real store and a tiny model, for tests.
#ifndef TIM4REC_TESTS_SERVER_PIPELINE_FIXTURE_H_
#define TIM4REC_TESTS_SERVER_PIPELINE_FIXTURE_H_

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/engine/engine.h"
#include "server/pipeline/model_use.h"
#include "server/pipeline/models.h"
#include "server/pipeline/pipeline.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

// A job that a test waits for. `on_complete` runs in the worker's thread first.
class TestJob final : public Job {
 public:
  void Complete() override {
    if (on_complete) on_complete();
    done_.set_value();
  }
  TestJob& Wait() {
    done_.get_future().wait();
    return *this;
  }
  std::function<void()> on_complete;

 private:
  std::promise<void> done_;
};

// Forwards to a log, and fails where a test says so.
class FaultyLog final : public EventLog {
 public:
  explicit FaultyLog(EventLog* log) : log_(log) {}
  absl::StatusOr<std::vector<std::vector<AppendOutcome>>> Append(std::span<const UserEvents> batch,
                                                                 Durability durability) override;
  absl::Status Read(std::string_view user_id, const Visitor& visitor) const override;
  absl::Status ForEachUser(std::string_view after,
                           const std::function<bool(std::string_view)>& visitor) const override {
    return log_->ForEachUser(after, visitor);
  }
  absl::StatusOr<std::optional<Truncation>> ReadTruncation(std::string_view user) const override {
    return log_->ReadTruncation(user);
  }

  uint64_t generation() const override { return log_->generation() + extra_generations; }

  uint64_t extra_generations = 0;
  absl::Status append_error;
  absl::Status read_error;
  std::string damaged_user;  // appends that name this user find damage
  int synced_appends = 0;

 private:
  EventLog* log_;
};

class PipelineTest : public testing::Test {
 protected:
  PipelineTest();
  ~PipelineTest() override;

  // A model of its own that is in no list yet, from contents.
  static ModelHandle NewModel(const std::string& name, PackageContents contents,
                              const std::string& backend = "cpu");

  // Has the model's trend follow the store, as of that share of the users.
  absl::Status Follow(LoadedModel* model, double user_share = 1) {
    return FollowUse(*store_, user_share, model);
  }

  // (Re)starts the pipeline over the same store.
  void Start();
  void Start(PipelineOptions options);

  std::unique_ptr<TestJob> Submit(std::unique_ptr<TestJob> job);
  static std::unique_ptr<TestJob> NewRecord(const std::string& user, std::vector<Event> events);
  static std::unique_ptr<TestJob> NewRecommend(const std::string& user,
                                               std::optional<int64_t> as_of_ms = {});

  std::vector<EventOutcome> Record(const std::string& user, std::vector<Event> events);
  RecommendCommand Recommend(const std::string& user, std::optional<int64_t> as_of_ms = {});
  GetUserCommand GetUser(const std::string& user, std::optional<int64_t> at_ms = {});

  // Stops the worker until the returned function is called; the pipeline must have one worker.
  std::function<void()> Block();

  // Events of known items ("item1" …) at ascending times, some of them equal, some of unknown
  // items.
  std::vector<Event> RandomEvents(int count, std::mt19937_64* random) const;

  // The state record that folding the events in order of the log from zero gives, all in one run.
  std::string Folded(std::vector<Event> events) const {
    return Folded(*engine_, std::move(events));
  }
  static std::string Folded(const Engine& engine, std::vector<Event> events);
  // The state record that a model gives after folding these one by one.
  static std::string FoldedOneByOne(const Engine& engine, const std::vector<FoldEvent>& events);
  // The user's checkpoint; the pipeline must have written it.
  std::string Stored(const std::string& user) const;

  static constexpr int64_t kNow = 1'700'000'000'000;

  std::string dir_;
  std::shared_ptr<const Engine> engine_;  // of the model that serves at the start
  std::unique_ptr<Models> models_;
  std::unique_ptr<RocksDbStore> store_;
  std::unique_ptr<FaultyLog> log_;
  Metrics metrics_;
  PipelineOptions options_;
  absl::Status truncate_error_;  // what every truncation fails with
  std::unique_ptr<Pipeline> pipeline_;
};

bool SameItems(const std::vector<ScoredItem>& a, const std::vector<ScoredItem>& b);

// Prints the seed; TIM4REC_TEST_SEED repeats one.
std::mt19937_64 PrintedRandom();

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_SERVER_PIPELINE_FIXTURE_H_
