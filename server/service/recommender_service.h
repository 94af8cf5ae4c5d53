// tim4rec.v1.Recommender over gRPC's callback API.
#ifndef TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_
#define TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_

#include <atomic>
#include <cstdint>
#include <utility>

#include "server/service/open_streams.h"
#include "server/service/service_deps.h"
#include "server/service/stream_memory.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {

// Requests arrive as raw bytes, since a string that is not UTF-8 must be answered for its
// field (see parse.h). gRPC's threads parse, validate and submit, and never block; the pipeline's
// worker encodes the answer.
class RecommenderService final
    : public v1::Recommender::WithRawCallbackMethod_RecordInteractions<
          v1::Recommender::WithRawCallbackMethod_Recommend<
              v1::Recommender::WithRawCallbackMethod_RecordAndRecommend<
                  v1::Recommender::WithRawCallbackMethod_RecommendForHistory<
                      v1::Recommender::WithRawCallbackMethod_StreamInteractions<
                          v1::Recommender::WithRawCallbackMethod_RecommendBatch<
                              v1::Recommender::WithRawCallbackMethod_GetUser<
                                  v1::Recommender::WithRawCallbackMethod_DeleteUser<
                                      v1::Recommender::Service>>>>>>>> {
 public:
  explicit RecommenderService(ServiceDeps deps)
      : deps_(std::move(deps)), memory_(deps_.metrics->stream_bytes) {}

  // Calls and streams that have begun and not ended. Any thread.
  int64_t in_flight() const { return in_flight_.load() + streams_.open(); }

  // Ends the streams once what they have taken is answered; before the pipeline drains. Any thread.
  void Drain() { streams_.Drain(); }

  grpc::ServerUnaryReactor* RecordInteractions(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Recommend(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* RecordAndRecommend(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* RecommendForHistory(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamInteractions(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* RecommendBatch(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetUser(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteUser(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;

 private:
  const ServiceDeps deps_;
  std::atomic<int64_t> in_flight_ = 0;
  StreamMemory memory_;
  OpenStreams streams_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_
