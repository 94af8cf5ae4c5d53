// Events of many users, and clients that send them to a server in disorder and repeatedly.
#ifndef TIM4REC_TESTS_E2E_CRASH_TRAFFIC_H_
#define TIM4REC_TESTS_E2E_CRASH_TRAFFIC_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "store/event.h"
#include "tests/e2e/plain_fold.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {

// Some of one user's events, sent together.
struct Chunk {
  int user = 0;
  std::vector<int> events;  // indices into CrashTraffic::events
};

class CrashTraffic {
 public:
  static constexpr int kClients = 4;  // unary, unary with an answer, two streams

  CrashTraffic(int users, int events_per_user, std::mt19937_64& random);

  static std::string UserName(int user);
  static constexpr int64_t kNewestMs = 1'600'000'000'000;

  // Sends from where the client stopped, over a connection of its own, until its share of
  // `share` of its chunks is acknowledged and then the same again in another order, until a call
  // fails or `stop`. Any failure but UNAVAILABLE is a failure of the test.
  void Run(int client, const std::string& address, double share, const std::atomic<bool>& stop);

  // Everything once more, in one stream.
  grpc::Status SendAll(const std::string& address);

  int users() const { return static_cast<int>(planned_.size()); }
  const UserLog& planned(int user) const { return planned_[user]; }
  // The highest state version that the user's writers were told.
  uint64_t version(int user) const { return versions_[user]; }
  bool sent(int user, const Position& position) const { return sent_[Index(user, position)] != 0; }
  bool acknowledged(int user, const Position& position) const {
    return acknowledged_[Index(user, position)] != 0;
  }
  int64_t acknowledged_calls(bool durable) const { return calls_[durable]; }

 private:
  struct Client {
    std::vector<Chunk> chunks;
    size_t next = 0;  // the first that is not acknowledged
    std::mt19937_64 random;
  };

  size_t Index(int user, const Position& position) const {
    return static_cast<size_t>(indices_[user].at(position));
  }
  const Chunk& Pick(Client& client, size_t offset, size_t limit);
  void Fill(const Chunk& chunk, v1::RecordInteractionsRequest* request) const;
  void Acknowledge(const Chunk& chunk, bool durable);
  void RaiseVersion(int user, uint64_t version);
  void RunUnary(Client& client, v1::Recommender::Stub& stub, bool recommend, size_t limit,
                const std::atomic<bool>& stop);
  void RunStream(Client& client, v1::Recommender::Stub& stub, size_t limit,
                 const std::atomic<bool>& stop);

  std::vector<Event> events_;
  std::vector<UserLog> planned_;
  std::vector<std::map<Position, int>> indices_;
  std::vector<std::atomic<uint8_t>> sent_;
  std::vector<std::atomic<uint8_t>> acknowledged_;
  std::vector<std::atomic<uint64_t>> versions_;
  std::atomic<int64_t> calls_[2] = {0, 0};
  std::vector<Client> clients_;
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_E2E_CRASH_TRAFFIC_H_
