#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "model/cli/commands.h"
#include "model/cli/options.h"
#include "model/cli/session.h"
#include "store/rocksdb_store.h"

namespace tim4rec {
namespace {

// Users answered by one Advance, one Query and one TopK: their states are what a thread holds.
constexpr size_t kGroupUsers = 128;
// Users whose rows are held in memory and printed together, per thread.
constexpr size_t kRoundUsersPerThread = 32 * kGroupUsers;

struct BatchArguments {
  std::string store;
  std::string model;
  std::string users;
  std::string backend = "auto";
  std::optional<int64_t> as_of_ms;
  int k = 10;
  int threads = 0;
  double user_share = 1;
  bool include_seen = false, bulk_windows = false;
};

struct Question {
  int64_t as_of_ms;
  int k;
  bool include_seen;
};

std::string Printable(const std::string& id) { return absl::Utf8SafeCEscape(id); }

// How many events a state record (model/config/config.h) was folded from.
int64_t FoldedEvents(std::string_view state_record) {
  int64_t folded = 0;
  if (state_record.size() < 2 * sizeof folded) return 0;
  std::memcpy(&folded, state_record.data() + sizeof folded, sizeof folded);
  return folded;
}

// A user's events up to a time, and what is answered from them.
struct Answer {
  std::string base;  // the state that retention kept of removed events; empty: the empty state
  std::vector<FoldEvent> events;
  std::vector<int32_t> seen;
  std::vector<ScoredItem> items;
  std::string fault;  // why there is none
};

// Answers a group of users from the log alone: the fold of a user's log is the state, bit for bit,
// that a server would have. Holds no state between calls; use from any thread.
class LogReader {
 public:
  LogReader(const RocksDbStore& store, const Engine& engine, const Question& question)
      : store_(store), engine_(engine), question_(question) {}

  // The users' rows, in order. A user whose log cannot answer has none and raises `faults`.
  absl::StatusOr<std::string> Rows(std::span<const std::string> users,
                                   std::atomic<int64_t>* faults) const {
    std::vector<Answer> answers(users.size());
    std::vector<Answer*> known;
    for (size_t i = 0; i < users.size(); ++i) {
      const absl::Status read = ReadEvents(users[i], &answers[i]);
      if (absl::IsDataLoss(read) || absl::IsOutOfRange(read)) {
        answers[i].fault = std::string(read.message());
        ++*faults;
      } else if (!read.ok()) {
        return read;
      } else if (answers[i].events.empty() && FoldedEvents(answers[i].base) == 0) {
        AddPopular(&answers[i]);
      } else {
        known.push_back(&answers[i]);
      }
    }
    if (absl::Status ranked = Rank(known); !ranked.ok()) return ranked;
    std::string rows;
    for (size_t i = 0; i < users.size(); ++i) AppendRows(users[i], answers[i], &rows);
    return rows;
  }

 private:
  absl::Status ReadEvents(const std::string& user_id, Answer* answer) const {
    const auto truncation = store_.ReadTruncation(user_id);
    if (!truncation.ok()) return truncation.status();
    if (*truncation) {
      if (absl::Status read = ReadBase(user_id, **truncation, answer); !read.ok()) return read;
    }
    return store_.Read(user_id, [&](std::string_view, const Event& event) {
      const int64_t time_ms = FoldTimeMs(event);
      if (time_ms > question_.as_of_ms) return false;
      if (const auto item = engine_.catalog().Find(event.item_id)) {
        answer->events.push_back({*item, time_ms});
      }
      return true;
    });
  }

  absl::Status ReadBase(const std::string& user_id, const Truncation& truncation,
                        Answer* answer) const {
    if (question_.as_of_ms < truncation.last_event_ms) {
      return absl::OutOfRangeError(
          absl::StrCat("user '", Printable(user_id), "': ", question_.as_of_ms, " lies before ",
                       truncation.last_event_ms, ", up to which retention removed the events"));
    }
    auto base = store_.GetBase(user_id, engine_.fingerprint());
    if (!base.ok() || !*base) return base.status();
    if (!((*base)->lineage == truncation.lineage)) {
      return absl::DataLossError(absl::StrCat("user '", Printable(user_id),
                                              "': the state that retention kept does not fit the "
                                              "log"));
    }
    answer->base = std::move((*base)->payload);
    return absl::OkStatus();
  }

  void AddPopular(Answer* answer) const {
    const ItemCatalog& catalog = engine_.catalog();
    for (const int32_t item : catalog.by_popularity()) {
      if (static_cast<int>(answer->items.size()) == question_.k) break;
      answer->items.push_back({item, static_cast<float>(catalog.item(item).train_events)});
    }
  }

