// A tim4rec-server process under test, and clients that speak to it.
#ifndef TIM4REC_TESTS_E2E_SERVER_PROCESS_H_
#define TIM4REC_TESTS_E2E_SERVER_PROCESS_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/paths.h"
#include "tim4rec/v1/admin.grpc.pb.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {

inline const std::string kTinyModel = SourceDir() + "/tests/e2e/testdata/tiny_model";

// The real binary with the given arguments, and its Admin service on a free port; or another
// program of the build made of its parts.
class ServerProcess {
 public:
  explicit ServerProcess(const std::vector<std::string>& arguments,
                         const std::string& program = "tim4rec-server");
  ~ServerProcess();  // kill -9 if it still runs
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Waits until the server has printed its addresses. False if it ended before.
  bool WaitUntilServing();
  void Signal(int number) const;
  // Waits for the end. The exit code, or minus the signal's number.
  int Wait();

  const std::string& address() const { return address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  const std::string& admin_address() const { return admin_address_; }
  const std::string& output() const { return output_; }  // complete after Wait
  std::string errors() const;                            // what it wrote to stderr so far

 private:
  bool ReadSome();

  pid_t pid_ = -1;
  int output_fd_ = -1;
  std::string errors_path_;
  std::string output_;
  std::string address_;
  std::string metrics_address_;
  std::string admin_address_;
};

// A data directory, and servers over it with the tiny model.
class ServerTest : public testing::Test {
 protected:
  ServerTest();
  ~ServerTest() override;

  // Starts a server over `data` on free ports, with further arguments.
  std::unique_ptr<ServerProcess> Serve(const std::string& data,
                                       const std::vector<std::string>& more = {},
                                       const std::string& program = "tim4rec-server");
  std::unique_ptr<v1::Recommender::Stub> Connect(const ServerProcess& server);
  std::unique_ptr<v1::Admin::Stub> ConnectAdmin(const ServerProcess& server);

  std::string dir_;
};

// A call with a deadline of a minute.
struct Context : grpc::ClientContext {
  Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1)); }
};

// Sends bytes to a method ("/package.Service/Method") and waits for the one answer.
grpc::Status CallRaw(const std::string& address, const std::string& method,
                     const std::string& request, std::string* response);

// "field: description" of every violation in an INVALID_ARGUMENT's details.
std::vector<std::string> ViolationsOf(const grpc::Status& status);

v1::RecordInteractionsRequest RecordOf(
    const std::string& user, const std::vector<std::pair<std::string, int64_t>>& interactions);

// "item:score score bits" of every item, best first.
std::vector<std::string> TopOf(v1::Recommender::Stub& stub, const std::string& user,
                               int64_t as_of_ms, int k = 10);

int64_t NowMs();

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_E2E_SERVER_PROCESS_H_
