// What retention removes from the front of a log, and what it keeps of it.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "store/record_codec.h"
#include "store/rocksdb_store.h"
#include "tests/store/raw_database.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class TruncateTest : public testing::Test {
 protected:
  // Removes the first events of the user and keeps a base for each fingerprint.
  absl::Status Truncate(const std::string& user, size_t count,
                        const std::vector<std::string>& fingerprints = {kFingerprintA}) {
    Truncation truncation;
    if (const auto before = *store_->ReadTruncation(user)) truncation = *before;
    std::vector<Position> removed;
    for (const Event& event : ReadAll(*store_, user)) {
      if (removed.size() == count) break;
      removed.push_back(PositionOf(event));
      truncation.lineage.Extend(removed.back(), event.item_id);
      truncation.last_event_ms = FoldTimeMs(event);
    }
    truncation.lineage.log_truncated = true;
    const StateRecord base =
        Record(truncation.lineage, absl::StrCat("after ", truncation.lineage.event_count));
    std::vector<UserState> bases;
    for (const std::string& fingerprint : fingerprints) bases.push_back({user, fingerprint, &base});
    const UserTruncation users[] = {{user, truncation, removed, bases}};
    return store_->Truncate(users);
  }
  static StateRecord Record(const Lineage& lineage, std::string payload) {
    StateRecord record;
    record.lineage = lineage;
    record.payload = std::move(payload);
    return record;
  }
  std::string BaseOf(const std::string& user, const char* fingerprint) {
    const auto base = store_->GetBase(user, fingerprint);
    EXPECT_TRUE(base.ok()) << base.status();
    return *base ? (*base)->payload : "none";
  }
  void PutState(const std::string& user, const char* fingerprint) {
    const StateRecord record = Record(Lineage(), "checkpoint");
    const UserState put[] = {{user, fingerprint, &record}};
    ASSERT_TRUE(store_->Put(put).ok());
  }
  void Reopen() {
    store_.reset();
    store_ = OpenStore(dir_.store());
  }
  void Damage(int family, const std::string& key) {
    store_.reset();
    {
      RawDatabase raw(dir_.store());
      std::string value = raw.Get(family, key);
      FlipMiddleBit(value);
      raw.Put(family, key, value);
    }
    store_ = OpenStore(dir_.store());
  }

  const std::vector<Event> five_ = {
      {"a", 10, ""}, {"b", 20, "e"}, {"c", 30, ""}, {"d", 40, ""}, {"e", 50, ""}};
  ScratchDir dir_;
  std::unique_ptr<RocksDbStore> store_ = OpenStore(dir_.store());
};

TEST_F(TruncateTest, RemovesTheFirstEventsAndKeepsBasesInPlaceOfCheckpoints) {
  ASSERT_TRUE(AppendTo(*store_, "u", five_).ok());
  ASSERT_TRUE(AppendTo(*store_, "v", five_).ok());
  for (const char* fingerprint : {kFingerprintA, kFingerprintB}) PutState("u", fingerprint);
  PutState("v", kFingerprintA);
  EXPECT_FALSE(store_->ReadTruncation("u")->has_value());
  ASSERT_TRUE(Truncate("u", 2, {kFingerprintA, kFingerprintB}).ok());
  ASSERT_TRUE(Truncate("u", 1).ok());
  for (const bool reopened : {false, true}) {
    if (reopened) Reopen();
    EXPECT_THAT(Items(ReadAll(*store_, "u")), ElementsAre("d", "e"));
    const auto truncation = *store_->ReadTruncation("u");
    ASSERT_TRUE(truncation.has_value());
    Lineage lineage;
    for (int i = 0; i < 3; ++i) lineage.Extend(PositionOf(five_[i]), five_[i].item_id);
    lineage.log_truncated = true;
    EXPECT_EQ(truncation->lineage, lineage);
    EXPECT_EQ(truncation->last_event_ms, 30);
    EXPECT_EQ(BaseOf("u", kFingerprintA), "after 3");
    EXPECT_EQ(BaseOf("u", kFingerprintB), "none");  // it was not given the second time
    EXPECT_FALSE(store_->Get("u", kFingerprintA)->has_value());
    EXPECT_EQ(ReadAll(*store_, "v").size(), 5u);
    EXPECT_TRUE(store_->Get("v", kFingerprintA)->has_value());
    EXPECT_FALSE(store_->ReadTruncation("v")->has_value());
  }
}

