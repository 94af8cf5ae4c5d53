// tim4rec-loadgen: load for a running server, and what it took.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "model/weights/package.h"
#include "server/loadgen/empty_handler.h"
#include "server/loadgen/load.h"
#include "server/loadgen/report.h"

namespace tim4rec {
namespace {

constexpr int kUsage = 2;
constexpr int kFailed = 1;

struct Arguments {
  LoadOptions load;
  std::string target;
  std::string model;
  std::string items;
  std::string json;
  std::string ca;
  std::string certificate;
  std::string key;
  std::string token;
  bool empty_handler = false;
  int rounds = 7;
};

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "tim4rec-loadgen: %s\n", std::string(status.message()).c_str());
  return code;
}

// A model package's ids, or a file's lines.
absl::StatusOr<std::vector<std::string>> ReadItems(const Arguments& arguments) {
  std::vector<std::string> ids;
  if (!arguments.model.empty()) {
    const auto package = ModelPackage::Open(arguments.model);
    if (!package.ok()) return package.status();
    for (int32_t i = 1; i < (*package)->catalog().size(); ++i) {
      ids.push_back((*package)->catalog().item(i).id);
    }
    return ids;
  }
  std::ifstream file(arguments.items);
  if (!file) return absl::NotFoundError("--items: cannot read " + arguments.items);
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) ids.push_back(line);
  }
  return ids;
}

// What lies in the files that the flags name.
absl::StatusOr<ClientSecurity> ReadSecurity(const Arguments& arguments) {
  ClientSecurity security;
  for (const auto& [flag, path, text] :
       {std::tuple{"--tls-ca", &arguments.ca, &security.ca},
        std::tuple{"--tls-certificate", &arguments.certificate, &security.certificate},
        std::tuple{"--tls-key", &arguments.key, &security.key},
        std::tuple{"--token-file", &arguments.token, &security.token}}) {
    if (path->empty()) continue;
    std::ifstream file(*path);
    text->assign(std::istreambuf_iterator<char>(file), {});
    if (text->empty()) return absl::NotFoundError(std::string(flag) + ": cannot read " + *path);
  }
  while (!security.token.empty() && std::isspace(security.token.back())) security.token.pop_back();
  return security;
}

// Target and empty handler in turn: A B, B A, A B, ….
absl::Status RunRounds(const Arguments& arguments, const Target& target, Load* load,
                       Report* report) {
  std::array<grpc::ByteBuffer, kCalls> samples;
  const LoadResult sample = load->Sample(target, &samples);
  if (!sample.tally.errors.empty()) {
    return absl::FailedPreconditionError("the target's first answer: " + sample.tally.first_error);
  }
  const auto handler = EmptyHandler::Start(samples);
  if (!handler.ok()) return handler.status();
  const auto empty = Target::Connect((*handler)->address(), arguments.load.threads);
  if (!empty.ok()) return empty.status();
  for (int round = 0; round < arguments.rounds; ++round) {
    if (round % 2 == 0) report->target.push_back(load->Run(target));
    report->empty.push_back(load->Run(**empty));
    if (round % 2 == 1) report->target.push_back(load->Run(target));
  }
  return absl::OkStatus();
}

