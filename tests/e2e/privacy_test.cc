// What the real process logs at info, and shows as metrics, holds nothing of what clients send.
#include <signal.h>

#include <fstream>
#include <iterator>
#include <thread>

#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"
#include "tests/server/certificates.h"
#include "tests/server/http_get.h"

namespace tim4rec {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// In everything that a client sends below; does not compress, so that it is found in tables.
const std::string kMark = "8fq2Zx71LmWc0";
const std::string kToken = "token-" + kMark;
const std::string kUser = "user " + kMark;

class Privacy : public ServerTest {
 protected:
  Privacy() {
    WriteSecret(dir_ + "/tokens", "read,write,admin " + kToken + "\nread read-" + kToken + "\n");
    std::ofstream(dir_ + "/privacy.yaml")
        << "auth: {tokens_file: " << dir_ << "/tokens}\nlimits: {client_metadata: x-client}\n"
        << "pipeline: {workers: 1, queue_rows: 2}\n";
  }

  std::unique_ptr<ServerProcess> Start() {
    auto server = Serve(dir_ + "/data", {"--config", dir_ + "/privacy.yaml"});
    stub_ = Connect(*server);
    return server;
  }

  // Flips a bit of the user's events on the disk.
  void DamageAnEvent() {
    for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/data")) {
      if (entry.path().extension() != ".sst") continue;
      std::string content = ReadText(entry.path());
      const size_t at = content.find(kMark);
      // Not the counts, which have the item alone.
      if (at == std::string::npos || content.find("tim4rec.UseSum") != std::string::npos) continue;
      content[at] ^= 1;
      std::ofstream(entry.path(), std::ios::binary) << content;
      return;
    }
    FAIL() << "no table has the event";
  }

  std::unique_ptr<v1::Recommender::Stub> stub_;
};

// What a marked client sends with each call.
struct Marked : Context {
  explicit Marked(const std::string& token = kToken) {
    AddMetadata("authorization", "Bearer " + token);
    AddMetadata("x-client", "client " + kMark);
    AddMetadata("x-request-id", "request " + kMark);
  }
};

v1::RecommendRequest Query(const std::string& user) {
  v1::RecommendRequest request;
  request.set_user_id(user);
  request.add_exclude_item_ids("item " + kMark);
  request.add_candidate_item_ids("item1");
  return request;
}

StatusCode Recommend(v1::Recommender::Stub& stub, const v1::RecommendRequest& request,
                     grpc::ClientContext& context) {
  v1::RecommendResponse response;
  return stub.Recommend(&context, request, &response).error_code();
}

v1::RecordInteractionsRequest Event() {
  auto request = RecordOf(kUser, {{"item " + kMark, 1000}, {"item1", 2000}, {"", 3000}});
  request.mutable_interactions(1)->set_event_id("event " + kMark);
  return request;
}

void SendWhatWorks(v1::Recommender::Stub& stub) {
  v1::RecordInteractionsResponse recorded;
  Marked record;
  EXPECT_TRUE(stub.RecordInteractions(&record, Event(), &recorded).ok());
  Marked recommend;
  EXPECT_EQ(Recommend(stub, Query(kUser), recommend), StatusCode::OK);
  Marked get;
  v1::GetUserRequest user;
  user.set_user_id(kUser);
  v1::GetUserResponse found;
  EXPECT_TRUE(stub.GetUser(&get, user, &found).ok());
  Marked batch;
  auto users = stub.RecommendBatch(&batch);
  v1::RecommendBatchRequest ids;
  ids.add_user_ids(kUser);
  ids.add_user_ids(std::string(300, 'x') + kMark);
  users->Write(ids);
  users->WritesDone();
  v1::RecommendBatchResponse answers;
  while (users->Read(&answers)) {
  }
  EXPECT_TRUE(users->Finish().ok());
}

