#include "tests/bench/open_loop.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace tim4rec {
namespace {

constexpr auto kSecond = std::chrono::seconds(1);

template <typename Request, typename Response>
struct Call {
  grpc::ClientContext context;
  Request request;
  Response response;
};

std::string User(uint64_t user) { return "user" + std::to_string(user); }

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void AddInteraction(std::mt19937_64* random, int64_t timestamp_ms,
                    v1::RecordInteractionsRequest* request) {
  v1::Interaction* interaction = request->add_interactions();
  interaction->set_item_id("item" + std::to_string(1 + (*random)() % OpenLoop::kItems));
  interaction->set_timestamp_ms(timestamp_ms);
}

}  // namespace

void CheckCall(const grpc::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.error_message().c_str());
  std::exit(1);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

std::vector<double> P99BySecond(const std::vector<Sample>& samples) {
  std::vector<double> seconds;
  std::vector<double> ms;
  for (size_t i = 0, first = 0; i < samples.size(); ++i) {
    if (samples[i].due >= samples[first].due + kSecond) {
      seconds.push_back(Percentile(std::exchange(ms, {}), 0.99));
      first = i;
    }
    ms.push_back(samples[i].ms);
  }
  return seconds;
}

OpenLoop::OpenLoop(const std::string& address, double rate, int users, int history)
    : stub_(v1::Recommender::NewStub(
          grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
      rate_(rate),
      users_(users) {
  for (int u = 0; u < users; ++u) {
    v1::RecordInteractionsRequest request;
    request.set_user_id(User(u));
    for (int i = 0; i < history; ++i) {
      AddInteraction(&random_, NowMs() - (history - i) * 60'000LL, &request);
    }
    v1::RecordInteractionsResponse response;
    grpc::ClientContext context;
    CheckCall(stub_->RecordInteractions(&context, request, &response), "history");
  }
}

OpenLoop::~OpenLoop() { Stop(); }

void OpenLoop::Start() {
  done_ = false;
  thread_ = std::thread([this] { Run(); });
}

void OpenLoop::Stop() {
  done_ = true;
  if (thread_.joinable()) thread_.join();
  while (in_flight_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void OpenLoop::Forget() {
  std::lock_guard lock(mutex_);
  samples_.clear();
}

std::vector<Sample> OpenLoop::Between(Clock::time_point begin, Clock::time_point end) {
  std::vector<Sample> between;
  {
    std::lock_guard lock(mutex_);
    for (const Sample& sample : samples_) {
      if (sample.due >= begin && sample.due < end) between.push_back(sample);
    }
  }
  std::sort(between.begin(), between.end(),
            [](const Sample& a, const Sample& b) { return a.due < b.due; });
  return between;
}

void OpenLoop::Run() {
  const auto start = Clock::now();
  for (int64_t i = 0; !done_; ++i) {
    const auto due = start + std::chrono::duration_cast<Clock::duration>(
                                 std::chrono::duration<double>(static_cast<double>(i) / rate_));
    std::this_thread::sleep_until(due);
    ++in_flight_;
    if (i % 4 == 0) {
      Record();
    } else {
      Recommend(due);
    }
  }
}

void OpenLoop::Record() {
  auto* call = new Call<v1::RecordInteractionsRequest, v1::RecordInteractionsResponse>;
  call->request.set_user_id(User(random_() % users_));
  AddInteraction(&random_, NowMs(), &call->request);
  stub_->async()->RecordInteractions(&call->context, &call->request, &call->response,
                                     [this, call](const grpc::Status& status) {
                                       CheckCall(status, "RecordInteractions");
                                       delete call;
                                       --in_flight_;
                                     });
}

void OpenLoop::Recommend(Clock::time_point due) {
  auto* call = new Call<v1::RecommendRequest, v1::RecommendResponse>;
  call->request.set_user_id(User(random_() % users_));
  stub_->async()->Recommend(&call->context, &call->request, &call->response,
                            [this, call, due](const grpc::Status& status) {
                              CheckCall(status, "Recommend");
                              const std::chrono::duration<double, std::milli> ms =
                                  Clock::now() - due;
                              delete call;
                              {
                                std::lock_guard lock(mutex_);
                                samples_.push_back({due, ms.count()});
                              }
                              --in_flight_;
                            });
}

}  // namespace tim4rec
