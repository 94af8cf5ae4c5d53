// Backfill over StreamInteractions: a client for a running server.
//
//   backfill --write-model DIR INTERACTIONS    a model of random weights (D 64) over its items
//   backfill [--by-time] [--durable] [--batch N] HOST:PORT INTERACTIONS
//
// INTERACTIONS is a RecBole .inter file. Its rows are sent by user, then time; with --by-time in
// the order of time over all users, as a live feed would.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "model/weights/package.h"
#include "tests/model/tiny_model.h"
#include "tim4rec/v1/recommender.grpc.pb.h"

namespace tim4rec {
namespace {

struct Row {
  std::string user, item;
  int64_t timestamp_ms = 0;
  int64_t row = 0;  // in the file
};

std::vector<Row> ReadRows(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  std::vector<std::string> names;
  for (std::stringstream header(line); std::getline(header, line, '\t');) {
    names.push_back(line.substr(0, line.find(':')));
  }
  std::vector<Row> rows;
  while (std::getline(file, line)) {
    Row row;
    row.row = static_cast<int64_t>(rows.size());
    std::stringstream fields(line);
    std::string field;
    for (size_t i = 0; i < names.size() && std::getline(fields, field, '\t'); ++i) {
      if (names[i] == "user_id") row.user = field;
      if (names[i] == "item_id") row.item = field;
      if (names[i] == "timestamp") row.timestamp_ms = std::llround(std::stod(field) * 1000);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

int WriteModel(const std::string& dir, const std::vector<Row>& rows) {
  std::map<std::string, int64_t> items;
  for (const Row& row : rows) ++items[row.item];
  ModelConfig config;
  config.n_items = static_cast<int64_t>(items.size()) + 1;
  config.hidden_size = 64;
  PackageContents contents = MakeTinyModel(config, 1);
  size_t next = 1;
  for (const auto& [item, count] : items) {
    contents.items[next].id = item;
    contents.items[next++].train_events = count;
  }
  const absl::Status written = WritePackage(dir, contents);
  if (!written.ok()) std::fprintf(stderr, "%s\n", written.ToString().c_str());
  return written.ok() ? 0 : 1;
}

std::vector<v1::StreamInteractionsRequest> Batches(const std::vector<Row>& rows, int batch_events,
                                                   v1::Ack ack) {
  std::vector<v1::StreamInteractionsRequest> batches;
  int left = 0;
  for (const Row& row : rows) {
    if (left == 0) {
      batches.emplace_back().set_sequence(batches.size());
      batches.back().set_ack(ack);
      left = batch_events;
    }
    --left;
    auto& batch = batches.back();
    const int users = batch.users_size();
    v1::UserInteractions* entry = users > 0 && batch.users(users - 1).user_id() == row.user
                                      ? batch.mutable_users(users - 1)
                                      : batch.add_users();
    entry->set_user_id(row.user);
    v1::Interaction* interaction = entry->add_interactions();
    interaction->set_item_id(row.item);
    interaction->set_timestamp_ms(row.timestamp_ms);
    char event_id[24];
    std::snprintf(event_id, sizeof event_id, "%012lld", static_cast<long long>(row.row));
    interaction->set_event_id(event_id);
  }
  return batches;
}

int Send(const std::string& address, const std::vector<v1::StreamInteractionsRequest>& batches) {
  auto stub =
      v1::Recommender::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  const auto start = std::chrono::steady_clock::now();
  grpc::ClientContext context;
  auto stream = stub->StreamInteractions(&context);
  std::thread writer([&] {
    for (const auto& batch : batches) {
      if (!stream->Write(batch)) return;
    }
    stream->WritesDone();
  });
  uint64_t applied = 0, duplicates = 0, late = 0, unknown = 0, rejected = 0;
  for (v1::StreamInteractionsResponse answer; stream->Read(&answer);) {
    applied += answer.applied();
    duplicates += answer.duplicates();
    late += answer.late_refolded();
    unknown += answer.unknown_items();
    rejected += answer.rejected_size();
  }
  writer.join();
  const grpc::Status status = stream->Finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const uint64_t events = applied + duplicates + late + unknown + rejected;
  std::printf(
      "%zu batches, %llu applied, %llu duplicates, %llu late, %llu unknown, %llu rejected\n",
      batches.size(), static_cast<unsigned long long>(applied),
      static_cast<unsigned long long>(duplicates), static_cast<unsigned long long>(late),
      static_cast<unsigned long long>(unknown), static_cast<unsigned long long>(rejected));
  std::printf("%.2f s, %.0f events/s, %s\n", seconds, static_cast<double>(events) / seconds,
              status.ok() ? "OK" : status.error_message().c_str());
  return status.ok() ? 0 : 1;
}

int Main(const std::vector<std::string>& arguments) {
  bool by_time = false, write_model = false;
  v1::Ack ack = v1::ACK_APPLIED;
  int batch_events = 2000;
  std::vector<std::string> names;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--by-time") {
      by_time = true;
    } else if (arguments[i] == "--durable") {
      ack = v1::ACK_DURABLE;
    } else if (arguments[i] == "--write-model") {
      write_model = true;
    } else if (arguments[i] == "--batch" && i + 1 < arguments.size()) {
      batch_events = std::max(1, std::atoi(arguments[++i].c_str()));
    } else {
      names.push_back(arguments[i]);
    }
  }
  if (names.size() != 2) {
    std::fprintf(stderr,
                 "usage: backfill --write-model DIR INTERACTIONS\n"
                 "       backfill [--by-time] [--durable] [--batch N] HOST:PORT INTERACTIONS\n");
    return 2;
  }
  std::vector<Row> rows = ReadRows(names[1]);
  if (rows.empty()) {
    std::fprintf(stderr, "backfill: no rows in %s\n", names[1].c_str());
    return 1;
  }
  if (write_model) return WriteModel(names[0], rows);
  std::sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) {
    if (!by_time && a.user != b.user) return a.user < b.user;
    return std::tie(a.timestamp_ms, a.row) < std::tie(b.timestamp_ms, b.row);
  });
  return Send(names[0], Batches(rows, batch_events, ack));
}

}  // namespace
}  // namespace tim4rec

int main(int argc, char** argv) { return tim4rec::Main({argv + 1, argv + argc}); }
