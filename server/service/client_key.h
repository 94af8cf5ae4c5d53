// Who asks, for the shares of a queue.
#ifndef TIM4REC_SERVER_SERVICE_CLIENT_KEY_H_
#define TIM4REC_SERVER_SERVICE_CLIENT_KEY_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace tim4rec {

// A peer as gRPC names it ("ipv4:10.0.0.1:4711") without its port, so that the connections of one
// machine are one client.
std::string_view HostOf(std::string_view peer);

// A hash of the value of the call's metadata under `metadata_key`; of the peer's host if that is
// empty or not there. Never 0.
uint64_t ClientKey(const grpc::CallbackServerContext& context, const std::string& metadata_key);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_CLIENT_KEY_H_
