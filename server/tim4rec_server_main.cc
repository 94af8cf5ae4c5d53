// tim4rec-server: parse, start, serve until SIGTERM, drain.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

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

// As many descriptors as the process may have: one per connection, and those of the store.
void RaiseDescriptorLimit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

void Reload(const ConfigLayers& layers, Server* server) {
  std::vector<std::string> ignored;
  const absl::Status reloaded = server->Reload(LoadConfig(layers, &ignored));
  if (!reloaded.ok()) {
    Log(LogLevel::kError, "configuration not taken; all stays as it was",
        {{"error", std::string(reloaded.message())}});
  }
}

int Serve(const ServerConfig& config, const ConfigLayers& layers) {
  RaiseDescriptorLimit();
  // Blocked in this thread and in those that it starts. SIGUSR1 is Admin.Drain's; it and SIGHUP
  // stay blocked, so that a repeat does no harm.
  const sigset_t from_outside = Signals({SIGTERM, SIGINT});
  const sigset_t waited = Signals({SIGTERM, SIGINT, SIGUSR1, SIGHUP});
  pthread_sigmask(SIG_BLOCK, &waited, nullptr);
  signal(SIGPIPE, SIG_IGN);
  auto server = Server::Start(config, [] { kill(getpid(), SIGUSR1); });
  if (!server.ok()) return Fail(kFailed, server.status());
  std::printf("listening on %s\n", (*server)->address().c_str());
  std::printf("admin on %s\n", (*server)->admin_address().c_str());
  std::printf("metrics on %s\n", (*server)->metrics_address().c_str());
  std::fflush(stdout);
  int number = SIGHUP;
  while (sigwait(&waited, &number) == 0 && number == SIGHUP) Reload(layers, server->get());
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
  app.set_version_flag("--version", "tim4rec-server " TIM4REC_VERSION);
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
  const ConfigLayers layers = {file, environ, flags};
  std::vector<std::string> ignored;
  if (print_config) {
    ServerConfig config;
    if (absl::Status s = ApplyLayers(layers, &config, &ignored); !s.ok()) return Fail(kUsage, s);
    std::fputs(config.ToYaml().c_str(), stdout);
    return 0;
  }
  const auto config = LoadConfig(layers, &ignored);
  if (!config.ok()) return Fail(kUsage, config.status());
  SetLogLevel(*ParseLogLevel(config->log.level));
  RouteLibraryLogs();
  LogStart(*config, ignored);
  return Serve(*config, layers);
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
