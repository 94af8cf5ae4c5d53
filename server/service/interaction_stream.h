// StreamInteractions: batches over many users, answered in order.
#ifndef TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_
#define TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "server/service/open_streams.h"
#include "server/service/service_deps.h"
#include "server/service/stream_memory.h"

namespace tim4rec {

// The reactor of a new stream, which is one of `streams` and deletes itself.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* OpenInteractionStream(
    const ServiceDeps& deps, OpenStreams* streams, StreamMemory* memory,
    grpc::CallbackServerContext* context);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_INTERACTION_STREAM_H_
