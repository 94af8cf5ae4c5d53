// TLS, mutual TLS and tokens of the real process, replaced while it serves.
#include <signal.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <map>
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

void WaitUntil(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!holds() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(holds());
}

// What a client trusts and shows; PEM files' bases.
struct Client {
  std::vector<std::string> trusted;
  std::string own = {};
};

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address, const Client& client) {
  grpc::SslCredentialsOptions options;
  for (const std::string& base : client.trusted) options.pem_root_certs += ReadText(base + ".crt");
  if (!client.own.empty()) {
    options.pem_private_key = ReadText(client.own + ".key");
    options.pem_cert_chain = ReadText(client.own + ".crt");
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(options), arguments);
}

std::unique_ptr<v1::Recommender::Stub> NewStub(const std::string& address, const Client& client) {
  return v1::Recommender::NewStub(NewChannel(address, client));
}

grpc::Status Recommend(v1::Recommender::Stub& stub, const std::string& token = "") {
  v1::RecommendRequest request;
  request.set_user_id("user");
  v1::RecommendResponse response;
  Context context;
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  return stub.Recommend(&context, request, &response);
}

class Security : public ServerTest {
 protected:
  Security() {
    for (const char* authority : {"old", "new", "clients", "strangers"}) {
      MakeCertificate(dir_ + "/" + authority);
    }
    MakeCertificate(dir_ + "/old_server", dir_ + "/old");
    MakeCertificate(dir_ + "/new_server", dir_ + "/new");
  }

  std::string At(const std::string& name) const { return dir_ + "/" + name; }

  void Place(const std::string& from, const std::string& to) {
    WriteSecret(At(to), ReadText(At(from)));
  }

  std::unique_ptr<ServerProcess> ServeTls(const std::string& more = "") {
    Place("old_server.crt", "live.crt");
    Place("old_server.key", "live.key");
    std::ofstream(At("tls.yaml")) << "tls: {certificate: " << At("live.crt")
                                  << ", key: " << At("live.key") << more << "}\n";
    return Serve(At("data"), {"--config", At("tls.yaml")});
  }
};

TEST_F(Security, CertificatesAreReplacedUnderLoadWithoutOneFailedCall) {
  auto server = ServeTls();
  const std::string address = server->address();
  const Client trusts_both = {{At("old"), At("new")}};
  std::atomic<bool> stop = false;
  std::atomic<int> calls = 0;
  const auto check = [&](v1::Recommender::Stub& stub, const char* which) {
    const grpc::Status status = Recommend(stub);
    EXPECT_TRUE(status.ok()) << which << " after " << calls << ": " << status.error_message();
    ++calls;
  };
  // One connection that stays, one for every call.
  auto staying = NewStub(address, {{At("old")}});
  ASSERT_TRUE(Recommend(*staying).ok());
  std::thread old_connection([&] {
    while (!stop) check(*staying, "the connection that stays");
  });
  std::thread new_connections([&] {
    while (!stop) check(*NewStub(address, trusts_both), "a new connection");
  });

  std::string last = "old";
  for (const bool by_signal : {false, true, false}) {
    const std::string next = last == "old" ? "new" : "old";
    // Key and certificate are not exchanged at once: meanwhile they do not fit, which is seen.
    Place(next + "_server.key", "live.key");
    if (!by_signal) {
      const size_t seen = server->errors().size();
      WaitUntil([&] {
        return server->errors().find("is not the key of the first certificate", seen) !=
               std::string::npos;
      });
      EXPECT_THAT(HttpGet(server->metrics_address(), "/metrics"),
                  HasSubstr("tim4rec_secrets_unusable{kind=\"tls\"} 1"));
      EXPECT_TRUE(Recommend(*NewStub(address, {{At(last)}})).ok());
    }
    Place(next + "_server.crt", "live.crt");
    if (by_signal) server->Signal(SIGHUP);
    WaitUntil([&] { return Recommend(*NewStub(address, {{At(next)}})).ok(); });
    EXPECT_EQ(Recommend(*NewStub(address, {{At(last)}})).error_code(), StatusCode::UNAVAILABLE);
    last = next;
  }
  stop = true;
  old_connection.join();
  new_connections.join();
  EXPECT_GT(calls, 20);
  EXPECT_THAT(HttpGet(server->metrics_address(), "/metrics"),
              AllOf(HasSubstr("tim4rec_secrets_unusable{kind=\"tls\"} 0"),
                    HasSubstr("tim4rec_certificate_expiry_timestamp_seconds 1")));
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0) << server->errors();
}

