// kill -9 loses nothing that was acknowledged, synced or not, and applies nothing by half.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <sstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/paths.h"
#include "tests/store/crash_batches.h"
#include "tests/store/store_fixture.h"
#include "tests/store/use_counts.h"

namespace tim4rec {
namespace {

using LastBatches = std::array<int, kCrashThreads>;

// Runs the writer from batch `first` on, kills it after `acknowledgements`, and returns the last
// batch acknowledged to each thread (first - 1 if none).
LastBatches WriteAndKill(const std::string& dir, int first, int acknowledgements) {
  LastBatches last;
  last.fill(first - 1);
  int fds[2];
  EXPECT_EQ(pipe(fds), 0);
  const std::string program = BinaryDir() + "/bin/crash_writer";
  const std::string first_text = absl::StrCat(first);
  const pid_t child = fork();
  if (child == 0) {
    dup2(fds[1], STDOUT_FILENO);
    close(fds[0]);
    execl(program.c_str(), program.c_str(), dir.c_str(), first_text.c_str(), nullptr);
    _exit(127);
  }
  close(fds[1]);
  std::string text;
  std::array<char, 4096> buffer;
  bool killed = false;
  for (int lines = 0;;) {
    const ssize_t got = read(fds[0], buffer.data(), buffer.size());
    if (got <= 0) break;
    text.append(buffer.data(), static_cast<size_t>(got));
    lines += static_cast<int>(std::count(buffer.data(), buffer.data() + got, '\n'));
    if (!killed && lines >= acknowledgements) killed = kill(child, SIGKILL) == 0;
  }
  close(fds[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the writer stopped by itself: " << status;
  std::istringstream lines(text);
  int thread = 0;
  for (int batch = 0; lines >> thread >> batch;) last[static_cast<size_t>(thread)] = batch;
  return last;
}

// Every batch up to `acknowledged` is there; the next one is there whole or not at all; nothing
// else is. Returns the highest batch found.
int VerifyThread(const RocksDbStore& store, int thread, int acknowledged) {
  std::map<int, int> events_of_batch;
  for (int user = 0; user < kCrashUsers; ++user) {
    std::map<std::string, int> seen;
    for (const Event& event : ReadAll(store, CrashUser(thread, user))) {
      EXPECT_EQ(++seen[event.event_id], 1) << event.event_id << " twice";
      ++events_of_batch[std::atoi(event.event_id.c_str())];
    }
  }
  constexpr int kWhole = kCrashUsers * (kCrashEvents - 1);
  for (int batch = 1; batch <= acknowledged; ++batch) {
    EXPECT_EQ(events_of_batch[batch], kWhole) << "acknowledged batch " << batch;
  }
  for (const auto& [batch, events] : events_of_batch) {
    EXPECT_EQ(events, kWhole) << "batch " << batch;
    EXPECT_LE(batch, acknowledged + 1);
  }
  return events_of_batch.empty() ? 0 : events_of_batch.rbegin()->first;
}

TEST(ProcessKill, LosesNothingAcknowledged) {
  std::mt19937_64 random = PrintedRandom("kill");
  ScratchDir dir;
  int first = 1;
  LastBatches stored = {};  // by thread; a round begins behind both
  for (int round = 0; round < 10 && !testing::Test::HasFailure(); ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    const int acknowledgements = 1 + static_cast<int>(random() % 150);
    const LastBatches last = WriteAndKill(dir.store(), first, acknowledgements);
    auto store = OpenStore(dir.store());
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(StoredUse(*store), LoggedUse(*store));
    // Batches between a thread's own last one and the round's first were never written: fill them
    // in, so that the batches of a thread have no gaps.
    for (int thread = 0; thread < kCrashThreads; ++thread) {
      for (int batch = stored[thread] + 1; batch < first; ++batch) {
        const CrashBatch contents(thread, batch);
        ASSERT_TRUE(store->Append(contents.users(), Durability::kBuffered).ok());
      }
      stored[thread] = VerifyThread(*store, thread, last[thread]);
    }
    first = std::max(stored[0], stored[1]) + 1;
  }
  std::cout << first - 1 << " batches" << std::endl;
}

}  // namespace
}  // namespace tim4rec