void SendWhatIsRefused(v1::Recommender::Stub& stub, const std::string& address) {
  for (const std::string& user : {std::string(), std::string(300, 'x') + kMark}) {
    Marked context;
    EXPECT_EQ(Recommend(stub, Query(user), context), StatusCode::INVALID_ARGUMENT);
  }
  Marked broken;
  EXPECT_EQ(Recommend(stub, Query(kUser + "\xff"), broken), StatusCode::INVALID_ARGUMENT);
  Marked unknown;
  auto named = Query(kUser);
  named.set_model("model " + kMark);
  EXPECT_EQ(Recommend(stub, named, unknown), StatusCode::NOT_FOUND);
  Marked stranger("unknown-" + kToken);
  EXPECT_EQ(Recommend(stub, Query(kUser), stranger), StatusCode::UNAUTHENTICATED);
  Marked reader("read-" + kToken);
  v1::RecordInteractionsResponse recorded;
  EXPECT_EQ(stub.RecordInteractions(&reader, Event(), &recorded).error_code(),
            StatusCode::PERMISSION_DENIED);
  Marked late;
  late.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  EXPECT_EQ(Recommend(stub, Query(kUser), late), StatusCode::DEADLINE_EXCEEDED);
  Marked large;
  EXPECT_EQ(Recommend(stub, Query(std::string(5 << 20, 'x') + kMark), large),
            StatusCode::RESOURCE_EXHAUSTED);
  Marked cancelled;
  auto stream = stub.StreamInteractions(&cancelled);
  v1::StreamInteractionsRequest batch;
  batch.add_users()->set_user_id(kUser);
  stream->Write(batch);
  cancelled.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::CANCELLED);
  std::string response;
  for (const std::string& bytes :
       {kMark, "\x0a\x05" + kMark, std::string("\x0a\x03\xff\xfe\xfd")}) {
    CallRaw(address, "/tim4rec.v1.Recommender/Recommend", bytes, &response);
    CallRaw(address, "/tim4rec.v1.Recommender/" + kMark, bytes, &response);
  }
}

// More at a time than the queue holds.
int Overload(const ServerProcess& server) {
  std::atomic<int> refused = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      auto stub = v1::Recommender::NewStub(
          grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
      for (int i = 0; i < 2000 && refused == 0; ++i) {
        Marked context;
        refused += Recommend(*stub, Query(kUser), context) == StatusCode::RESOURCE_EXHAUSTED;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return refused;
}

TEST_F(Privacy, NothingThatClientsSendIsLoggedOrCounted) {
  {
    auto server = Start();
    SendWhatWorks(*stub_);
    SendWhatIsRefused(*stub_, server->address());
    EXPECT_GT(Overload(*server), 0);
    v1::VerifyUserRequest verify;
    verify.set_user_id(kUser);
    v1::VerifyUserResponse verified;
    Marked admin;
    EXPECT_TRUE(ConnectAdmin(*server)->VerifyUser(&admin, verify, &verified).ok());
    v1::GetConfigResponse config;
    Marked configured;
    EXPECT_TRUE(ConnectAdmin(*server)->GetConfig(&configured, {}, &config).ok());
    EXPECT_THAT(config.yaml(), AllOf(HasSubstr("tokens_file: "), Not(HasSubstr(kMark))));
    EXPECT_THAT(HttpGet(server->metrics_address(), "/metrics"),
                AllOf(HasSubstr("reason=\"unknown_token\"} 1"), HasSubstr("reason=\"role\"} 1"),
                      Not(HasSubstr(kMark))));
    // A tokens file that does not read.
    WriteSecret(dir_ + "/tokens", "read,write,admin " + kToken + "\nred " + kToken + "\n");
    server->Signal(SIGHUP);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (server->errors().find("cannot be used") == std::string::npos &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    WriteSecret(dir_ + "/tokens", "read,write,admin " + kToken + "\n");
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
    EXPECT_THAT(
        server->errors(),
        AllOf(HasSubstr("model ready"), HasSubstr("configuration not taken"),
              HasSubstr("secrets cannot be used"), HasSubstr("stopped"), Not(HasSubstr(kMark))));
    EXPECT_THAT(server->output(), Not(HasSubstr(kMark)));
  }
  // Events reach the tables at the second start; then one is damaged.
  {
    auto server = Start();
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  DamageAnEvent();
  auto server = Start();
  Marked lost;
  EXPECT_EQ(Recommend(*stub_, Query(kUser), lost), StatusCode::DATA_LOSS);
  v1::RecordInteractionsResponse recorded;
  Marked record;
  EXPECT_EQ(stub_->RecordInteractions(&record, Event(), &recorded).error_code(),
            StatusCode::DATA_LOSS);
  v1::DeleteUserRequest remove;
  remove.set_user_id(kUser);
  remove.set_purge(true);
  v1::DeleteUserResponse removed;
  Marked purge;
  stub_->DeleteUser(&purge, remove, &removed);
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0);
  EXPECT_THAT(server->errors(), AllOf(HasSubstr("stopped"), Not(HasSubstr(kMark))));
}

}  // namespace
}  // namespace tim4rec
