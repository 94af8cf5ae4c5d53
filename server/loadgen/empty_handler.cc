#include "server/loadgen/empty_handler.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

extern char** environ;

namespace tim4rec {
namespace {

constexpr char kListening[] = "listening on ";

class EmptyCall final : public grpc::ServerUnaryReactor {
 public:
  EmptyCall(const grpc::ByteBuffer& answer, grpc::ByteBuffer* response) {
    *response = answer;
    Finish(grpc::Status::OK);
  }
  void OnDone() override { delete this; }
};

// Reads on while it answers, as our streams do.
class EmptyStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit EmptyStream(const grpc::ByteBuffer& answer) : answer_(answer) { StartRead(&request_); }

 private:
  void OnReadDone(bool ok) override {
    std::lock_guard lock(mutex_);
    if (!ok) {
      ended_ = true;
      if (unanswered_ == 0) Finish(grpc::Status::OK);
      return;
    }
    if (++unanswered_ == 1) StartWrite(&answer_);
    StartRead(&request_);
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    --unanswered_;
    if (!ok) unanswered_ = 0;
    if (unanswered_ > 0) {
      StartWrite(&answer_);
    } else if (ended_) {
      Finish(grpc::Status::OK);
    }
  }
  void OnDone() override {
    { std::lock_guard lock(mutex_); }
    delete this;
  }

  const grpc::ByteBuffer answer_;
  grpc::ByteBuffer request_;
  std::recursive_mutex mutex_;  // recursive in case that gRPC calls back at once
  int64_t unanswered_ = 0;
  bool ended_ = false;
};

class EmptyService final : public v1::Recommender::WithRawCallbackMethod_Recommend<
                               v1::Recommender::WithRawCallbackMethod_RecordInteractions<
                                   v1::Recommender::WithRawCallbackMethod_StreamInteractions<
                                       v1::Recommender::WithRawCallbackMethod_RecommendBatch<
                                           v1::Recommender::Service>>>> {
 public:
  explicit EmptyService(std::array<grpc::ByteBuffer, kCalls> answers)
      : answers_(std::move(answers)) {}

  grpc::ServerUnaryReactor* Recommend(grpc::CallbackServerContext*, const grpc::ByteBuffer*,
                                      grpc::ByteBuffer* response) override {
    return new EmptyCall(answer(Call::kRecommend), response);
  }
  grpc::ServerUnaryReactor* RecordInteractions(grpc::CallbackServerContext*,
                                               const grpc::ByteBuffer*,
                                               grpc::ByteBuffer* response) override {
    return new EmptyCall(answer(Call::kRecord), response);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamInteractions(
      grpc::CallbackServerContext*) override {
    return new EmptyStream(answer(Call::kStream));
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* RecommendBatch(
      grpc::CallbackServerContext*) override {
    return new EmptyStream(answer(Call::kBatch));
  }

 private:
  const grpc::ByteBuffer& answer(Call call) const { return answers_[static_cast<int>(call)]; }

  const std::array<grpc::ByteBuffer, kCalls> answers_;
};

bool WriteAll(int fd, const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

bool ReadAll(int fd, void* to, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t n = read(fd, static_cast<char*>(to) + done, size - done);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

std::string Text(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!bytes.Valid() || !bytes.Dump(&slices).ok()) return text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat("empty handler: ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<EmptyHandler>> EmptyHandler::Start(
    const std::array<grpc::ByteBuffer, kCalls>& answers) {
  int to_child[2], from_child[2];
  if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0) return Failed("pipe");
  auto handler = std::unique_ptr<EmptyHandler>(new EmptyHandler);
  handler->to_child_ = to_child[1];
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to_child[0], 0);
  posix_spawn_file_actions_adddup2(&actions, from_child[1], 1);
  char program[] = "/proc/self/exe";
  std::string flag = kEmptyHandlerFlag;
  char* argv[] = {program, flag.data(), nullptr};
  const int spawned = posix_spawn(&handler->pid_, program, &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(to_child[0]);
  close(from_child[1]);
  if (spawned != 0) {
    close(from_child[0]);
    errno = spawned;
    return Failed("start");
  }
  std::string bytes;
  for (const grpc::ByteBuffer& answer : answers) {
    const std::string text = Text(answer);
    const uint64_t size = text.size();
    bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
    bytes += text;
  }
  std::string line;
  if (WriteAll(handler->to_child_, bytes)) {
    for (char c; ReadAll(from_child[0], &c, 1) && c != '\n';) line += c;
  }
  close(from_child[0]);
  if (line.rfind(kListening, 0) != 0) {
    return absl::UnavailableError("empty handler: its process did not start to listen");
  }
  handler->address_ = line.substr(sizeof(kListening) - 1);
  return handler;
}

EmptyHandler::~EmptyHandler() {
  close(to_child_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

int ServeEmptyHandler() {
  std::array<grpc::ByteBuffer, kCalls> answers;
  for (grpc::ByteBuffer& answer : answers) {
    uint64_t size;
    if (!ReadAll(0, &size, sizeof size)) return 1;
    std::string text(size, '\0');
    if (!ReadAll(0, text.data(), size)) return 1;
    grpc::Slice slice(text);
    answer = grpc::ByteBuffer(&slice, 1);
  }
  EmptyService service(std::move(answers));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return 1;
  std::printf("%s127.0.0.1:%d\n", kListening, port);
  std::fflush(stdout);
  char end;
  (void)ReadAll(0, &end, 1);
  server->Shutdown(std::chrono::system_clock::now());
  server->Wait();
  return 0;
}

}  // namespace tim4rec