int Run(const Arguments& arguments) {
  const auto items = ReadItems(arguments);
  if (!items.ok()) return Fail(kUsage, items.status());
  auto load = Load::Create(arguments.load, &*items);
  if (!load.ok()) return Fail(kUsage, load.status());
  const auto security = ReadSecurity(arguments);
  if (!security.ok()) return Fail(kUsage, security.status());
  const auto target = Target::Connect(arguments.target, arguments.load.threads, *security);
  if (!target.ok()) return Fail(kFailed, target.status());
  Report report;
  report.options = arguments.load;
  report.address = arguments.target;
  if (arguments.load.history > 0) report.histories = (*load)->WriteHistories(**target).tally;
  if (report.histories.errors.empty()) {
    if (!arguments.empty_handler) {
      report.target.push_back((*load)->Run(**target));
    } else if (absl::Status s = RunRounds(arguments, **target, load->get(), &report); !s.ok()) {
      return Fail(kFailed, s);
    }
  }
  std::fputs(report.ToText().c_str(), stdout);
  if (!arguments.json.empty()) {
    std::ofstream file(arguments.json);
    file << report.ToJson();
    if (!file.flush()) {
      return Fail(kFailed, absl::UnavailableError("--json: cannot write " + arguments.json));
    }
  }
  return report.ok() ? 0 : kFailed;
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc == 2 && std::strcmp(argv[1], kEmptyHandlerFlag) == 0) return ServeEmptyHandler();
  Arguments arguments;
  LoadOptions& load = arguments.load;
  CLI::App app("Load for a running tim4rec-server: throughput and latency of one scenario.");
  app.name("tim4rec-loadgen");
  app.set_version_flag("--version", "tim4rec-loadgen " TIM4REC_VERSION);
  app.footer("Exit code 1 if anything was not answered well, 2 for faulty arguments.");
  const std::map<std::string, Scenario> scenarios = {{"recommend", Scenario::kRecommend},
                                                     {"record", Scenario::kRecord},
                                                     {"mixed", Scenario::kMixed},
                                                     {"stream", Scenario::kStream},
                                                     {"batch", Scenario::kBatch}};
  const std::map<std::string, v1::Ack> acks = {{"applied", v1::ACK_APPLIED},
                                               {"durable", v1::ACK_DURABLE}};
  app.add_option("--target", arguments.target, "HOST:PORT of the server")->required();
  app.add_option("--scenario", load.scenario,
                 "recommend, record, mixed (both in turn), stream (StreamInteractions), batch "
                 "(RecommendBatch)")
      ->transform(CLI::CheckedTransformer(scenarios))
      ->required();
  auto* ids = app.add_option_group("items", "where item ids come from");
  ids->add_option("--model", arguments.model, "the model package that the server serves");
  ids->add_option("--items", arguments.items, "a file with an id per line");
  ids->require_option(1);
  app.add_option("--rate", load.rate,
                 "requests per second, arriving at random (Poisson), each measured from when it "
                 "was due; 0: a closed loop of --in-flight")
      ->capture_default_str();
  app.add_option("--duration", load.seconds, "seconds of load, of each round")
      ->capture_default_str();
  app.add_option("--in-flight", load.in_flight, "most requests sent and not yet answered")
      ->capture_default_str();
  app.add_option("--users", load.users, "number of users")->capture_default_str();
  app.add_option("--history", load.history, "events recorded for each user before the load")
      ->capture_default_str();
  app.add_option("--events", load.events, "events per user in a record or a batch of a stream")
      ->capture_default_str();
  app.add_option("--batch-users", load.batch_users, "users per message of stream and batch")
      ->capture_default_str();
  app.add_option("--k", load.k, "items to recommend")->capture_default_str();
  app.add_option("--ack", load.ack, "applied or durable")->transform(CLI::CheckedTransformer(acks));
  app.add_option("--seed", load.seed, "of users, items and arrivals")->capture_default_str();
  app.add_option("--threads", load.threads, "threads, each with its own connection")
      ->capture_default_str();
  app.add_flag("--empty-handler", arguments.empty_handler,
               "alternate with a server that only returns answers of the same bytes, and print the "
               "ratio");
  app.add_option("--rounds", arguments.rounds, "measurements of each with --empty-handler")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  auto* ca = app.add_option("--tls-ca", arguments.ca,
                            "connect by TLS; a PEM file with what signs the server's certificate");
  auto* certificate = app.add_option("--tls-certificate", arguments.certificate,
                                     "a PEM file with this client's certificate, for mutual TLS");
  auto* key = app.add_option("--tls-key", arguments.key, "a PEM file with its key");
  certificate->needs(ca)->needs(key);
  key->needs(certificate);
  app.add_option("--token-file", arguments.token,
                 "a file with a bearer token, which goes to the server in clear text without "
                 "--tls-ca");
  app.add_option("--json", arguments.json, "also write the results to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kUsage;
  }
  return Run(arguments);
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) {
  try {
    return tim4rec::Main(argc, argv);
  } catch (const std::exception& error) {  // of memory that is not to be had
    std::fprintf(stderr, "tim4rec-loadgen: %s\n", error.what());
    return 1;
  }
}