TEST_F(TruncateTest, WhatMayBeARepeatOfARemovedEventIsExpired) {
  Event late = {"late", 5, "", {PositionOf(five_[4]), 1}};
  ASSERT_TRUE(AppendTo(*store_, "u", five_).ok());
  ASSERT_TRUE(AppendTo(*store_, "u", {late}).ok());
  ASSERT_TRUE(Truncate("u", 3).ok());
  for (const bool reopened : {false, true}) {
    if (reopened) Reopen();
    const auto outcomes = AppendTo(
        *store_, "u", {five_[0], five_[2], five_[3], late, {"new", 29, ""}, {"new", 29, ""}});
    ASSERT_TRUE(outcomes.ok()) << outcomes.status();
    constexpr auto kExpired = AppendOutcome::kExpired;
    constexpr auto kDuplicate = AppendOutcome::kDuplicate;
    EXPECT_THAT(*outcomes,
                ElementsAre(kExpired, kExpired, kDuplicate, kDuplicate, kExpired, kExpired));
    EXPECT_THAT(Items(ReadAll(*store_, "u")), ElementsAre("d", "e", "late"));
  }
  EXPECT_THAT(*AppendTo(*store_, "u", {{"new", 35, ""}}), ElementsAre(AppendOutcome::kAdded));
  EXPECT_THAT(*AppendTo(*store_, "v", {five_[0]}), ElementsAre(AppendOutcome::kAdded));
}

TEST_F(TruncateTest, AUserWithoutEventsIsStillListedAndErased) {
  for (const char* user : {"a", "b", "c"}) {
    ASSERT_TRUE(AppendTo(*store_, user, five_).ok());
    ASSERT_TRUE(Truncate(user, 5, {kFingerprintA, kFingerprintB}).ok());
  }
  EXPECT_THAT(ReadAll(*store_, "b"), IsEmpty());
  const auto behind = [&](std::string_view after) {
    std::vector<std::string> users;
    EXPECT_TRUE(store_
                    ->ForEachUser(after,
                                  [&](std::string_view user) {
                                    users.emplace_back(user);
                                    return true;
                                  })
                    .ok());
    return users;
  };
  EXPECT_THAT(behind(""), ElementsAre("a", "b", "c"));
  EXPECT_THAT(behind("a"), ElementsAre("b", "c"));
  EXPECT_THAT(behind("b1"), IsEmpty());  // users lie in order of length
  EXPECT_THAT(behind("c"), IsEmpty());
  ASSERT_TRUE(store_->DeleteStates(kFingerprintB).ok());
  EXPECT_EQ(BaseOf("b", kFingerprintB), "none");
  EXPECT_EQ(BaseOf("b", kFingerprintA), "after 5");
  const auto deleted = store_->DeleteUser("b");
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  EXPECT_EQ(deleted->events, 0u);
  EXPECT_EQ(deleted->states, 1u);
  EXPECT_THAT(behind(""), ElementsAre("a", "c"));
  EXPECT_FALSE(store_->ReadTruncation("b")->has_value());
  EXPECT_EQ(BaseOf("b", kFingerprintA), "none");
  EXPECT_THAT(*AppendTo(*store_, "b", {five_[0]}), ElementsAre(AppendOutcome::kAdded));
}

