#include "server/service/client_key.h"

#include <grpcpp/server_context.h>

#include <functional>

namespace tim4rec {

std::string_view HostOf(std::string_view peer) {
  if (peer.substr(0, 3) != "ipv") return peer;
  return peer.substr(0, peer.rfind(':'));
}

uint64_t ClientKey(const grpc::CallbackServerContext& context, const std::string& metadata_key) {
  const std::hash<std::string_view> hash;
  // The lowest bit is not part of a key (job_queue.cc).
  if (!metadata_key.empty()) {
    const auto& metadata = context.client_metadata();
    const auto found = metadata.find(metadata_key);
    if (found != metadata.end())
      return hash(std::string_view(found->second.data(), found->second.size())) | 2;
  }
  return hash(HostOf(context.peer())) | 2;
}

}  // namespace tim4rec