  absl::Status Rank(std::span<Answer* const> answers) const {
    if (answers.empty()) return absl::OkStatus();
    Backend& backend = engine_.backend();
    std::vector<Slot> slots;
    const auto release = absl::MakeCleanup([&] {
      for (const Slot slot : slots) backend.Release(slot);
    });
    std::vector<Run> runs;
    std::vector<QueryRequest> queries;
    for (Answer* answer : answers) {
      const auto slot = backend.Allocate();
      if (!slot.ok()) return slot.status();
      slots.push_back(*slot);
      if (!answer->base.empty()) {
        const auto record = std::as_bytes(std::span(answer->base));
        if (absl::Status based = backend.Import(*slot, record); !based.ok()) return based;
      }
      runs.push_back({*slot, answer->events});
      queries.push_back({*slot, question_.as_of_ms});
    }
    if (absl::Status folded = backend.Advance(runs); !folded.ok()) return folded;
    const size_t width = engine_.config().hidden_size;
    std::vector<float> vectors(answers.size() * width);
    if (absl::Status asked = backend.Query(queries, vectors); !asked.ok()) return asked;
    std::vector<TopKRequest> requests(answers.size());
    for (size_t i = 0; i < answers.size(); ++i) {
      if (!question_.include_seen) SetSeen(answers[i]);
      requests[i].query = std::span(vectors).subspan(i * width, width);
      requests[i].k = question_.k;
      requests[i].excluded = answers[i]->seen;
    }
    std::vector<std::vector<ScoredItem>> results;
    if (auto ranked = engine_.TopK(requests, queries, &results); !ranked.ok()) return ranked;
    for (size_t i = 0; i < answers.size(); ++i) answers[i]->items = std::move(results[i]);
    return absl::OkStatus();
  }

  static void SetSeen(Answer* answer) {
    for (const FoldEvent& event : answer->events) answer->seen.push_back(event.item);
    std::sort(answer->seen.begin(), answer->seen.end());
    answer->seen.erase(std::unique(answer->seen.begin(), answer->seen.end()), answer->seen.end());
  }

  void AppendRows(const std::string& user_id, const Answer& answer, std::string* rows) const {
    if (!answer.fault.empty()) Say(answer.fault);
    const std::string user = Printable(user_id);
    for (const ScoredItem& scored : answer.items) {
      absl::StrAppend(rows, user, "\t", Printable(engine_.catalog().item(scored.item).id), "\t");
      absl::StrAppendFormat(rows, "%.9g\n", scored.score);
    }
  }

  const RocksDbStore& store_;
  const Engine& engine_;
  const Question question_;
};

// Takes users one by one, answers them a round at a time on all threads, prints in their order.
class Rounds {
 public:
  Rounds(const LogReader& reader, int threads, int64_t total)
      : reader_(reader), threads_(threads), total_(total) {}

  absl::Status Add(std::string user_id) {
    users_.push_back(std::move(user_id));
    return users_.size() < threads_ * kRoundUsersPerThread ? absl::OkStatus() : Flush();
  }

  absl::Status Flush() {
    const size_t groups = (users_.size() + kGroupUsers - 1) / kGroupUsers;
    std::vector<std::string> rows(groups);
    std::atomic<size_t> next = 0;
    std::mutex mutex;
    absl::Status failed;  // guarded by mutex
    const auto work = [&] {
      for (size_t group; (group = next++) < groups;) {
        const size_t begin = group * kGroupUsers;
        const size_t size = std::min(kGroupUsers, users_.size() - begin);
        auto answered = reader_.Rows(std::span(users_).subspan(begin, size), &faults_);
        if (answered.ok()) {
          rows[group] = *std::move(answered);
        } else {
          const std::lock_guard<std::mutex> lock(mutex);
          failed.Update(answered.status());
          next = groups;
        }
      }
    };
    {
      std::vector<std::jthread> pool;
      for (size_t i = 1; i < std::min<size_t>(threads_, groups); ++i) pool.emplace_back(work);
      work();
    }
    if (!failed.ok()) return failed;
    for (const std::string& text : rows) {
      if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) return CannotWrite();
    }
    if (std::fflush(stdout) != 0) return CannotWrite();
    done_ += static_cast<int64_t>(users_.size());
    users_.clear();
    ShowProgress();
    return absl::OkStatus();
  }

  int64_t done() const { return done_; }
  int64_t faults() const { return faults_; }

 private:
  static absl::Status CannotWrite() {
    return absl::UnavailableError("cannot write to standard output");
  }

  void ShowProgress() {
    const double seconds = absl::ToDoubleSeconds(absl::Now() - began_);
    const double rate = static_cast<double>(done_) / std::max(seconds, 1e-9);
    const double left = static_cast<double>(total_ - done_) / std::max(rate, 1e-9);
    progress_.Show(static_cast<double>(done_) / static_cast<double>(std::max<int64_t>(total_, 1)),
                   absl::StrFormat("%d of %d users  %.0f users/s  %s left", done_, total_, rate,
                                   FormatSeconds(std::max(left, 0.0))));
  }

