#include "tests/e2e/crash_traffic.h"

#include <algorithm>
#include <deque>

#include "absl/strings/str_cat.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {
namespace {

constexpr size_t kUnansweredBatches = 4;
constexpr size_t kBatchChunks = 40;  // at most

void ExpectUnavailable(const grpc::Status& status) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
}

template <typename Interaction>
void FillInteraction(const Event& event, Interaction* interaction) {
  interaction->set_item_id(event.item_id);
  interaction->set_timestamp_ms(event.timestamp_ms);
  interaction->set_event_id(event.event_id);
}

std::vector<Event> RandomEvents(int count, std::mt19937_64& random) {
  std::vector<Event> events;
  for (int i = 0; i < count; ++i) {
    // 60 items are known. Some events share a time; some have no id.
    Event event{absl::StrCat("item", 1 + random() % 62),
                CrashTraffic::kNewestMs - static_cast<int64_t>(random() % 2000) * 600'000, ""};
    if (random() % 2 == 0) event.event_id = absl::StrCat("e", i);
    events.push_back(std::move(event));
  }
  return events;
}

}  // namespace

std::string CrashTraffic::UserName(int user) { return absl::StrCat("user", user); }

CrashTraffic::CrashTraffic(int users, int events_per_user, std::mt19937_64& random)
    : planned_(users), indices_(users), versions_(users), clients_(kClients) {
  for (Client& client : clients_) client.random.seed(random());
  for (int user = 0; user < users; ++user) {
    std::vector<int> mine;
    for (Event& event : RandomEvents(1 + random() % (2 * events_per_user), random)) {
      const int index = static_cast<int>(events_.size());
      if (!indices_[user].emplace(PositionOf(event), index).second) continue;
      AddTo(event, &planned_[user]);
      events_.push_back(std::move(event));
      mine.push_back(index);
      if (random() % 5 == 0) mine.push_back(index);  // for another request, or within the same
    }
    std::shuffle(mine.begin(), mine.end(), random);
    for (size_t begin = 0; begin < mine.size();) {
      const size_t end = std::min<size_t>(mine.size(), begin + 1 + random() % 6);
      clients_[random() % kClients].chunks.push_back(
          {user, {mine.begin() + begin, mine.begin() + end}});
      begin = end;
    }
  }
  for (Client& client : clients_) {
    std::shuffle(client.chunks.begin(), client.chunks.end(), random);
  }
  sent_ = std::vector<std::atomic<uint8_t>>(events_.size());
  acknowledged_ = std::vector<std::atomic<uint8_t>>(events_.size());
}

void CrashTraffic::Fill(const Chunk& chunk, v1::RecordInteractionsRequest* request) const {
  request->set_user_id(UserName(chunk.user));
  for (const int event : chunk.events) FillInteraction(events_[event], request->add_interactions());
}

void CrashTraffic::Acknowledge(const Chunk& chunk, bool durable) {
  for (const int event : chunk.events) acknowledged_[event] = 1;
  ++calls_[durable];
}

void CrashTraffic::RaiseVersion(int user, uint64_t version) {
  uint64_t known = versions_[user];
  while (known < version && !versions_[user].compare_exchange_weak(known, version)) {
  }
}

// The `offset`-th chunk that is to be sent; behind `limit`, any that was sent before.
const Chunk& CrashTraffic::Pick(Client& client, size_t offset, size_t limit) {
  const size_t at = client.next + offset;
  const Chunk& chunk =
      client.chunks[at < limit || limit == 0 ? std::min(at, client.chunks.size() - 1)
                                             : client.random() % limit];
  for (const int event : chunk.events) sent_[event] = 1;
  return chunk;
}

void CrashTraffic::Run(int client_index, const std::string& address, double share,
                       const std::atomic<bool>& stop) {
  Client& client = clients_[client_index];
  auto stub =
      v1::Recommender::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const size_t limit = static_cast<size_t>(share * static_cast<double>(client.chunks.size()));
  if (client_index < 2) {
    RunUnary(client, *stub, client_index == 1, limit, stop);
  } else {
    RunStream(client, *stub, limit, stop);
  }
}