TEST_F(Security, MutualTlsRefusesStrangersOnBothListeners) {
  MakeCertificate(At("client"), At("clients"));
  MakeCertificate(At("stranger"), At("strangers"));
  Place("clients.crt", "ca.crt");
  auto server = ServeTls(", client_ca: " + At("ca.crt"));
  const Client good = {{At("old")}, At("client")};
  const Client stranger = {{At("old")}, At("stranger")};
  const Client bare = {{At("old")}};
  auto staying = NewStub(server->address(), good);
  EXPECT_TRUE(Recommend(*staying).ok());
  for (const Client& client : {stranger, bare}) {
    EXPECT_EQ(Recommend(*NewStub(server->address(), client)).error_code(), StatusCode::UNAVAILABLE);
  }
  const auto list = [&](const Client& client) {
    Context context;
    v1::ListModelsResponse response;
    return v1::Admin::NewStub(NewChannel(server->admin_address(), client))
        ->ListModels(&context, {}, &response)
        .error_code();
  };
  EXPECT_EQ(list(good), StatusCode::OK);
  EXPECT_EQ(list(stranger), StatusCode::UNAVAILABLE);
  EXPECT_EQ(list(bare), StatusCode::UNAVAILABLE);
  auto clear = Connect(*server);
  EXPECT_EQ(Recommend(*clear).error_code(), StatusCode::UNAVAILABLE);

  Place("strangers.crt", "ca.crt");
  WaitUntil([&] { return Recommend(*NewStub(server->address(), stranger)).ok(); });
  EXPECT_EQ(Recommend(*NewStub(server->address(), good)).error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Recommend(*staying).ok()) << "connections that there are go on";
  EXPECT_EQ(list(stranger), StatusCode::OK);
}

TEST_F(Security, FaultsOfCertificatesAndTokensStopTheStart) {
  Place("old_server.crt", "live.crt");
  Place("new_server.key", "live.key");
  std::ofstream(At("open")) << "read some-token-for-all-to-see\n";
  const std::string both =
      "tls: {certificate: " + At("live.crt") + ", key: " + At("live.key") + "}";
  const std::tuple<std::string, int, std::string> cases[] = {
      {"tls: {certificate: " + At("live.crt") + "}", 2, "tls.key: is empty"},
      {"tls: {client_ca: " + At("live.crt") + "}", 2, "tls.client_ca: needs"},
      {"{listen: '0.0.0.0:0', auth: {tokens_file: x}}", 2, "auth.tokens_file: tokens would come"},
      {both, 1, "tls.key: " + At("live.key") + ": is not the key of the first certificate"},
      {"auth: {tokens_file: /absent}", 1, "auth.tokens_file: /absent: No such file"},
      {"auth: {tokens_file: " + At("open") + "}", 1, "everybody may read it: chmod o="},
  };
  for (const auto& [yaml, code, message] : cases) {
    std::ofstream(At("faulty.yaml")) << yaml << "\n";
    ServerProcess server({"--model", kTinyModel, "--data", At("data"), "--config",
                          At("faulty.yaml"), "--metrics-listen", "127.0.0.1:0"});
    EXPECT_EQ(server.Wait(), code) << message;
    EXPECT_THAT(server.errors(), AllOf(HasSubstr(message), Not(HasSubstr("some-token"))));
  }
}

TEST_F(Security, ClearTextBeyondThisMachineIsWarnedAboutOnce) {
  auto open = std::make_unique<ServerProcess>(
      std::vector<std::string>{"--model", kTinyModel, "--data", At("data"), "--listen", "0.0.0.0:0",
                               "--metrics-listen", "127.0.0.1:0"});
  ASSERT_TRUE(open->WaitUntilServing());
  const std::string errors = open->errors();
  const size_t first = errors.find("listens in clear text");
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(errors.find("listens in clear text", first + 1), std::string::npos);
  open.reset();
  auto local = Serve(At("data"));
  EXPECT_THAT(local->errors(), Not(HasSubstr("clear text")));
}

