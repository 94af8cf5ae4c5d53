// StreamInteractions: batches over many users, answered in order.
#ifndef TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_
#define TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <mutex>
#include <unordered_set>

#include "server/service/service_deps.h"

namespace tim4rec {

class InteractionStream;

// The streams that are open. Thread-safe; outlives them.
class InteractionStreams {
 public:
  explicit InteractionStreams(const ServiceDeps& deps) : deps_(deps) {}

  // The reactor of a new stream; it deletes itself.
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Open(
      grpc::CallbackServerContext* context);

  // Takes no further batches. Every stream ends with UNAVAILABLE once the batches that it has taken
  // are answered.
  void Drain();

  int64_t open() const;

 private:
  friend class InteractionStream;

  const ServiceDeps& deps_;
  mutable std::mutex mutex_;
  std::unordered_set<InteractionStream*> streams_;
  bool draining_ = false;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_
