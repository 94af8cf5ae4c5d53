// tim4rec-server: parse, start, serve until SIGTERM, drain.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <map>
#include <string>

#include "server/app/server.h"
#include "server/config/config.h"
#include "server/telemetry/log.h"

extern char** environ;

namespace tim4rec {
namespace {

constexpr int kUsage = 2;
constexpr int kFailed = 1;

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "tim4rec-server: %s\n", std::string(status.message()).c_str());
  return code;
}

absl::Status ApplyFile(const std::string& path, ServerConfig* config) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError("--config: cannot read " + path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return ApplyYaml(text, path, config);
}

absl::StatusOr<std::vector<std::string>> Layer(const std::string& file,
                                               const std::map<std::string, std::string>& flags,
                                               ServerConfig* config) {
  if (absl::Status s = ApplyYaml(DefaultConfigYaml(), "default.yaml", config); !s.ok()) return s;
  if (!file.empty()) {
    if (absl::Status s = ApplyFile(file, config); !s.ok()) return s;
  }
  auto ignored = ApplyEnvironment(environ, config);
  if (!ignored.ok()) return ignored;
  if (absl::Status s = SetKeys(flags, "flags", config); !s.ok()) return s;
  return ignored;
}

void LogStart(const ServerConfig& config, const std::vector<std::string>& ignored) {
  std::string effective;
  for (const auto& [key, value] : config.Entries()) {
    effective += (effective.empty() ? "" : " ") + key + "=" + value;
  }
  Log(LogLevel::kInfo, "configuration", {{"effective", effective}});
  for (const std::string& name : ignored) {
    Log(LogLevel::kWarning, "environment variable names no key and is ignored", {{"name", name}});
  }
}

sigset_t Signals(std::initializer_list<int> numbers) {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : numbers) sigaddset(&set, number);
  return set;
}

int Serve(const ServerConfig& config) {
  // Blocked in this thread and in those that it starts. SIGUSR1 is Admin.Drain's and stays blocked,
  // so that a repeat does no harm.
  const sigset_t from_outside = Signals({SIGTERM, SIGINT});
  const sigset_t stop = Signals({SIGTERM, SIGINT, SIGUSR1});
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  signal(SIGPIPE, SIG_IGN);
  auto server = Server::Start(config, [] { kill(getpid(), SIGUSR1); });
  if (!server.ok()) return Fail(kFailed, server.status());
  std::printf("listening on %s\n", (*server)->address().c_str());
  std::printf("admin on %s\n", (*server)->admin_address().c_str());
  std::printf("metrics on %s\n", (*server)->metrics_address().c_str());
  std::fflush(stdout);
  int number = 0;
  sigwait(&stop, &number);
  Log(LogLevel::kInfo, "draining", {{"signal", number}});
  // A second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &from_outside, nullptr);
  const absl::Status drained = (*server)->Drain();
  if (!drained.ok()) return Fail(kFailed, drained);
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Sequential recommendation over gRPC with a state per user.");
  app.name("tim4rec-server");
  std::map<std::string, std::string> flags;
  std::string file;
  bool print_config = false;
  const auto flag = [&](const char* name, const std::string& key, const char* help) {
    app.add_option_function<std::string>(
        name, [&flags, key](const std::string& value) { flags[key] = value; }, help);
  };
  flag("--model", "model.dir", "model package (directory), required");
  flag("--data", "store.dir", "directory of events and states, created if absent, required");
  flag("--listen", "listen", "HOST:PORT of gRPC, 127.0.0.1:50051; port 0 picks a free one");
  flag("--metrics-listen", "metrics_listen",
       "IP:PORT of /metrics, /healthz, /readyz, 127.0.0.1:9464");
  flag("--admin-listen", "admin_listen", "HOST:PORT of the Admin service, 127.0.0.1:50052");
  flag("--backend", "model.backend", "auto, cpu, cuda, torch");
  app.add_option("--config", file, "YAML file over the defaults (--print-config shows all keys)");
  app.add_flag("--print-config", print_config, "print the effective configuration and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : kUsage;
  }
  ServerConfig config;
  auto ignored = Layer(file, flags, &config);
  if (!ignored.ok()) return Fail(kUsage, ignored.status());
  if (print_config) {
    std::fputs(config.ToYaml().c_str(), stdout);
    return 0;
  }
  if (absl::Status valid = config.Validate(); !valid.ok()) return Fail(kUsage, valid);
  SetLogLevel(*ParseLogLevel(config.log.level));
  RouteLibraryLogs();
  LogStart(config, *ignored);
  return Serve(config);
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) {
  try {
    return tim4rec::Main(argc, argv);
  } catch (const std::exception& error) {  // of memory that is not to be had, at start
    std::fprintf(stderr, "tim4rec-server: %s\n", error.what());
    return 1;
  }
}