void CrashTraffic::RunUnary(Client& client, v1::Recommender::Stub& stub, bool recommend,
                            size_t limit, const std::atomic<bool>& stop) {
  while (!stop) {
    const bool fresh = client.next < limit;
    const Chunk& chunk = Pick(client, 0, limit);
    v1::RecordAndRecommendRequest request;
    Fill(chunk, request.mutable_record());
    const bool durable = client.random() % 2 == 0;
    request.mutable_record()->set_ack(durable ? v1::ACK_DURABLE : v1::ACK_APPLIED);
    v1::RecordAndRecommendResponse response;
    Context context;
    grpc::Status status =
        recommend ? stub.RecordAndRecommend(&context, request, &response)
                  : stub.RecordInteractions(&context, request.record(), response.mutable_record());
    if (!status.ok()) return ExpectUnavailable(status);
    Acknowledge(chunk, durable);
    if (fresh) ++client.next;
    const uint64_t version = response.record().state_version();
    RaiseVersion(chunk.user, version);
    if (recommend) {
      EXPECT_GE(response.recommend().provenance().state_version(), version);
    } else if (client.random() % 4 == 0) {
      v1::RecommendRequest read;
      read.set_user_id(request.record().user_id());
      read.set_min_state_version(version);
      v1::RecommendResponse answer;
      Context read_context;
      status = stub.Recommend(&read_context, read, &answer);
      if (!status.ok()) return ExpectUnavailable(status);
      EXPECT_GE(answer.provenance().state_version(), version);
    }
  }
}

void CrashTraffic::RunStream(Client& client, v1::Recommender::Stub& stub, size_t limit,
                             const std::atomic<bool>& stop) {
  struct Batch {
    std::vector<const Chunk*> chunks;
    size_t fresh = 0;
    bool durable = false;
  };
  Context context;
  auto stream = stub.StreamInteractions(&context);
  std::deque<Batch> unanswered;
  uint64_t sequence = 0;
  bool open = true;
  while (open && !stop) {
    v1::StreamInteractionsRequest request;
    request.set_sequence(sequence++);
    size_t ahead = 0;
    for (const Batch& batch : unanswered) ahead += batch.fresh;
    Batch& batch = unanswered.emplace_back();
    batch.durable = client.random() % 2 == 0;
    request.set_ack(batch.durable ? v1::ACK_DURABLE : v1::ACK_APPLIED);
    for (size_t n = 1 + client.random() % kBatchChunks; n > 0; --n) {
      const size_t offset = ahead + batch.fresh;
      batch.chunks.push_back(&Pick(client, offset, limit));
      batch.fresh += client.next + offset < limit;
      v1::UserInteractions* entry = request.add_users();
      entry->set_user_id(UserName(batch.chunks.back()->user));
      for (const int event : batch.chunks.back()->events) {
        FillInteraction(events_[event], entry->add_interactions());
      }
    }
    open = stream->Write(request);
    if (open && unanswered.size() < kUnansweredBatches) continue;
    v1::StreamInteractionsResponse answer;
    open = stream->Read(&answer);
    if (!open) break;
    EXPECT_EQ(answer.rejected_size(), 0);
    for (const Chunk* chunk : unanswered.front().chunks) {
      Acknowledge(*chunk, unanswered.front().durable);
    }
    client.next += unanswered.front().fresh;
    unanswered.pop_front();
  }
  context.TryCancel();
  const grpc::Status status = stream->Finish();
  if (status.error_code() != grpc::StatusCode::CANCELLED) ExpectUnavailable(status);
}

grpc::Status CrashTraffic::SendAll(const std::string& address) {
  auto stub =
      v1::Recommender::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->StreamInteractions(&context);
  for (int user = 0; user < users();) {
    v1::StreamInteractionsRequest request;
    for (int end = std::min(users(), user + 50); user < end; ++user) {
      v1::UserInteractions* entry = request.add_users();
      entry->set_user_id(UserName(user));
      for (const auto& [position, event] : planned_[user]) {
        FillInteraction(event, entry->add_interactions());
        sent_[Index(user, position)] = 1;
      }
    }
    v1::StreamInteractionsResponse answer;
    if (!stream->Write(request) || !stream->Read(&answer)) break;
    EXPECT_EQ(answer.rejected_size(), 0);
  }
  stream->WritesDone();
  return stream->Finish();
}

}  // namespace tim4rec
