#include "tests/store/store_contract.h"

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr AppendOutcome kAdded = AppendOutcome::kAdded;
constexpr AppendOutcome kDuplicate = AppendOutcome::kDuplicate;

StateRecord SomeState(uint64_t events, std::string payload) {
  StateRecord record;
  for (uint64_t i = 0; i < events; ++i) {
    record.lineage.Extend(PositionOf({"item", static_cast<int64_t>(i), ""}), "item");
  }
  record.payload = std::move(payload);
  return record;
}

TEST_P(StoreContract, ReadsBackWhatWasAppended) {
  const std::vector<Event> events = {{"apple", 10, ""}, {"pear", 20, "e1"}, {"fig", 30, ""}};
  const auto outcomes = AppendTo(log(), "alice", events);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_THAT(*outcomes, ElementsAre(kAdded, kAdded, kAdded));
  const std::vector<Event> read = ReadAll(log(), "alice");
  ASSERT_EQ(read.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(SameEvent(read[i], events[i])) << i;
  EXPECT_THAT(ReadAll(log(), "bob"), IsEmpty());
}

TEST_P(StoreContract, OrdersByTimestampOverTheWholeRange) {
  const int64_t low = std::numeric_limits<int64_t>::min();
  const int64_t high = std::numeric_limits<int64_t>::max();
  ASSERT_TRUE(AppendTo(log(), "u",
                       {{"g", high, ""},
                        {"d", 0, ""},
                        {"b", low + 1, ""},
                        {"e", 1, ""},
                        {"c", -1, ""},
                        {"a", low, ""},
                        {"f", 1'700'000'000'000, ""}})
                  .ok());
  EXPECT_THAT(Items(ReadAll(log(), "u")), ElementsAre("a", "b", "c", "d", "e", "f", "g"));
}

TEST_P(StoreContract, OrdersTiesByEventId) {
  ASSERT_TRUE(AppendTo(log(), "u", {{"x3", 5, "c"}, {"x1", 5, "a"}, {"x2", 5, "ab"}}).ok());
  EXPECT_THAT(Items(ReadAll(log(), "u")), ElementsAre("x1", "x2", "x3"));
}

TEST_P(StoreContract, OrderDoesNotDependOnTheOrderOfAppending) {
  std::mt19937_64 random = PrintedRandom("order");
  std::vector<Event> events;
  for (int i = 0; i < 50; ++i) {
    events.push_back({absl::StrCat("i", i), static_cast<int64_t>(random() % 20) - 10,
                      i % 2 == 0 ? "" : absl::StrCat("e", i)});
  }
  ASSERT_TRUE(AppendTo(log(), "u1", events).ok());
  std::shuffle(events.begin(), events.end(), random);
  for (const Event& event : events) ASSERT_TRUE(AppendTo(log(), "u2", {event}).ok());
  EXPECT_EQ(Items(ReadAll(log(), "u1")), Items(ReadAll(log(), "u2")));
}

TEST_P(StoreContract, LateEventLandsInItsPlace) {
  ASSERT_TRUE(AppendTo(log(), "u", {{"a", 10, ""}, {"c", 30, ""}}).ok());
  ASSERT_TRUE(AppendTo(log(), "u", {{"b", 20, ""}}).ok());
  EXPECT_THAT(Items(ReadAll(log(), "u")), ElementsAre("a", "b", "c"));
}

TEST_P(StoreContract, RepeatOverCallsIsDuplicateAndTheFirstStays) {
  ASSERT_TRUE(AppendTo(log(), "u", {{"first", 1, "id"}}).ok());
  const auto again =
      AppendTo(log(), "u", {{"second", 1, "id"}, {"second", 2, "id"}}, Durability::kSynced);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(*again, ElementsAre(kDuplicate, kAdded));
  EXPECT_THAT(Items(ReadAll(log(), "u")), ElementsAre("first", "second"));
}

TEST_P(StoreContract, RepeatWithinACallIsDuplicate) {
  const std::vector<Event> one = {{"a", 1, ""}, {"b", 1, ""}, {"a", 1, ""}};
  const std::vector<Event> two = {{"a", 1, ""}};
  const UserEvents batch[] = {{"u", one}, {"v", two}, {"u", two}};
  const auto outcomes = log().Append(batch, Durability::kSynced);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  EXPECT_THAT(*outcomes, ElementsAre(ElementsAre(kAdded, kAdded, kDuplicate), ElementsAre(kAdded),
                                     ElementsAre(kDuplicate)));
  EXPECT_EQ(ReadAll(log(), "u").size(), 2u);
  EXPECT_EQ(ReadAll(log(), "v").size(), 1u);
}

TEST_P(StoreContract, SyncedRepeatOfABufferedEventSucceeds) {
  ASSERT_TRUE(AppendTo(log(), "u", {{"a", 1, ""}}, Durability::kBuffered).ok());
  const auto again = AppendTo(log(), "u", {{"a", 1, ""}}, Durability::kSynced);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(*again, ElementsAre(kDuplicate));
}

TEST_P(StoreContract, EmptyCallsAreFine) {
  const auto nothing = log().Append({}, Durability::kSynced);
  ASSERT_TRUE(nothing.ok()) << nothing.status();
  EXPECT_THAT(*nothing, IsEmpty());
  const auto no_events = AppendTo(log(), "u", {});
  ASSERT_TRUE(no_events.ok());
  EXPECT_THAT(*no_events, IsEmpty());
  EXPECT_TRUE(states().Put({}).ok());
  EXPECT_TRUE(states().Flush().ok());
}

TEST_P(StoreContract, StopsWhenTold) {
  const FoldPlace behind_b = {PositionOf({"b", 2, ""}), 1};
  ASSERT_TRUE(
      AppendTo(log(), "u", {{"a", 1, ""}, {"b", 2, ""}, {"late", 0, "", behind_b}, {"c", 3, ""}})
          .ok());
  for (int most = 1; most <= 4; ++most) {
    int visits = 0;
    ASSERT_TRUE(
        log().Read("u", [&](std::string_view, const Event&) { return ++visits < most; }).ok());
    EXPECT_EQ(visits, most);
  }
}

TEST_P(StoreContract, LateEventsAreReadWhereTheyAreFolded) {
  const Event b = {"b", 20, ""};
  const Event d = {"d", 40, "id"};
  ASSERT_TRUE(AppendTo(log(), "u", {{"a", 10, ""}, b, d}).ok());
  ASSERT_TRUE(AppendTo(log(), "u", {{"after d 1", 5, "", {PositionOf(d), 1}}}).ok());
  ASSERT_TRUE(AppendTo(log(), "u", {{"after b", 1, "", {PositionOf(b), 7}}}).ok());
  ASSERT_TRUE(AppendTo(log(), "u", {{"after d 2", 4, "", {PositionOf(d), 2}}}).ok());
  // In its own place, between a late one and its neighbours.
  ASSERT_TRUE(AppendTo(log(), "u", {{"c", 30, ""}, {"e", 50, ""}}).ok());
  EXPECT_THAT(Items(ReadAll(log(), "u")),
              ElementsAre("a", "b", "after b", "c", "d", "after d 1", "after d 2", "e"));
  // A retry is a duplicate, whatever it says of its place, and the place stays.
  const auto again =
      AppendTo(log(), "u", {{"after b", 1, "", {PositionOf(d), 9}}, {"after b", 1, ""}});
  ASSERT_TRUE(again.ok());
  EXPECT_THAT(*again, ElementsAre(kDuplicate, kDuplicate));
  EXPECT_EQ(ReadAll(log(), "u")[2].late, (FoldPlace{PositionOf(b), 7}));
}

TEST_P(StoreContract, RefusesALatePlaceThatIsNotBehindTheEvent) {
  const Event event = {"a", 10, ""};
  for (const FoldPlace& place :
       {FoldPlace{PositionOf({"b", 20, ""}), 0}, FoldPlace{PositionOf({"b", 1, ""}), 1},
        FoldPlace{PositionOf(event), 1}, FoldPlace{"not a position", 1}, FoldPlace{"", 1}}) {
    Event late = event;
    late.late = place;
    EXPECT_EQ(AppendTo(log(), "u", {late}).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(ReadAll(log(), "u"), IsEmpty());
}

TEST_P(StoreContract, KeepsUsersApart) {
  const std::vector<std::string> users = {
      "a",    "aa",      "ab", std::string("a\0", 2), std::string("a\0b", 3), std::string(256, 'a'),
      "\xff", "\xff\xff"};
  for (size_t i = 0; i < users.size(); ++i) {
    ASSERT_TRUE(AppendTo(log(), users[i], {{absl::StrCat("item", i), 1, ""}}).ok());
  }
  for (size_t i = 0; i < users.size(); ++i) {
    EXPECT_THAT(Items(ReadAll(log(), users[i])), ElementsAre(absl::StrCat("item", i)));
  }
  std::vector<std::string> listed;
  ASSERT_TRUE(log()
                  .ForEachUser("",
                               [&](std::string_view user) {
                                 listed.emplace_back(user);
                                 return true;
                               })
                  .ok());
  EXPECT_THAT(listed, testing::UnorderedElementsAreArray(users));
  int visits = 0;
  ASSERT_TRUE(log().ForEachUser("", [&](std::string_view) { return ++visits < 3; }).ok());
  EXPECT_EQ(visits, 3);
}

TEST_P(StoreContract, RefusesIdsOutOfLimitsAndAddsNothing) {
  const std::string long_id(257, 'x');
  const std::vector<std::pair<std::string, Event>> bad = {{"", {"a", 1, ""}},
                                                          {long_id, {"a", 1, ""}},
                                                          {"u", {"", 1, ""}},
                                                          {"u", {long_id, 1, ""}},
                                                          {"u", {"a", 1, long_id}}};
  for (const auto& [user, event] : bad) {
    const auto outcomes = AppendTo(log(), user, {{"fine", 1, ""}, event});
    EXPECT_EQ(outcomes.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(outcomes.status().message()), HasSubstr("256"));
  }
  EXPECT_THAT(ReadAll(log(), "u"), IsEmpty());
}

TEST_P(StoreContract, KeepsIdsAtTheLimit) {
  const Event event = {std::string(256, 'i'), 7, std::string(256, 'e')};
  ASSERT_TRUE(AppendTo(log(), std::string(256, 'u'), {event}).ok());
  const std::vector<Event> read = ReadAll(log(), std::string(256, 'u'));
  ASSERT_EQ(read.size(), 1u);
  EXPECT_TRUE(SameEvent(read[0], event));
}

TEST_P(StoreContract, KeepsAStatePerUserAndModel) {
  const StateRecord one = SomeState(1, "one");
  const StateRecord two = SomeState(2, std::string(40'000, '\0'));
  const StateRecord none = SomeState(0, "");
  const UserState put[] = {
      {"u", kFingerprintA, &one}, {"u", kFingerprintB, &two}, {"v", kFingerprintA, &none}};
  ASSERT_TRUE(states().Put(put).ok());
  const auto expect = [&](std::string_view user, std::string_view model,
                          const StateRecord& record) {
    const auto got = states().Get(user, model);
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_TRUE(got->has_value());
    EXPECT_EQ((*got)->lineage, record.lineage);
    EXPECT_EQ((*got)->payload, record.payload);
  };
  expect("u", kFingerprintA, one);
  expect("u", kFingerprintB, two);
  expect("v", kFingerprintA, none);
  const auto absent = states().Get("v", kFingerprintB);
  ASSERT_TRUE(absent.ok());
  EXPECT_FALSE(absent->has_value());

  const UserState replace[] = {{"u", kFingerprintA, &two}};
  ASSERT_TRUE(states().Put(replace).ok());
  expect("u", kFingerprintA, two);
  EXPECT_THAT(ReadAll(log(), "u"), IsEmpty());
}

TEST_P(StoreContract, DeletesTheStatesOfOneModel) {
  const StateRecord record = SomeState(1, "x");
  std::vector<std::string> users;
  for (int u = 0; u < 2500; ++u) users.push_back("user" + std::to_string(u));
  for (const std::string& user : users) {
    ASSERT_TRUE(AppendTo(log(), user, {{"a", 1, ""}}).ok());
    const UserState put[] = {{user, kFingerprintA, &record}, {user, kFingerprintB, &record}};
    ASSERT_TRUE(states().Put(put).ok());
  }
  ASSERT_TRUE(states().DeleteStates(kFingerprintA).ok());
  for (int round = 0; round < 2; ++round) {
    for (const std::string& user : users) {
      const auto deleted = states().Get(user, kFingerprintA);
      ASSERT_TRUE(deleted.ok() && !deleted->has_value()) << user;
      const auto kept = states().Get(user, kFingerprintB);
      ASSERT_TRUE(kept.ok() && kept->has_value()) << user;
    }
    EXPECT_THAT(Items(ReadAll(log(), users[0])), ElementsAre("a"));
    under_test_->Reopen();
  }
  EXPECT_EQ(states().DeleteStates("00").code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(StoreContract, RefusesMalformedFingerprints) {
  const StateRecord record = SomeState(1, "x");
  for (const std::string fingerprint :
       {"", "00", "00112233445566778899AABBCCDDEEFF", "00112233445566778899aabbccddeefg"}) {
    const UserState put[] = {{"u", fingerprint, &record}};
    EXPECT_EQ(states().Put(put).code(), absl::StatusCode::kInvalidArgument) << fingerprint;
    EXPECT_EQ(states().Get("u", fingerprint).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(StoreContract, KeepsEverythingOverReopening) {
  ASSERT_TRUE(AppendTo(log(), "u", {{"a", -1, ""}, {"b", 2, "id"}}).ok());
  const StateRecord record = SomeState(3, "payload");
  const UserState put[] = {{"u", kFingerprintA, &record}};
  ASSERT_TRUE(states().Put(put).ok());
  ASSERT_TRUE(states().Flush().ok());
  for (int round = 0; round < 2; ++round) {
    under_test_->Reopen();
    EXPECT_THAT(Items(ReadAll(log(), "u")), ElementsAre("a", "b"));
    const auto got = states().Get("u", kFingerprintA);
    ASSERT_TRUE(got.ok() && got->has_value());
    EXPECT_EQ((*got)->lineage, record.lineage);
    EXPECT_EQ((*got)->payload, record.payload);
    const auto again = AppendTo(log(), "u", {{"a", -1, ""}});
    ASSERT_TRUE(again.ok());
    EXPECT_THAT(*again, ElementsAre(kDuplicate));
  }
}

// The plain meaning of the interface, in memory.
struct Model {
  std::map<std::string, std::map<Position, Event>> events;
  std::map<std::pair<std::string, std::string>, StateRecord> states;
};

class RandomOperations {
 public:
  RandomOperations(StoreUnderTest& store, std::mt19937_64 random)
      : store_(store), random_(random) {}

  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      SCOPED_TRACE(absl::StrCat("step ", step));
      const uint64_t choice = random_() % 1000;
      if (choice < 500) {
        Append();
      } else if (choice < 680) {
        Read();
      } else if (choice < 840) {
        Put();
      } else if (choice < 990) {
        Get();
      } else if (choice < 997) {
        EXPECT_TRUE(store_.states().Flush().ok());
      } else {
        EXPECT_TRUE(store_.states().Flush().ok());
        store_.Reopen();
      }
    }
    for (int user = 0; user < kUsers; ++user) Check(User(user));
  }

 private:
  static constexpr int kUsers = 12;
  static std::string User(int i) { return i == 0 ? "u" : absl::StrCat("u", i); }
  std::string AnyUser() { return User(static_cast<int>(random_() % kUsers)); }
  std::string AnyModel() { return random_() % 2 == 0 ? kFingerprintA : kFingerprintB; }
  Event AnyEvent() {
    Event event = {absl::StrCat("i", random_() % 8), static_cast<int64_t>(random_() % 40) - 20,
                   random_() % 2 == 0 ? "" : absl::StrCat("e", random_() % 3)};
    if (random_() % 4 == 0) {
      const int64_t behind = event.timestamp_ms + 1 + static_cast<int64_t>(random_() % 10);
      event.late = {PositionOf({"i", behind, "e1"}), static_cast<uint32_t>(++rank_)};
    }
    return event;
  }

  void Append() {
    std::vector<std::string> users;
    std::vector<std::vector<Event>> events;
    for (uint64_t i = random_() % 4; i < 4; ++i) {
      users.push_back(AnyUser());
      events.emplace_back();
      for (uint64_t n = random_() % 6; n > 0; --n) events.back().push_back(AnyEvent());
    }
    std::vector<UserEvents> batch;
    std::vector<std::vector<AppendOutcome>> expected;
    for (size_t i = 0; i < users.size(); ++i) {
      batch.push_back({users[i], events[i]});
      expected.emplace_back();
      for (const Event& event : events[i]) {
        const bool added = model_.events[users[i]].emplace(PositionOf(event), event).second;
        expected.back().push_back(added ? kAdded : kDuplicate);
      }
    }
    const bool synced = random_() % 20 == 0;
    const auto outcomes =
        store_.log().Append(batch, synced ? Durability::kSynced : Durability::kBuffered);
    ASSERT_TRUE(outcomes.ok()) << outcomes.status();
    EXPECT_EQ(*outcomes, expected);
  }

  void Read() { Check(AnyUser()); }

  void Check(const std::string& user) {
    std::map<FoldPlace, Event> expected;
    for (const auto& [position, event] : model_.events[user]) {
      expected.emplace(event.late.rank > 0 ? event.late : FoldPlace{position, 0}, event);
    }
    ASSERT_EQ(expected.size(), model_.events[user].size());
    auto next = expected.begin();
    for (const Event& event : ReadAll(store_.log(), user)) {
      ASSERT_NE(next, expected.end());
      EXPECT_TRUE(SameEvent(event, next->second)) << event.item_id << " " << event.timestamp_ms;
      ++next;
    }
    EXPECT_EQ(next, expected.end());
  }

  void Put() {
    const std::string user = AnyUser();
    const std::string model = AnyModel();
    StateRecord& record = model_.states[{user, model}];
    record = SomeState(random_() % 5, std::string(random_() % 2000, static_cast<char>(random_())));
    const UserState put[] = {{user, model, &record}};
    EXPECT_TRUE(store_.states().Put(put).ok());
  }

  void Get() {
    const std::string user = AnyUser();
    const std::string model = AnyModel();
    const auto got = store_.states().Get(user, model);
    ASSERT_TRUE(got.ok()) << got.status();
    const auto expected = model_.states.find({user, model});
    ASSERT_EQ(got->has_value(), expected != model_.states.end());
    if (!got->has_value()) return;
    EXPECT_EQ((*got)->lineage, expected->second.lineage);
    EXPECT_EQ((*got)->payload, expected->second.payload);
  }

  StoreUnderTest& store_;
  std::mt19937_64 random_;
  uint64_t rank_ = 0;  // of late events: no two have one place
  Model model_;
};

TEST_P(StoreContract, BehavesAsTheModelUnderRandomOperations) {
  RandomOperations(*under_test_, PrintedRandom("operations")).Run(4000);
}

}  // namespace
}  // namespace tim4rec