TEST_F(TruncateTest, APurgedUserIsInNoFile) {
  const std::string user = "truncated-and-to-be-forgotten";
  ASSERT_TRUE(AppendTo(*store_, user, five_).ok());
  ASSERT_TRUE(Truncate(user, 3).ok());
  ASSERT_TRUE(AppendTo(*store_, "kept", five_).ok());
  Reopen();
  const auto files = [&] {
    int found = 0;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.store())) {
      std::ifstream file(entry.path(), std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(file), {}};
      found += bytes.find(user) != std::string::npos || bytes.find("after 3") != std::string::npos;
    }
    return found;
  };
  EXPECT_GT(files(), 0);
  ASSERT_TRUE(store_->DeleteUser(user).ok());
  ASSERT_TRUE(store_->PurgeDeleted(user).ok());
  EXPECT_EQ(files(), 0);
}

TEST_F(TruncateTest, ABackupCarriesTruncationsAndBases) {
  ASSERT_TRUE(AppendTo(*store_, "u", five_).ok());
  ASSERT_TRUE(Truncate("u", 2).ok());
  const std::string backup = dir_.path() + "/backup";
  ASSERT_TRUE(store_->CreateBackup(backup).ok());
  store_ = OpenStore(backup);
  EXPECT_EQ((*store_->ReadTruncation("u"))->lineage.event_count, 2u);
  EXPECT_EQ(BaseOf("u", kFingerprintA), "after 2");
  EXPECT_EQ(ReadAll(*store_, "u").size(), 3u);
}

TEST_F(TruncateTest, DamageIsDataLossNamingTheUser) {
  for (const char* user : {"u", "v"}) {
    ASSERT_TRUE(AppendTo(*store_, user, five_).ok());
    ASSERT_TRUE(Truncate(user, 2).ok());
  }
  Damage(RawDatabase::kEvents, UserPrefix("u"));
  Damage(RawDatabase::kStates, BaseKey("v", kFingerprintA));
  for (const absl::Status& lost :
       {store_->ReadTruncation("u").status(), AppendTo(*store_, "u", {{"x", 60, ""}}).status()}) {
    EXPECT_EQ(lost.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(lost.message()), HasSubstr("'u'"));
  }
  EXPECT_EQ(ReadAll(*store_, "u").size(), 3u);
  const absl::Status base = store_->GetBase("v", kFingerprintA).status();
  EXPECT_EQ(base.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(base.message()), HasSubstr("'v'"));
  EXPECT_EQ(store_->stats().corrupt_bases, 1u);
  EXPECT_EQ(store_->stats().corrupt_states, 0u);
  EXPECT_TRUE(store_->DeleteUser("u").ok());
}

TEST_F(TruncateTest, RefusesWhatDoesNotFitTogether) {
  ASSERT_TRUE(AppendTo(*store_, "u", five_).ok());
  Truncation truncation;
  truncation.lineage.Extend(PositionOf(five_[0]), "a");
  const std::vector<Position> removed = {PositionOf(five_[0])};
  const auto refused = [&](const UserTruncation& user) {
    const UserTruncation users[] = {user};
    return store_->Truncate(users).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused({"u", truncation, removed, {}}));  // without the flag
  truncation.lineage.log_truncated = true;
  EXPECT_TRUE(refused({"", truncation, removed, {}}));
  EXPECT_TRUE(refused({"u", {}, {}, {}}));
  const StateRecord other = Record(Lineage(), "x");
  const UserState other_lineage[] = {{"u", kFingerprintA, &other}};
  EXPECT_TRUE(refused({"u", truncation, removed, other_lineage}));
  const StateRecord fits = Record(truncation.lineage, "x");
  const UserState other_user[] = {{"v", kFingerprintA, &fits}};
  EXPECT_TRUE(refused({"u", truncation, removed, other_user}));
  EXPECT_EQ(ReadAll(*store_, "u").size(), 5u);
  RocksDbStoreOptions options = SmallOptions();
  options.read_only = true;
  store_.reset();
  store_ = OpenStore(dir_.store(), options);
  EXPECT_EQ(Truncate("u", 2).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace tim4rec
