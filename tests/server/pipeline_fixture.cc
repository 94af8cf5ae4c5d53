#include "tests/server/pipeline_fixture.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "model/backends/builtin.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {

absl::StatusOr<std::vector<std::vector<AppendOutcome>>> FaultyLog::Append(
    std::span<const UserEvents> batch, Durability durability) {
  if (!append_error.ok()) return append_error;
  for (const UserEvents& user : batch) {
    if (user.user_id == damaged_user) return absl::DataLossError("damaged");
  }
  if (durability == Durability::kSynced) ++synced_appends;
  return log_->Append(batch, durability);
}

absl::Status FaultyLog::Read(std::string_view user_id, const Visitor& visitor) const {
  if (!read_error.ok()) return read_error;
  return log_->Read(user_id, visitor);
}

PipelineTest::PipelineTest() {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "tim4rec_pipeline_XXXXXX").string();
  dir_ = mkdtemp(pattern.data());
  models_ = std::make_unique<Models>(NewModel("m", MakeTinyModel(7)));
  engine_ = models_->serving()->engine;
  RocksDbStoreOptions store_options;
  store_options.block_cache_bytes = 8 << 20;
  store_options.write_buffer_bytes = 4 << 20;
  store_ = *RocksDbStore::Open(dir_ + "/store", store_options);
  log_ = std::make_unique<FaultyLog>(store_.get());
  options_.checkpoint_interval = absl::ZeroDuration();
  options_.clock = [] { return absl::FromUnixMillis(kNow); };
  Start();
}