TEST_F(Security, ReflectionCanBeTurnedOff) {
  constexpr char kReflection[] = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  for (const bool on : {true, false}) {
    setenv("TIM4REC_SERVER_REFLECTION", on ? "true" : "false", 1);
    auto server = Serve(At("data"));
    unsetenv("TIM4REC_SERVER_REFLECTION");
    std::string response;
    for (const std::string& address : {server->address(), server->admin_address()}) {
      EXPECT_EQ(
          CallRaw(address, kReflection, "", &response).error_code() == StatusCode::UNIMPLEMENTED,
          !on);
    }
  }
}

class Authorization : public ServerTest {
 protected:
  const std::string reader_ = "reader-0123456789abcdef";
  const std::string writer_ = "writer-0123456789abcdef";
  const std::string both_ = "both-0123456789abcdef";
  const std::string admin_ = "admin-0123456789abcdef";
  const std::string path_ = dir_ + "/tokens";

  std::unique_ptr<ServerProcess> ServeTokens() {
    WriteSecret(path_, "read " + reader_ + "\nwrite " + writer_ + "\nread,write " + both_ +
                           "\nadmin " + admin_ + "\n");
    std::ofstream(dir_ + "/auth.yaml") << "auth: {tokens_file: " << path_ << "}\n";
    return Serve(dir_ + "/data", {"--config", dir_ + "/auth.yaml"});
  }
};

template <typename Request, typename Response>
StatusCode Call(grpc::Status (v1::Recommender::Stub::*method)(grpc::ClientContext*, const Request&,
                                                              Response*),
                v1::Recommender::Stub& stub, const Request& request, const std::string& token) {
  Response response;
  Context context;
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  return (stub.*method)(&context, request, &response).error_code();
}

template <typename Stream, typename Request, typename Response>
StatusCode CallStream(Stream open, const Request& request, Response response,
                      const std::string& token) {
  Context context;
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  auto stream = open(&context);
  if (stream->Write(request)) stream->WritesDone();
  while (stream->Read(&response)) {
  }
  return stream->Finish().error_code();
}

