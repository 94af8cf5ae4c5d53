// Models loaded, promoted, rolled back and unloaded while the real process serves.
#include <signal.h>

#include <atomic>
#include <bit>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/plain_fold.h"
#include "tests/e2e/server_process.h"
#include "tests/model/tiny_model.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kAsOf = 1'600'000'000'000;
constexpr int kK = 12;

// Another catalogue (item61 … item90 are unknown to the tiny model), other dimensions, and a trend.
PackageContents LargerModel() {
  ModelConfig config;
  config.n_items = 91;
  config.hidden_size = 24;
  config.d_state = 5;
  config.head_dim = 12;
  config.num_layers = 1;
  config.time_hidden = 4;
  config.time.mean = 5;
  config.time.stddev = 3;
  PackageContents contents = MakeTinyModel(config, 11);
  contents.trend = RandomTrend(config.n_items, DayOf(kAsOf) - 30, DayOf(kAsOf) + 30, 11);
  // The probe's rankings are without it.
  for (ProbeCase& probe : contents.probe) probe.top_items.clear();
  return contents;
}

struct Answer {
  grpc::Status status;
  std::string model;
  uint64_t state_version = 0;
  v1::Tier tier = v1::TIER_UNSPECIFIED;
  std::vector<std::string> top;
};

Answer AnswerOf(const grpc::Status& status, const v1::RecommendResponse& response) {
  Answer answer{status,
                response.provenance().model(),
                response.provenance().state_version(),
                response.provenance().tier(),
                {}};
  for (const auto& item : response.items()) {
    answer.top.push_back(item.item_id() + ":" +
                         std::to_string(std::bit_cast<uint32_t>(item.score())));
  }
  return answer;
}

v1::RecommendRequest RecommendOf(const std::string& user, const std::string& model = "") {
  v1::RecommendRequest request;
  request.set_user_id(user);
  request.set_as_of_ms(kAsOf);
  request.set_k(kK);
  request.set_model(model);
  return request;
}

Answer Recommend(v1::Recommender::Stub& stub, const std::string& user,
                 const std::string& model = "") {
  v1::RecommendResponse response;
  Context context;
  const grpc::Status status = stub.Recommend(&context, RecommendOf(user, model), &response);
  return AnswerOf(status, response);
}

class ModelsOverGrpc : public ServerTest {
 protected:
  ModelsOverGrpc() : larger_dir_(dir_ + "/larger") {
    EXPECT_TRUE(WritePackage(larger_dir_, LargerModel()).ok());
    tiny_ = std::make_unique<PlainFold>(kTinyModel);
    larger_ = std::make_unique<PlainFold>(larger_dir_);
    tiny_version_ = "tiny_model@" + tiny_->fingerprint();
    larger_version_ = "larger@" + larger_->fingerprint();
  }

  void Start(const std::vector<std::string>& more = {}) {
    server_ = Serve(dir_ + "/data", more);
    stub_ = Connect(*server_);
    admin_ = ConnectAdmin(*server_);
  }

  grpc::Status Load(const std::string& directory, const std::string& name = "",
                    const std::string& backend = "", v1::Model* model = nullptr) {
    v1::LoadModelRequest request;
    request.set_directory(directory);
    request.set_name(name);
    request.set_backend(backend);
    v1::LoadModelResponse response;
    Context context;
    const grpc::Status status = admin_->LoadModel(&context, request, &response);
    if (model != nullptr) *model = response.model();
    return status;
  }

  grpc::Status Promote(const std::string& version, v1::PromoteModelResponse* response = nullptr) {
    v1::PromoteModelRequest request;
    request.set_version(version);
    v1::PromoteModelResponse ignored;
    Context context;
    return admin_->PromoteModel(&context, request, response ? response : &ignored);
  }

  grpc::Status Unload(const std::string& version) {
    v1::UnloadModelRequest request;
    request.set_version(version);
    v1::UnloadModelResponse response;
    Context context;
    return admin_->UnloadModel(&context, request, &response);
  }

