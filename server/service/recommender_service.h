// tim4rec.v1.Recommender over gRPC's callback API.
#ifndef TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_
#define TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "model/engine/engine.h"
#include "server/pipeline/pipeline.h"
#include "server/service/codec.h"
#include "server/telemetry/metrics.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {

// What a call needs; all of it outlives the service.
struct ServiceDeps {
  const Engine* engine;
  Pipeline* pipeline;
  Metrics* metrics;
  RequestLimits limits;
  std::string model_name;
  std::function<absl::Time()> clock;  // any thread
};

// Unary requests arrive as raw bytes, since a string that is not UTF-8 must be answered for its
// field (see parse.h). gRPC's threads parse, validate and submit, and never block; the pipeline's
// worker encodes the answer.
class RecommenderService final
    : public v1::Recommender::WithRawCallbackMethod_RecordInteractions<
          v1::Recommender::WithRawCallbackMethod_Recommend<
              v1::Recommender::WithRawCallbackMethod_RecordAndRecommend<
                  v1::Recommender::WithRawCallbackMethod_RecommendForHistory<
                      v1::Recommender::WithCallbackMethod_StreamInteractions<
                          v1::Recommender::WithCallbackMethod_RecommendBatch<
                              v1::Recommender::WithRawCallbackMethod_GetUser<
                                  v1::Recommender::WithRawCallbackMethod_DeleteUser<
                                      v1::Recommender::Service>>>>>>>> {
 public:
  explicit RecommenderService(ServiceDeps deps) : deps_(std::move(deps)) {}

  // Unary calls that have begun and whose answers have not left. Any thread.
  int64_t in_flight() const { return in_flight_.load(); }

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
  grpc::ServerBidiReactor<v1::StreamInteractionsRequest, v1::StreamInteractionsResponse>*
  StreamInteractions(grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::RecommendBatchRequest, v1::RecommendBatchResponse>* RecommendBatch(
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
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_RECOMMENDER_SERVICE_H_
