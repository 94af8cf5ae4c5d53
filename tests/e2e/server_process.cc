#include "tests/e2e/server_process.h"

#include <fcntl.h>
#include <grpcpp/generic/generic_stub.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/paths.h"

extern char** environ;

namespace tim4rec {
namespace {

std::string MakeDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "tim4rec_e2e_XXXXXX").string();
  return mkdtemp(pattern.data());
}

// What follows `prefix` on its own line, empty if there is no such complete line.
std::string LineAfter(const std::string& text, const std::string& prefix) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    if (text.compare(begin, prefix.size(), prefix) == 0) {
      return text.substr(begin + prefix.size(), end - begin - prefix.size());
    }
    begin = end + 1;
  }
  return "";
}

}  // namespace

ServerProcess::ServerProcess(const std::vector<std::string>& arguments,
                             const std::string& program) {
  std::string binary = BinaryDir() + "/bin/" + program;
  setenv("TIM4REC_ADMIN_LISTEN", "127.0.0.1:0", 0);
  std::vector<char*> argv = {binary.data()};
  std::vector<std::string> copies = arguments;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);

  std::string errors = (std::filesystem::temp_directory_path() / "tim4rec_stderr_XXXXXX").string();
  const int errors_fd = mkstemp(errors.data());
  errors_path_ = errors;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, errors_fd, 2);
  EXPECT_EQ(posix_spawn(&pid_, binary.c_str(), &actions, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  close(errors_fd);
  output_fd_ = ends[0];
}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    Wait();
  }
  std::filesystem::remove(errors_path_);
}

bool ServerProcess::ReadSome() {
  char buffer[1024];
  const ssize_t n = read(output_fd_, buffer, sizeof buffer);
  if (n > 0) output_.append(buffer, n);
  return n > 0;
}

bool ServerProcess::WaitUntilServing() {
  while (metrics_address_.empty()) {
    if (!ReadSome()) return false;
    address_ = LineAfter(output_, "listening on ");
    admin_address_ = LineAfter(output_, "admin on ");
    metrics_address_ = LineAfter(output_, "metrics on ");
  }
  return true;
}

void ServerProcess::Signal(int number) const { kill(pid_, number); }

int ServerProcess::Wait() {
  while (ReadSome()) {
  }
  close(output_fd_);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string ServerProcess::errors() const {
  std::ifstream file(errors_path_);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

ServerTest::ServerTest() : dir_(MakeDirectory()) {}

ServerTest::~ServerTest() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

std::unique_ptr<ServerProcess> ServerTest::Serve(const std::string& data,
                                                 const std::vector<std::string>& more,
                                                 const std::string& program) {
  std::vector<std::string> arguments = {
      "--model",  kTinyModel,    "--data",           data,
      "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  auto server = std::make_unique<ServerProcess>(arguments, program);
  EXPECT_TRUE(server->WaitUntilServing()) << server->errors();
  return server;
}

std::unique_ptr<v1::Recommender::Stub> ServerTest::Connect(const ServerProcess& server) {
  return v1::Recommender::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
}

std::unique_ptr<v1::Admin::Stub> ServerTest::ConnectAdmin(const ServerProcess& server) {
  return v1::Admin::NewStub(
      grpc::CreateChannel(server.admin_address(), grpc::InsecureChannelCredentials()));
}

grpc::Status CallRaw(const std::string& address, const std::string& method,
                     const std::string& request, std::string* response) {
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  Context context;
  grpc::CompletionQueue queue;
  grpc::Slice slice(request);
  const grpc::ByteBuffer bytes(&slice, 1);
  auto call = stub.PrepareUnaryCall(&context, method, bytes, &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  if (status.ok() && answer.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) {
      response->append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
  }
  return status;
}

std::vector<std::string> ViolationsOf(const grpc::Status& status) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  std::vector<std::string> violations;
  google::rpc::Status details;
  google::rpc::BadRequest bad;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
      details.details(0).UnpackTo(&bad)) {
    for (const auto& violation : bad.field_violations()) {
      violations.push_back(violation.field() + ": " + violation.description());
    }
  }
  return violations;
}

v1::RecordInteractionsRequest RecordOf(
    const std::string& user, const std::vector<std::pair<std::string, int64_t>>& interactions) {
  v1::RecordInteractionsRequest request;
  request.set_user_id(user);
  for (const auto& [item, timestamp_ms] : interactions) {
    auto* interaction = request.add_interactions();
    interaction->set_item_id(item);
    interaction->set_timestamp_ms(timestamp_ms);
  }
  return request;
}

std::vector<std::string> TopOf(v1::Recommender::Stub& stub, const std::string& user,
                               int64_t as_of_ms, int k) {
  v1::RecommendRequest request;
  request.set_user_id(user);
  request.set_as_of_ms(as_of_ms);
  request.set_k(k);
  v1::RecommendResponse response;
  Context context;
  const grpc::Status status = stub.Recommend(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<std::string> top;
  for (const auto& item : response.items()) {
    top.push_back(item.item_id() + ":" + std::to_string(item.score()) + " " +
                  std::to_string(std::bit_cast<uint32_t>(item.score())));
  }
  return top;
}

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace tim4rec
