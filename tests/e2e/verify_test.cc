// The real server and the real tim4rec: verify, backups, and purged users.
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/rocksdb_store.h"
#include "tests/e2e/server_process.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class Verify : public ServerTest {
 protected:
  struct Outcome {
    int code;
    std::string out;
    std::string err;
  };
  Outcome RunVerify(const std::string& store, const std::string& more = "") {
    const std::string command = BinaryDir() + "/bin/tim4rec verify --store " + store + " --model " +
                                kTinyModel + " --backend cpu " + more + " >" + dir_ + "/out 2>" +
                                dir_ + "/err";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, Read(dir_ + "/out"), Read(dir_ + "/err")};
  }

  static void Record(v1::Recommender::Stub& stub, const v1::RecordInteractionsRequest& request) {
    v1::RecordInteractionsResponse response;
    Context context;
    const grpc::Status status = stub.RecordInteractions(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  static grpc::Status Backup(v1::Admin::Stub& admin, const std::string& dir,
                             v1::CreateBackupResponse* response) {
    v1::CreateBackupRequest request;
    request.set_directory(dir);
    Context context;
    return admin.CreateBackup(&context, request, response);
  }

  static v1::VerifyUserResponse VerifyUser(v1::Admin::Stub& admin, const std::string& user) {
    v1::VerifyUserRequest request;
    request.set_user_id(user);
    v1::VerifyUserResponse response;
    Context context;
    const grpc::Status status = admin.VerifyUser(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

TEST_F(Verify, AStoppedServersStoreIsCleanUntilAByteIsChanged) {
  const std::string data = dir_ + "/data";
  {
    auto server = Serve(data);
    auto stub = Connect(*server);
    auto admin = ConnectAdmin(*server);
    Record(*stub, RecordOf("u", {{"item1", 10}, {"item2", 20}, {"nobody", 30}}));
    Record(*stub, RecordOf("u", {{"item3", 15}}));
    Record(*stub, RecordOf("v", {{"item4", 10}}));
    const v1::VerifyUserResponse online = VerifyUser(*admin, "u");
    EXPECT_TRUE(online.resident_compared() && online.resident_equal());
    EXPECT_EQ(online.event_count(), 4u);
    EXPECT_EQ(online.difference(), "");
    server->Signal(SIGTERM);
    EXPECT_EQ(server->Wait(), 0);
  }
  const Outcome clean = RunVerify(data);
  EXPECT_EQ(clean.code, 0) << clean.err;
  EXPECT_EQ(clean.out, "");
  EXPECT_THAT(clean.err, AllOf(HasSubstr("2 users, 5 events (1 of items"),
                               HasSubstr("2 equal the fold of the log")));

  {
    auto store = *RocksDbStore::Open(data);
    std::string fingerprint;
    StateRecord record;
    ASSERT_TRUE(store
                    ->ForEachState([&](const StoredState& state) {
                      if (state.user_id != "u") return true;
                      fingerprint = state.fingerprint;
                      record = *state.record;
                      return false;
                    })
                    .ok());
    record.payload[100] = static_cast<char>(record.payload[100] ^ 4);
    const UserState put[] = {{"u", fingerprint, &record}};
    ASSERT_TRUE(store->Put(put).ok());
  }
  const Outcome broken = RunVerify(data);
  EXPECT_EQ(broken.code, 1);
  EXPECT_THAT(broken.out,
              AllOf(HasSubstr("u\tthe checkpoint after 4 events differs from the fold of the log: "
                              "layer 0 S[0,"),
                    HasSubstr(" instead of "), Not(HasSubstr("v\t"))));
  EXPECT_THAT(broken.err, HasSubstr("1 faults in "));
  EXPECT_EQ(RunVerify(data, "--user v").code, 0);
  EXPECT_EQ(RunVerify(data, "--user u").code, 1);

  auto server = Serve(data);
  auto admin = ConnectAdmin(*server);
  const v1::VerifyUserResponse online = VerifyUser(*admin, "u");
  EXPECT_TRUE(online.checkpoint_compared());
  EXPECT_FALSE(online.checkpoint_equal());
  EXPECT_THAT(online.difference(), HasSubstr("checkpoint: layer 0 S[0,"));
}

TEST_F(Verify, WhatCannotBeVerifiedSaysWhy) {
  const Outcome absent = RunVerify(dir_ + "/nothing");
  EXPECT_EQ(absent.code, 1);
  EXPECT_THAT(absent.err, HasSubstr("does not exist"));
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/nothing"));
}

TEST_F(Verify, ABackupUnderWritesIsCleanAndAServerStartsOnIt) {
  auto server = Serve(dir_ + "/data");
  auto stub = Connect(*server);
  auto admin = ConnectAdmin(*server);
  for (int i = 0; i < 5; ++i) {
    auto request = RecordOf("before", {{absl::StrCat("item", 1 + i), 100 + i}});
    request.set_ack(i % 2 == 0 ? v1::ACK_DURABLE : v1::ACK_APPLIED);
    Record(*stub, request);
  }
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) {
      Record(*stub, RecordOf(absl::StrCat("w", i % 20), {{absl::StrCat("item", 1 + i % 50), i}}));
    }
  });
  v1::CreateBackupResponse made;
  const std::string backup = dir_ + "/backup";
  const grpc::Status status = Backup(*admin, backup, &made);
  stop = true;
  writer.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(made.files(), 3u);
  EXPECT_GT(made.bytes(), 1000u);
  const auto expected = TopOf(*stub, "before", 1000);

  const Outcome clean = RunVerify(backup);
  EXPECT_EQ(clean.code, 0) << clean.out << clean.err;
  auto restored = Serve(backup);
  auto restored_stub = Connect(*restored);
  EXPECT_EQ(TopOf(*restored_stub, "before", 1000), expected);
  Record(*restored_stub, RecordOf("before", {{"item30", 200}}));
  EXPECT_EQ(VerifyUser(*ConnectAdmin(*restored), "before").event_count(), 6u);
  EXPECT_EQ(VerifyUser(*admin, "before").event_count(), 5u);

  EXPECT_EQ(Backup(*admin, backup, &made).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(ViolationsOf(Backup(*admin, "relative", &made)),
              ElementsAre(HasSubstr("directory: \"relative\" is not an absolute path")));
}

TEST_F(Verify, APurgedUserIsInNoFile) {
  const std::string data = dir_ + "/data";
  auto server = Serve(data);
  auto stub = Connect(*server);
  const std::string user = "a-user-to-be-forgotten";
  for (int i = 0; i < 3; ++i) {
    Record(*stub, RecordOf(user, {{"unheard-of-item", i}, {"item1", 10 + i}}));
    Record(*stub, RecordOf("a-user-to-be-kept-long", {{"item2", i}}));
  }
  const auto found = [&] {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(data)) {
      if (!entry.is_regular_file()) continue;
      const std::string bytes = Read(entry.path());
      for (const std::string& text : {user, std::string("unheard-of-item")}) {
        if (bytes.find(text) != std::string::npos) files.push_back(entry.path().filename());
      }
    }
    return files;
  };
  ASSERT_THAT(found(), Not(IsEmpty()));
  v1::DeleteUserRequest request;
  request.set_user_id(user);
  request.set_purge(true);
  v1::DeleteUserResponse response;
  Context context;
  const grpc::Status deleted = stub->DeleteUser(&context, request, &response);
  ASSERT_TRUE(deleted.ok()) << deleted.error_message();
  EXPECT_EQ(response.events_removed(), 6u);
  EXPECT_THAT(found(), IsEmpty());
  EXPECT_THAT(server->errors(), Not(HasSubstr(user)));
  v1::GetUserRequest get;
  get.set_user_id("a-user-to-be-kept-long");
  v1::GetUserResponse kept;
  Context another;
  ASSERT_TRUE(stub->GetUser(&another, get, &kept).ok());
  EXPECT_EQ(kept.event_count(), 3u);
}

}  // namespace
}  // namespace tim4rec
