// What a load consists of: the requests of a scenario, and what their answers say.
#ifndef TIM4REC_SERVER_LOADGEN_WORKLOAD_H_
#define TIM4REC_SERVER_LOADGEN_WORKLOAD_H_

#include <google/protobuf/arena.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tim4rec/v1/recommender.pb.h"

namespace tim4rec {

enum class Scenario {
  kRecommend,  // Recommend for random users
  kRecord,     // RecordInteractions, user after user
  kMixed,      // one of each in turn
  kStream,     // StreamInteractions, batches of users
  kBatch,      // RecommendBatch, messages of users
};

struct LoadOptions {
  Scenario scenario = Scenario::kRecommend;
  int64_t users = 10'000;
  int64_t history = 20;       // events of each user before the load starts
  int64_t events = 1;         // per user in RecordInteractions and StreamInteractions
  int64_t batch_users = 256;  // per message of a stream
  int64_t k = 10;
  v1::Ack ack = v1::ACK_APPLIED;
  uint64_t seed = 1;
  double rate = 0;         // requests per second, Poisson arrivals; 0: closed loop
  int64_t in_flight = 64;  // most requests sent and not answered, over all threads
  double seconds = 5;
  int threads = 2;  // each with a connection and users of its own
};

enum class Call { kRecommend, kRecord, kStream, kBatch };
inline constexpr int kCalls = 4;
const char* CallName(Call call);    // "Recommend"
const char* CallMethod(Call call);  // "/tim4rec.v1.Recommender/Recommend"
inline bool IsStream(Call call) { return call == Call::kStream || call == Call::kBatch; }

struct Request {
  Call call;
  int64_t units;  // answers, or for kBatch users in answers, until it is complete
  grpc::ByteBuffer bytes;
};

// What came back, added up. The server's own words: APPLIED, TIER_HOT, ….
struct Tally {
  std::map<std::string, int64_t> errors;    // by status code, or what is wrong with an answer
  std::map<std::string, int64_t> outcomes;  // events by what became of them
  std::map<std::string, int64_t> tiers;     // recommendations by tier
  std::string first_error;                  // its message
  int64_t events = 0;                       // interactions answered for
  int64_t recommendations = 0;

  void AddError(const std::string& code, const std::string& message, int64_t count = 1);
  void Merge(const Tally& other);
};

// The requests of one thread: a function of the options, the thread and the clock, which gives the
// events' times. Users are called "load<seed>.<number>". A user's events have rising times. Not
// thread-safe.
class Workload {
 public:
  // `items`: ids of the model, at least one; outlives this.
  Workload(const LoadOptions& options, const std::vector<std::string>* items, int thread);

  // The next request of the scenario.
  Request Next();

  // The next batch of the users' histories, as StreamInteractions; `HistoryLeft` batches.
  Request NextHistory();
  int64_t HistoryLeft() const;

  // Adds an answer to the tally; returns the units that it answers.
  int64_t Count(Call call, grpc::ByteBuffer* answer, Tally* tally);

 private:
  Request Recommend();
  Request Record();
  Request Stream(int64_t users, int64_t events);
  Request Batch();
  int64_t RandomUser() { return static_cast<int64_t>(random_() % last_ms_.size()); }
  int64_t NextUser();
  std::string UserName(int64_t user) const;
  void AddEvents(int64_t user, int64_t events,
                 google::protobuf::RepeatedPtrField<v1::Interaction>* interactions);
  void CountRecommendation(int items, const v1::Provenance& provenance, Tally* tally) const;
  int64_t HistoryUsers() const;

  const LoadOptions options_;
  const std::vector<std::string>& items_;
  const int64_t first_user_;
  std::vector<int64_t> last_ms_;  // of each user of this thread
  int64_t next_user_ = 0;
  int64_t history_user_ = 0;
  int64_t requests_ = 0;
  std::mt19937_64 random_;
  google::protobuf::Arena arena_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_LOADGEN_WORKLOAD_H_