  const LogReader& reader_;
  const size_t threads_;
  const int64_t total_;
  const absl::Time began_ = absl::Now();
  ProgressLine progress_;
  std::vector<std::string> users_;
  int64_t done_ = 0;
  std::atomic<int64_t> faults_ = 0;
};

// Calls `visit` for every user of the file (an id per line), or of the store if `path` is empty.
absl::Status ForEachAsked(const std::string& path, const RocksDbStore& store,
                          const std::function<absl::Status(std::string)>& visit) {
  absl::Status status;
  if (path.empty()) {
    const absl::Status listed = store.ForEachUser("", [&](std::string_view user_id) {
      status = visit(std::string(user_id));
      return status.ok();
    });
    return status.ok() ? listed : status;
  }
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("--users: cannot read ", path));
  for (std::string line; status.ok() && std::getline(file, line);) status = visit(line);
  return status;
}

// What a server tells its model of the items' use, read at once.
absl::Status AddUse(const RocksDbStore& store, double user_share, const Engine& engine) {
  const ItemTrend* trend = engine.package().trend();
  if (trend == nullptr) return absl::OkStatus();
  ItemBoosts& boosts = engine.boosts();
  boosts.SetUserShare(user_share);
  boosts.Begin();
  const int64_t known_until = LastDay(trend->timeline);
  absl::Status read = store.ReadUse(known_until, [&](const ItemUse& use) {
    if (const auto item = engine.catalog().Find(use.item_id)) {
      const ItemUseChange change = {*item, use.day, use.events};
      boosts.Add({&change, 1}, store.first_use_day());
    }
    return true;
  });
  if (read.ok()) boosts.Swap();
  return read;
}

absl::Status RunBatch(const BatchArguments& arguments) {
  const auto engine =
      OpenEngine(arguments.model, arguments.backend,
                 arguments.bulk_windows ? WindowEncoding::kBulk : WindowEncoding::kExact);
  if (!engine.ok()) return engine.status();
  RocksDbStoreOptions options;
  options.read_only = true;
  options.create_if_missing = false;
  const auto store = RocksDbStore::Open(arguments.store, options);
  if (!store.ok()) return store.status();
  absl::Status used = AddUse(**store, arguments.user_share, **engine);
  if (!used.ok()) return used;
  int64_t total = 0;
  absl::Status listed = ForEachAsked(arguments.users, **store, [&](const std::string&) {
    ++total;
    return absl::OkStatus();
  });
  if (!listed.ok()) return listed;
  const LogReader reader(**store, **engine,
                         {.as_of_ms = arguments.as_of_ms.value_or(absl::ToUnixMillis(absl::Now())),
                          .k = arguments.k,
                          .include_seen = arguments.include_seen});
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  Rounds rounds(reader, arguments.threads == 0 ? cores : arguments.threads, total);
  const absl::Time began = absl::Now();
  absl::Status answered = ForEachAsked(arguments.users, **store, [&](std::string user_id) {
    return rounds.Add(std::move(user_id));
  });
  if (answered.ok()) answered = rounds.Flush();
  if (!answered.ok()) return answered;
  const double seconds = std::max(absl::ToDoubleSeconds(absl::Now() - began), 1e-9);
  Say(absl::StrFormat("%d users in %s, %.0f users/s", rounds.done(), FormatSeconds(seconds),
                      static_cast<double>(rounds.done()) / seconds));
  if (rounds.faults() == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(rounds.faults(), " users have no rows, for the reasons told above"));
}

}  // namespace

void AddBatchCommand(CLI::App* app, absl::Status* status) {
  auto arguments = std::make_shared<BatchArguments>();
  CLI::App* command = app->add_subcommand(
      "batch",
      "Recommend for every user of a server's store, on all cores, without the server. Prints "
      "rows\n"
      "of user, item and score, tab-separated, best first, users in the order of the store or of\n"
      "--users: what the server would answer, bit for bit. Changes nothing. Give it a backup, or\n"
      "the directory of a server that is stopped.");
  command->add_option("--store", arguments->store, "Directory of the store")->required();
  command->add_option("--model", arguments->model, "Directory of the model package")->required();
  command->add_option("--users", arguments->users,
                      "File with a user id per line; default: all users that have events");
  command->add_option("--k", arguments->k, "Items per user")->check(Between(1, 1000));
  command->add_flag("--include-seen", arguments->include_seen,
                    "Recommend items of the user's history too");
  command
      ->add_option("--as-of-ms", arguments->as_of_ms,
                   "When the lists are for, unix milliseconds; events after it are left out; "
                   "default: now")
      ->check(Between<int64_t>(0, std::numeric_limits<int64_t>::max()));
  command->add_option("--threads", arguments->threads, "Threads; 0: one per core")
      ->check(Between(0, 1024));
  command
      ->add_option("--user-share", arguments->user_share,
                   "Which share of all users the store's server records (its store.user_share)")
      ->check(Between(std::numeric_limits<double>::min(), 1.0));
  command->add_option("--backend", arguments->backend, "What computes: auto, cpu, ...");
  command->add_flag("--bulk-windows", arguments->bulk_windows, kBulkWindowsHelp);
  command->callback([arguments, status] { *status = RunBatch(*arguments); });
}

}  // namespace tim4rec