  // "version STATE" of every model.
  std::vector<std::string> List() {
    v1::ListModelsResponse models;
    Context context;
    EXPECT_TRUE(admin_->ListModels(&context, {}, &models).ok());
    std::vector<std::string> list;
    for (const v1::Model& model : models.models()) {
      list.push_back(model.version() + " " + v1::ModelState_Name(model.state()));
    }
    return list;
  }

  std::vector<v1::InteractionStatus> Record(
      const std::string& user, const std::vector<std::pair<std::string, int64_t>>& interactions) {
    v1::RecordInteractionsResponse response;
    Context context;
    EXPECT_TRUE(stub_->RecordInteractions(&context, RecordOf(user, interactions), &response).ok());
    std::vector<v1::InteractionStatus> statuses;
    for (const auto& result : response.results()) statuses.push_back(result.status());
    return statuses;
  }

  const PlainFold& FoldOf(const std::string& version) const {
    return version == tiny_version_ ? *tiny_ : *larger_;
  }

  const std::string larger_dir_;
  std::unique_ptr<PlainFold> tiny_;
  std::unique_ptr<PlainFold> larger_;
  std::string tiny_version_;
  std::string larger_version_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<v1::Recommender::Stub> stub_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

TEST_F(ModelsOverGrpc, AreLoadedPromotedRolledBackAndUnloaded) {
  Start();
  EXPECT_THAT(Record("u", {{"item80", kAsOf - 2}, {"item3", kAsOf - 1}}),
              ElementsAre(v1::INTERACTION_STATUS_UNKNOWN_ITEM, v1::INTERACTION_STATUS_APPLIED));
  UserLog log;
  AddTo({"item80", kAsOf - 2, ""}, &log);
  AddTo({"item3", kAsOf - 1, ""}, &log);

  const Answer absent = Recommend(*stub_, "u", larger_version_);
  EXPECT_EQ(absent.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(absent.status.error_message(),
              AllOf(HasSubstr("model: "), HasSubstr(larger_version_), HasSubstr(tiny_version_)));
  EXPECT_EQ(Promote(larger_version_).error_code(), grpc::StatusCode::NOT_FOUND);

  v1::Model loaded;
  ASSERT_TRUE(Load(larger_dir_, "", "", &loaded).ok());
  EXPECT_EQ(loaded.version(), larger_version_);
  EXPECT_EQ(loaded.item_count(), 90u);
  EXPECT_EQ(loaded.state(), v1::MODEL_STATE_READY);
  EXPECT_THAT(List(), ElementsAre(tiny_version_ + " MODEL_STATE_SERVING",
                                  larger_version_ + " MODEL_STATE_READY"));
  const Answer named = Recommend(*stub_, "u", larger_->fingerprint());
  EXPECT_EQ(named.model, larger_version_);
  EXPECT_EQ(named.top, larger_->Top(log, kAsOf, kK));
  EXPECT_EQ(Recommend(*stub_, "u").top, tiny_->Top(log, kAsOf, kK));

  v1::PromoteModelResponse promoted;
  ASSERT_TRUE(Promote(larger_version_, &promoted).ok());
  EXPECT_EQ(promoted.previous_version(), tiny_version_);
  EXPECT_EQ(promoted.model().state(), v1::MODEL_STATE_SERVING);
  EXPECT_THAT(Record("u", {{"item81", kAsOf}}), ElementsAre(v1::INTERACTION_STATUS_APPLIED));
  AddTo({"item81", kAsOf, ""}, &log);
  EXPECT_EQ(Recommend(*stub_, "u").top, larger_->Top(log, kAsOf, kK));
  EXPECT_EQ(Recommend(*stub_, "u").tier, v1::TIER_HOT);
  EXPECT_EQ(Unload(larger_version_).error_code(), grpc::StatusCode::FAILED_PRECONDITION);

  ASSERT_TRUE(Promote(tiny_->fingerprint()).ok());
  const Answer back = Recommend(*stub_, "u");
  EXPECT_EQ(back.tier, v1::TIER_HOT);
  EXPECT_EQ(back.state_version, 3u);
  EXPECT_EQ(back.top, tiny_->Top(log, kAsOf, kK));
  ASSERT_TRUE(Unload(larger_version_).ok());
  EXPECT_THAT(List(), ElementsAre(tiny_version_ + " MODEL_STATE_SERVING"));
  EXPECT_EQ(Recommend(*stub_, "u", larger_version_).status.error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ModelsOverGrpc, ARestartServesWhatTheConfigurationNames) {
  Start();
  ASSERT_TRUE(Load(larger_dir_).ok());
  ASSERT_TRUE(Promote(larger_version_).ok());
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  Start();
  EXPECT_THAT(List(), ElementsAre(tiny_version_ + " MODEL_STATE_SERVING"));
}

TEST_F(ModelsOverGrpc, BadPackagesAreNamedAndLeaveTheServingOneAlone) {
  Start();
  Record("u", {{"item3", kAsOf - 1}});
  const std::vector<std::string> before = Recommend(*stub_, "u").top;
  const auto copy = [&](const std::string& name) {
    std::filesystem::copy(larger_dir_, dir_ + "/" + name, std::filesystem::copy_options::recursive);
    return dir_ + "/" + name;
  };
  const std::string flipped = copy("flipped");
  {
    std::fstream weights(flipped + "/weights.safetensors",
                         std::ios::in | std::ios::out | std::ios::binary);
    weights.seekp(-100, std::ios::end);
    weights.put('\x3f');
  }
  const std::string no_items = copy("no_items");
  std::filesystem::remove(no_items + "/items.tsv");
  const std::string bad_config = copy("bad_config");
  std::ofstream(bad_config + "/config.json") << "{";
  // A probe that the weights do not reproduce.
  PackageContents contents = LargerModel();
  contents.probe[1].query[3] += 1e-2;
  contents.items[1].id = "renamed";
  const std::string wrong_probe = dir_ + "/wrong_probe";
  ASSERT_TRUE(WritePackage(wrong_probe, contents).ok());

  using grpc::StatusCode;
  const std::vector<std::tuple<std::string, std::string, std::string, StatusCode, std::string>>
      cases = {{"", "", "", StatusCode::INVALID_ARGUMENT, "directory: is empty"},
               {dir_ + "/absent", "", "", StatusCode::NOT_FOUND, "absent"},
               {flipped, "", "", StatusCode::DATA_LOSS, "fingerprint"},
               {no_items, "", "", StatusCode::NOT_FOUND, "items.tsv"},
               {bad_config, "", "", StatusCode::INVALID_ARGUMENT, "config.json"},
               {wrong_probe, "", "", StatusCode::FAILED_PRECONDITION, "probe case 1"},
               {larger_dir_, std::string(65, 'n'), "", StatusCode::INVALID_ARGUMENT, "name: "},
               {larger_dir_, "", "abacus", StatusCode::INVALID_ARGUMENT, "abacus"},
               {kTinyModel, "again", "", StatusCode::ALREADY_EXISTS, tiny_version_}};
  for (const auto& [directory, name, backend, code, text] : cases) {
    const grpc::Status status = Load(directory, name, backend);
    EXPECT_EQ(status.error_code(), code) << directory << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(text)) << directory;
    EXPECT_THAT(List(), ElementsAre(tiny_version_ + " MODEL_STATE_SERVING"));
  }
  EXPECT_EQ(Recommend(*stub_, "u").top, before);
  EXPECT_TRUE(Load(larger_dir_, "by-name").ok());
  EXPECT_THAT(List(),
              testing::Contains("by-name@" + larger_->fingerprint() + " MODEL_STATE_READY"));
}

// Answers of one user who records between them, checked against the fold of the model that each
// names.
class Client {
 public:
  Client(std::string user, std::unique_ptr<v1::Recommender::Stub> stub)
      : user_(std::move(user)), stub_(std::move(stub)), random_(std::hash<std::string>()(user_)) {}

  const std::string& user() const { return user_; }
  const UserLog& log() const { return log_; }

  // The model that answered.
  std::string Step(const std::function<const PlainFold&(const std::string&)>& fold_of) {
    Answer answer;
    if (random_() % 2 == 0 && log_.size() < 60) {
      // Now and then before the last one, and of items that one model or none knows.
      const Event event{"item" + std::to_string(1 + random_() % 95),
                        kAsOf - 1 - static_cast<int64_t>(random_() % 1'000'000), ""};
      AddTo(event, &log_);
      v1::RecordAndRecommendRequest request;
      *request.mutable_record() = RecordOf(user_, {{event.item_id, event.timestamp_ms}});
      *request.mutable_recommend() = RecommendOf("");
      v1::RecordAndRecommendResponse response;
      Context context;
      const grpc::Status status = stub_->RecordAndRecommend(&context, request, &response);
      answer = AnswerOf(status, response.recommend());
    } else {
      answer = Recommend(*stub_, user_);
    }
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.state_version, log_.size());
    const PlainFold& fold = fold_of(answer.model);
    if (answer.tier != v1::TIER_COLD_START) {
      EXPECT_EQ(answer.top, fold.Top(log_, kAsOf, kK)) << answer.model;
    } else {
      for (const auto& [position, event] : log_) EXPECT_FALSE(fold.Knows(event)) << answer.model;
    }
    return answer.model;
  }

 private:
  const std::string user_;
  const std::unique_ptr<v1::Recommender::Stub> stub_;
  std::mt19937 random_;
  UserLog log_;
};

TEST_F(ModelsOverGrpc, UnderLoadEveryAnswerIsOfOneModelAndNoneFails) {
  Start();
  constexpr int kThreads = 4;
  constexpr int kUsers = 5;  // per thread
  std::vector<std::unique_ptr<Client>> clients;
  for (int c = 0; c < kThreads * kUsers; ++c) {
    clients.push_back(std::make_unique<Client>("user" + std::to_string(c), Connect(*server_)));
  }
  std::atomic<bool> done = false;
  std::mutex mutex;
  std::map<std::string, int> answers;  // by model
  const auto fold_of = [&](const std::string& version) -> const PlainFold& {
    EXPECT_TRUE(version == tiny_version_ || version == larger_version_) << version;
    return FoldOf(version);
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; !done; ++i) {
        const std::string model = clients[t * kUsers + i % kUsers]->Step(fold_of);
        std::lock_guard lock(mutex);
        ++answers[model];
      }
    });
  }
  for (int round = 0; round < 8; ++round) {
    EXPECT_TRUE(Load(larger_dir_).ok());
    EXPECT_TRUE(Promote(larger_version_).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_TRUE(Promote(tiny_version_).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_TRUE(Unload(larger_version_).ok());
  }
  EXPECT_TRUE(Load(larger_dir_).ok());
  EXPECT_TRUE(Promote(larger_version_).ok());
  done = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(answers[tiny_version_], 0);
  EXPECT_GT(answers[larger_version_], 0);

  // Events from before, during and after the swaps are in the states of both, byte for byte.
  for (const auto& client : clients) {
    for (const std::string& version : {tiny_version_, larger_version_}) {
      EXPECT_TRUE(Recommend(*stub_, client->user(), version).status.ok());
    }
  }
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0) << server_->errors();
  RocksDbStoreOptions options;
  options.read_only = true;
  const auto store = RocksDbStore::Open(dir_ + "/data", options);
  ASSERT_TRUE(store.ok()) << store.status();
  for (const auto& client : clients) {
    if (client->log().empty()) continue;
    for (const PlainFold* model : {tiny_.get(), larger_.get()}) {
      const auto state = (*store)->Get(client->user(), model->fingerprint());
      ASSERT_TRUE(state.ok() && state->has_value()) << client->user();
      EXPECT_EQ((*state)->payload, model->State(client->log(), client->log().size()));
      EXPECT_EQ((*state)->lineage, LineageOf(client->log(), client->log().size()));
    }
  }
}

}  // namespace
}  // namespace tim4rec
