// A server that does nothing but gRPC: the ceiling of any handler with the same answers.
#ifndef TIM4REC_SERVER_LOADGEN_EMPTY_HANDLER_H_
#define TIM4REC_SERVER_LOADGEN_EMPTY_HANDLER_H_

#include <grpcpp/support/byte_buffer.h>
#include <sys/types.h>

#include <array>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/loadgen/workload.h"

namespace tim4rec {

// The empty handler in a process of its own, so that it shares no thread with the load; it ends
// with this object.
class EmptyHandler {
 public:
  // `answers`: what each call is answered with, whatever is asked; by Call.
  static absl::StatusOr<std::unique_ptr<EmptyHandler>> Start(
      const std::array<grpc::ByteBuffer, kCalls>& answers);
  ~EmptyHandler();

  const std::string& address() const { return address_; }

 private:
  EmptyHandler() = default;

  pid_t pid_ = -1;
  int to_child_ = -1;
  std::string address_;
};

// The program's argument that makes it the empty handler's process.
inline constexpr char kEmptyHandlerFlag[] = "--serve-empty-handler";

// That process: reads the answers from stdin, prints "listening on HOST:PORT", serves until stdin
// ends. Callback API, raw bytes, the settings of our own server. Returns the exit code.
int ServeEmptyHandler();

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_EMPTY_HANDLER_H_