PipelineTest::~PipelineTest() {
  pipeline_.reset();
  store_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

ModelHandle PipelineTest::NewModel(const std::string& name, PackageContents contents,
                                   const std::string& backend) {
  auto model = std::make_shared<LoadedModel>();
  model->package = *ModelPackage::FromContents(std::move(contents));
  model->version = absl::StrCat(name, "@", model->package->fingerprint());
  model->loaded_at = absl::Now();
  auto engine = Engine::Create(model->package, BuiltinBackends(), backend);
  EXPECT_TRUE(engine.ok()) << engine.status();
  model->engine = *std::move(engine);
  return model;
}

void PipelineTest::Start() { Start(options_); }

void PipelineTest::Start(PipelineOptions options) {
  pipeline_.reset();
  pipeline_ = std::make_unique<Pipeline>(
      options,
      PipelineDeps{models_.get(), log_.get(), store_.get(),
                   [this](std::string_view user) { return store_->DeleteUser(user); },
                   [this](std::string_view user) { return store_->PurgeDeleted(user); }, &metrics_,
                   [this](std::span<const UserTruncation> users) {
                     return truncate_error_.ok() ? store_->Truncate(users) : truncate_error_;
                   }});
}

std::unique_ptr<TestJob> PipelineTest::Submit(std::unique_ptr<TestJob> job) {
  const absl::Status submitted = pipeline_->Submit(job.get());
  EXPECT_TRUE(submitted.ok()) << submitted;
  return job;
}

std::unique_ptr<TestJob> PipelineTest::NewRecord(const std::string& user,
                                                 std::vector<Event> events) {
  auto job = std::make_unique<TestJob>();
  job->user_id = user;
  job->record.emplace().events = std::move(events);
  return job;
}

std::unique_ptr<TestJob> PipelineTest::NewRecommend(const std::string& user,
                                                    std::optional<int64_t> as_of_ms) {
  auto job = std::make_unique<TestJob>();
  job->user_id = user;
  job->recommend.emplace().as_of_ms = as_of_ms;
  return job;
}

std::vector<EventOutcome> PipelineTest::Record(const std::string& user, std::vector<Event> events) {
  auto job = Submit(NewRecord(user, std::move(events)));
  job->Wait();
  EXPECT_TRUE(job->status.ok()) << job->status;
  return job->record->outcomes;
}

RecommendCommand PipelineTest::Recommend(const std::string& user, std::optional<int64_t> as_of_ms) {
  auto job = Submit(NewRecommend(user, as_of_ms));
  job->Wait();
  EXPECT_TRUE(job->status.ok()) << job->status;
  return *job->recommend;
}

GetUserCommand PipelineTest::GetUser(const std::string& user, std::optional<int64_t> at_ms) {
  auto job = std::make_unique<TestJob>();
  job->user_id = user;
  job->get_user.emplace().at_ms = at_ms;
  job->get_user->max_events = 1000;
  job = Submit(std::move(job));
  job->Wait();
  EXPECT_TRUE(job->status.ok()) << job->status;
  return *job->get_user;
}

std::function<void()> PipelineTest::Block() {
  auto entered = std::make_shared<std::promise<void>>();
  auto release = std::make_shared<std::promise<void>>();
  std::shared_ptr<TestJob> job = NewRecommend("the user that blocks");
  job->on_complete = [entered, wait = release->get_future().share()] {
    entered->set_value();
    wait.wait();
  };
  EXPECT_TRUE(pipeline_->Submit(job.get()).ok());
  entered->get_future().wait();
  return [release, job] {
    release->set_value();
    job->Wait();
  };
}

std::vector<Event> PipelineTest::RandomEvents(int count, std::mt19937_64* random) const {
  const int64_t items = engine_->catalog().size();
  std::vector<Event> events;
  int64_t timestamp = kNow - 400LL * 86'400'000;
  for (int i = 0; i < count; ++i) {
    const int kind = static_cast<int>((*random)() % 10);
    if (kind > 1) timestamp += static_cast<int64_t>((*random)() % 86'400'000);
    Event event;
    // Items from 1 to `items`: the last is unknown.
    event.item_id = absl::StrCat("item", 1 + (*random)() % items);
    event.timestamp_ms = timestamp;
    if (kind < 5) event.event_id = absl::StrCat("e", (*random)());
    events.push_back(event);
  }
  return events;
}

std::string PipelineTest::Folded(const Engine& engine, std::vector<Event> events) {
  std::sort(events.begin(), events.end(),
            [](const Event& a, const Event& b) { return PositionOf(a) < PositionOf(b); });
  std::vector<FoldEvent> fold;
  for (size_t i = 0; i < events.size(); ++i) {
    if (i > 0 && PositionOf(events[i]) == PositionOf(events[i - 1])) continue;
    if (const auto item = engine.catalog().Find(events[i].item_id)) {
      fold.push_back({*item, events[i].timestamp_ms});
    }
  }
  Backend& backend = engine.backend();
  const Slot slot = *backend.Allocate();
  const ::tim4rec::Run runs[] = {{slot, fold}};
  EXPECT_TRUE(backend.Advance(runs).ok());
  std::string record(backend.state_bytes(), '\0');
  EXPECT_TRUE(backend.Export(slot, std::as_writable_bytes(std::span(record))).ok());
  backend.Release(slot);
  return record;
}

std::string PipelineTest::FoldedOneByOne(const Engine& engine,
                                         const std::vector<FoldEvent>& events) {
  Backend& backend = engine.backend();
  const Slot slot = *backend.Allocate();
  for (const FoldEvent& event : events) {
    const ::tim4rec::Run runs[] = {{slot, {&event, 1}}};
    EXPECT_TRUE(backend.Advance(runs).ok());
  }
  std::string record(backend.state_bytes(), '\0');
  EXPECT_TRUE(backend.Export(slot, std::as_writable_bytes(std::span(record))).ok());
  backend.Release(slot);
  return record;
}

std::string PipelineTest::Stored(const std::string& user) const {
  const auto record = store_->Get(user, engine_->fingerprint());
  EXPECT_TRUE(record.ok()) << record.status();
  return record.ok() && record->has_value() ? (*record)->payload : "no checkpoint";
}

bool SameItems(const std::vector<ScoredItem>& a, const std::vector<ScoredItem>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return x.item == y.item &&
                  std::bit_cast<uint32_t>(x.score) == std::bit_cast<uint32_t>(y.score);
         });
}

std::mt19937_64 PrintedRandom() {
  uint64_t seed = std::random_device()();
  if (const char* text = std::getenv("TIM4REC_TEST_SEED")) seed = std::strtoull(text, nullptr, 10);
  std::cout << "TIM4REC_TEST_SEED=" << seed << std::endl;
  return std::mt19937_64(seed);
}

}  // namespace tim4rec