TEST_F(Authorization, EveryCallAsksForATokenOfItsRole) {
  auto server = ServeTokens();
  auto stub = Connect(*server);
  auto admin = ConnectAdmin(*server);
  using Rpc = v1::Recommender::Stub;
  v1::RecommendRequest recommend;
  recommend.set_user_id("user");
  v1::RecordAndRecommendRequest record_and_recommend;
  *record_and_recommend.mutable_record() = RecordOf("user", {{"item1", 1000}});
  v1::RecommendForHistoryRequest history;
  history.add_interactions()->set_item_id("item1");
  history.mutable_interactions(0)->set_timestamp_ms(1000);
  v1::GetUserRequest get;
  get.set_user_id("user");
  v1::DeleteUserRequest remove;
  remove.set_user_id("user");
  v1::StreamInteractionsRequest batch;
  batch.add_users()->set_user_id("user");
  v1::RecommendBatchRequest users;
  users.add_user_ids("user");

  using Caller = std::function<StatusCode(const std::string&)>;
  const std::tuple<const char*, const char*, Caller> calls[] = {
      {"Recommend", "read",
       [&](const std::string& t) { return Call(&Rpc::Recommend, *stub, recommend, t); }},
      {"RecommendForHistory", "read",
       [&](const std::string& t) { return Call(&Rpc::RecommendForHistory, *stub, history, t); }},
      {"GetUser", "read", [&](const std::string& t) { return Call(&Rpc::GetUser, *stub, get, t); }},
      {"RecommendBatch", "read",
       [&](const std::string& t) {
         return CallStream([&](grpc::ClientContext* c) { return stub->RecommendBatch(c); }, users,
                           v1::RecommendBatchResponse(), t);
       }},
      {"RecordInteractions", "write",
       [&](const std::string& t) {
         return Call(&Rpc::RecordInteractions, *stub, record_and_recommend.record(), t);
       }},
      {"StreamInteractions", "write",
       [&](const std::string& t) {
         return CallStream([&](grpc::ClientContext* c) { return stub->StreamInteractions(c); },
                           batch, v1::StreamInteractionsResponse(), t);
       }},
      {"DeleteUser", "write",
       [&](const std::string& t) { return Call(&Rpc::DeleteUser, *stub, remove, t); }},
      {"RecordAndRecommend", "both",
       [&](const std::string& t) {
         return Call(&Rpc::RecordAndRecommend, *stub, record_and_recommend, t);
       }},
      {"ListModels", "admin",
       [&](const std::string& t) {
         Context context;
         if (!t.empty()) context.AddMetadata("authorization", "Bearer " + t);
         v1::ListModelsResponse response;
         return admin->ListModels(&context, {}, &response).error_code();
       }},
  };
  for (const auto& [name, role, call] : calls) {
    EXPECT_EQ(call(""), StatusCode::UNAUTHENTICATED) << name;
    EXPECT_EQ(call("unknown-0123456789abcdef"), StatusCode::UNAUTHENTICATED) << name;
    const std::string needed = role;
    for (const auto& [token, roles] : std::map<std::string, std::string>{{reader_, "read"},
                                                                         {writer_, "write"},
                                                                         {both_, "read write both"},
                                                                         {admin_, "admin"}}) {
      EXPECT_EQ(call(token), roles.find(needed) == std::string::npos ? StatusCode::PERMISSION_DENIED
                                                                     : StatusCode::OK)
          << name << " with the token of " << roles;
    }
  }
  // Probes of load balancers and kubelets carry no token.
  std::string response;
  EXPECT_TRUE(CallRaw(server->address(), "/grpc.health.v1.Health/Check", "", &response).ok());

  v1::RecordInteractionsResponse recorded;
  Context context;
  context.AddMetadata("authorization", "Bearer " + reader_);
  const grpc::Status refused =
      stub->RecordInteractions(&context, record_and_recommend.record(), &recorded);
  EXPECT_EQ(refused.error_message(),
            "authorization: RecordInteractions needs a token for write; this one is for read");
  const std::string metrics = HttpGet(server->metrics_address(), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("tim4rec_dropped_requests_total{reason=\"no_token\"} 9"));
  EXPECT_THAT(metrics, HasSubstr("tim4rec_dropped_requests_total{reason=\"unknown_token\"} 9"));
  EXPECT_THAT(metrics, HasSubstr("tim4rec_dropped_requests_total{reason=\"role\"} "));
}

TEST_F(Authorization, TokensAreReplacedWhileStreamsAndCallsGoOn) {
  auto server = ServeTokens();
  auto stub = Connect(*server);
  Context context;
  context.AddMetadata("authorization", "Bearer " + writer_);
  auto stream = stub->StreamInteractions(&context);
  v1::StreamInteractionsRequest batch;
  batch.add_users()->set_user_id("user");
  v1::StreamInteractionsResponse answer;
  ASSERT_TRUE(stream->Write(batch) && stream->Read(&answer));

  // Two at a time: the next one is added, clients change over, the old one goes.
  const std::string next = "next-0123456789abcdef";
  WriteSecret(path_, "read " + reader_ + "\nread " + next + "\nwrite " + writer_ + "\n");
  WaitUntil([&] { return Recommend(*stub, next).ok(); });
  EXPECT_TRUE(Recommend(*stub, reader_).ok());
  WriteSecret(path_, "read " + next + "\n");
  server->Signal(SIGHUP);
  WaitUntil([&] { return !Recommend(*stub, reader_).ok(); });
  EXPECT_TRUE(Recommend(*stub, next).ok());

  // A stream whose token is gone takes no further batch.
  stream->Write(batch);
  EXPECT_FALSE(stream->Read(&answer));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::UNAUTHENTICATED);

  // What does not read changes nothing, and a SIGHUP says so.
  WriteSecret(path_, "read\n");
  server->Signal(SIGHUP);
  WaitUntil([&] { return server->errors().find("configuration not taken") != std::string::npos; });
  EXPECT_TRUE(Recommend(*stub, next).ok());
  EXPECT_THAT(server->errors(), HasSubstr("line 1 is not"));
}

}  // namespace
}  // namespace tim4rec
