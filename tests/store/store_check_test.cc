// What `tim4rec verify` finds.
#include "model/cli/store_check.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "model/backends/builtin.h"
#include "model/engine/state_check.h"
#include "store/record_codec.h"
#include "tests/model/tiny_model.h"
#include "tests/store/raw_database.h"
#include "tests/store/store_fixture.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

// Three users, one with a late event and one with an unknown item, and their states.
class StoreChecks : public testing::Test {
 protected:
  StoreChecks() : store_(OpenStore(dir_.store())) {
    const Event late_for_b = {"item4", 5, "", {PositionOf({"item3", 30, ""}), 1}};
    Add("a", {{"item1", 10, ""}, {"item2", 20, "e"}});
    Add("b", {{"item1", 10, ""}, {"item3", 30, ""}, late_for_b});
    Add("c", {{"item1", 10, ""}, {"nobody", 20, ""}, {"item5", 90'000'000, ""}});
  }

  void Add(const std::string& user, const std::vector<Event>& events) {
    ASSERT_TRUE(AppendTo(*store_, user, events).ok());
    std::vector<FoldEvent> fold;
    StateRecord record;
    for (const Event& event : events) {
      record.lineage.Extend(PositionOf(event), event.item_id);
      const auto item = engine_->catalog().Find(event.item_id);
      if (item) fold.push_back({*item, FoldTimeMs(event)});
    }
    record.payload = *FoldFromZero(*engine_, fold);
    Put(user, record);
  }
  void Put(const std::string& user, const StateRecord& record) {
    const UserState put[] = {{user, engine_->fingerprint(), &record}};
    ASSERT_TRUE(store_->Put(put).ok());
  }
  StateRecord StateOf(const std::string& user) {
    return **store_->Get(user, engine_->fingerprint());
  }

  StoreCheck Check(const std::string& only_user = "") {
    faults_.clear();
    const auto checked =
        CheckStore(*store_, *engine_, only_user, [&](std::string_view user, const std::string& f) {
          faults_.push_back(absl::StrCat(std::string(user), ": ", f));
        });
    EXPECT_TRUE(checked.ok()) << checked.status();
    EXPECT_EQ(checked->faults, faults_.size());
    return *checked;
  }

  // Closes the store, does something to the database, opens the store.
  void Damage(const std::function<void(RawDatabase&)>& damage) {
    store_.reset();
    {
      RawDatabase raw(dir_.store());
      damage(raw);
    }
    store_ = OpenStore(dir_.store());
  }

  ScratchDir dir_;
  std::unique_ptr<Engine> engine_ =
      *Engine::Create(*ModelPackage::FromContents(MakeTinyModel(3)), BuiltinBackends(), "cpu");
  std::unique_ptr<RocksDbStore> store_;
  std::vector<std::string> faults_;
};

TEST_F(StoreChecks, ASoundStoreHasNoFault) {
  const StoreCheck check = Check();
  EXPECT_THAT(faults_, IsEmpty());
  EXPECT_EQ(check.users, 3u);
  EXPECT_EQ(check.events, 8u);
  EXPECT_EQ(check.unknown_items, 1u);
  EXPECT_EQ(check.equal_states, 3u);
  EXPECT_EQ(check.stale_states, 0u);
  EXPECT_EQ(Check("b").events, 3u);
  EXPECT_EQ(Check("nobody").users, 0u);
}

TEST_F(StoreChecks, CountsThatAreNotThoseOfTheLogsAreNamed) {
  EXPECT_EQ(Check().use_counts, 6u);
  const auto change = [&](int64_t day, const std::string& item, int64_t events) {
    std::string row;
    AppendUse(item, events, row);
    Damage([&](RawDatabase& raw) { raw.Merge(RawDatabase::kUse, UseKey(day), row); });
  };
  change(0, "item2", 6);
  change(1, "item9", 1);
  EXPECT_EQ(Check().use_counts, 5u);
  EXPECT_THAT(faults_,
              ElementsAre(": item 'item2' is counted 7 times on day 0, and the logs have 1",
                          ": item 'item9' is counted 1 times on day 1, and the logs have 0"));
  Check("a");
  EXPECT_THAT(faults_, IsEmpty());
  change(0, "item2", -7);
  change(1, "item9", -1);
  Check();
  EXPECT_THAT(faults_,
              ElementsAre(": item 'item2' is counted 0 times on day 0, and the logs have 1"));
  change(0, "item2", 1);
  Damage([](RawDatabase& raw) { raw.Put(RawDatabase::kUse, "first use day", EncodeUseDay(-200)); });
  Check();
  EXPECT_THAT(faults_, ElementsAre(HasSubstr("days before -179 are still counted")));
}

TEST_F(StoreChecks, AnOlderStateWithATailIsSoundAndOneBehindALateEventIsStale) {
  ASSERT_TRUE(AppendTo(*store_, "a", {{"item7", 40, ""}}).ok());
  EXPECT_EQ(Check().equal_states, 3u);
  ASSERT_TRUE(AppendTo(*store_, "a", {{"item8", 15, ""}}).ok());
  const StoreCheck check = Check();
  EXPECT_THAT(faults_, IsEmpty());
  EXPECT_EQ(check.equal_states, 2u);
  EXPECT_EQ(check.stale_states, 1u);
}

// The checksum is right: only folding the log anew can tell.
TEST_F(StoreChecks, OneByteBehindTheEnvelopeIsNamed) {
  StateRecord record = StateOf("b");
  const StateLayout layout = StateLayout::Of(engine_->config());
  const int64_t head_dim = engine_->config().head_dim;
  const size_t byte =
      StateLayout::kHeaderBytes + 4 * (layout.layer_floats + layout.ssm_offset + head_dim + 2);
  record.payload[byte] = static_cast<char>(record.payload[byte] ^ 1);
  Put("b", record);
  const StoreCheck check = Check();
  EXPECT_THAT(faults_, ElementsAre(AllOf(HasSubstr("b: the checkpoint after 3 events differs"),
                                         HasSubstr("layer 1 S[0,1,2]: "))));
  EXPECT_EQ(check.equal_states, 2u);
  Check("a");
  EXPECT_THAT(faults_, IsEmpty());
  Check("b");
  EXPECT_EQ(faults_.size(), 1u);
}

TEST_F(StoreChecks, AnEventCountedTwiceIsNamed) {
  StateRecord record = StateOf("a");
  const std::vector<FoldEvent> twice = {{1, 10}, {1, 10}, {2, 20}};
  record.payload = *FoldFromZero(*engine_, twice);
  Put("a", record);
  Check();
  EXPECT_THAT(faults_, ElementsAre(HasSubstr("folded_events: 3 instead of 2")));
}

TEST_F(StoreChecks, DamagedRecordsAreNamedAndTheRestIsChecked) {
  std::string event_key;
  AppendEventKey("a", {"item2", 20, "e"}, event_key);
  const std::string state_key = StateKey("c", engine_->fingerprint());
  Damage([&](RawDatabase& raw) {
    for (const auto& [family, key] :
         {std::pair(RawDatabase::kEvents, event_key), std::pair(RawDatabase::kStates, state_key)}) {
      std::string value = raw.Get(family, key);
      FlipMiddleBit(value);
      raw.Put(family, key, value);
    }
    raw.Put(RawDatabase::kStates, "no key of ours", "x");
  });
  const StoreCheck check = Check();
  EXPECT_THAT(faults_,
              UnorderedElementsAre(
                  AllOf(HasSubstr("a: "), HasSubstr("fails its checksum")),
                  AllOf(HasSubstr("c: the checkpoint with key "), HasSubstr("fails its checks")),
                  AllOf(HasSubstr(": the checkpoint with key "), HasSubstr("6e6f206b6579"))));
  EXPECT_EQ(check.users, 3u);
  EXPECT_EQ(check.equal_states, 1u);
}

TEST_F(StoreChecks, AStateOfAUserWithoutEventsIsNamedAndOtherModelsAreCounted) {
  Put("ghost", StateOf("a"));
  const StateRecord other = StateOf("a");
  const UserState put[] = {{"a", kFingerprintB, &other}};
  ASSERT_TRUE(store_->Put(put).ok());
  const StoreCheck check = Check();
  EXPECT_THAT(faults_, ElementsAre(AllOf(HasSubstr("ghost: "), HasSubstr("the user has none"))));
  EXPECT_EQ(check.other_models_states, 1u);
}

TEST_F(StoreChecks, AnEventAtAPlaceThatIsNotItsOwnIsNamed) {
  // The item's hash in the key is that of another: it could be recorded a second time.
  Damage([&](RawDatabase& raw) {
    std::string key;
    AppendEventKey("a", {"item9", 50, ""}, key);
    std::string value;
    AppendEventValue(key, {"item1", 50, ""}, value);
    raw.Put(RawDatabase::kEvents, key, value);
  });
  Check();
  EXPECT_THAT(
      faults_,
      ElementsAre(HasSubstr("a: the event of item 'item1' at 50 ms is not at its own position"),
                  ": item 'item1' is counted 3 times on day 0, and the logs have 4"));
}

// The first events of a user go; what checkpoints there were go too.
class TruncatedStoreChecks : public StoreChecks {
 protected:
  void Truncate(const std::string& user, size_t count, bool with_base = true) {
    Truncation truncation;
    std::vector<Position> removed;
    std::vector<FoldEvent> fold;
    for (const Event& event : ReadAll(*store_, user)) {
      if (removed.size() == count) break;
      removed.push_back(PositionOf(event));
      truncation.lineage.Extend(removed.back(), event.item_id);
      truncation.last_event_ms = FoldTimeMs(event);
      if (const auto item = engine_->catalog().Find(event.item_id)) {
        fold.push_back({*item, FoldTimeMs(event)});
      }
    }
    truncation.lineage.log_truncated = true;
    StateRecord base;
    base.lineage = truncation.lineage;
    base.payload = *FoldFromZero(*engine_, fold);
    std::vector<UserState> bases;
    if (with_base) bases.push_back({user, engine_->fingerprint(), &base});
    const UserTruncation users[] = {{user, truncation, removed, bases}};
    ASSERT_TRUE(store_->Truncate(users).ok());
  }
};

TEST_F(TruncatedStoreChecks, CheckpointsAreFoldedFromTheBase) {
  const StateRecord whole = StateOf("c");
  Truncate("c", 2);
  StoreCheck check = Check();
  EXPECT_THAT(faults_, IsEmpty());
  EXPECT_EQ(check.events, 6u);
  EXPECT_EQ(check.removed_events, 2u);
  EXPECT_EQ(check.bases, 1u);
  EXPECT_EQ(check.equal_states, 2u);
  // The state is what it was, if it says that the log is truncated.
  Put("c", whole);
  EXPECT_EQ(Check().stale_states, 1u);
  StateRecord state = whole;
  state.lineage.log_truncated = true;
  Put("c", state);
  EXPECT_EQ(Check().equal_states, 3u);
  EXPECT_THAT(faults_, IsEmpty());
  // Nothing left in the log: the base is the state.
  Truncate("a", 2);
  StateRecord base = **store_->GetBase("a", engine_->fingerprint());
  Put("a", base);
  check = Check();
  EXPECT_THAT(faults_, IsEmpty());
  EXPECT_EQ(check.users, 3u);
  EXPECT_EQ(check.equal_states, 3u);
  base.payload[100] = static_cast<char>(base.payload[100] ^ 1);
  Put("a", base);
  Check();
  EXPECT_THAT(faults_, ElementsAre(HasSubstr("a: the checkpoint after 2 events differs")));
}

TEST_F(TruncatedStoreChecks, WithoutABaseTheLogIsFoldedFromZero) {
  Truncate("b", 1, /*with_base=*/false);
  StateRecord state;
  state.lineage = (*store_->ReadTruncation("b"))->lineage;
  std::vector<FoldEvent> fold;
  for (const Event& event : ReadAll(*store_, "b")) {
    state.lineage.Extend(PositionOf(event), event.item_id);
    fold.push_back({*engine_->catalog().Find(event.item_id), FoldTimeMs(event)});
  }
  state.payload = *FoldFromZero(*engine_, fold);
  Put("b", state);
  EXPECT_EQ(Check().equal_states, 3u);
  EXPECT_THAT(faults_, IsEmpty());
}

TEST_F(TruncatedStoreChecks, DamagedTruncationsAndBasesAreNamed) {
  for (const char* user : {"a", "b", "c"}) Truncate(user, 1);
  Damage([&](RawDatabase& raw) {
    const auto flip = [&](int family, const std::string& key) {
      std::string value = raw.Get(family, key);
      FlipMiddleBit(value);
      raw.Put(family, key, value);
    };
    flip(RawDatabase::kEvents, UserPrefix("a"));
    flip(RawDatabase::kStates, BaseKey("b", engine_->fingerprint()));
    // Sound by itself, but of other events.
    StateRecord base;
    base.lineage.Extend(PositionOf({"item1", 10, ""}), "another item");
    base.lineage.log_truncated = true;
    const std::string key = BaseKey("c", engine_->fingerprint());
    std::string value;
    AppendStateValue(key, base, value);
    raw.Put(RawDatabase::kStates, key, value);
  });
  Check();
  EXPECT_THAT(faults_, UnorderedElementsAre(
                           AllOf(HasSubstr("a: "), HasSubstr("fails its checksum")),
                           AllOf(HasSubstr("b: the base with key "), HasSubstr("fails its checks")),
                           AllOf(HasSubstr("c: the base of model "),
                                 HasSubstr("not those that retention"))));
}

class FirstDifferences : public testing::TestWithParam<bool> {};

// Every byte of a record belongs to a named value or to padding; the names are those of the layout.
TEST_P(FirstDifferences, NameTheValueOfEveryByte) {
  ModelConfig config = MakeTinyModel(3).config;
  if (GetParam()) {
    for (uint64_t seed = 0; !config.has_window(); ++seed) config = RandomPublishedConfig(seed);
  }
  const StateLayout layout = StateLayout::Of(config);
  const std::string zero(static_cast<size_t>(layout.bytes), '\0');
  EXPECT_EQ(FirstDifference(config, zero, zero), "");
  EXPECT_EQ(FirstDifference(config, zero, "abc"),
            absl::StrCat("3 bytes instead of ", layout.bytes));
  const auto at = [&](size_t byte) {
    std::string changed = zero;
    changed[byte] = 1;
    return FirstDifference(config, zero, changed);
  };
  EXPECT_EQ(at(0), "last_timestamp_ms: 1 instead of 0");
  EXPECT_EQ(at(8), "folded_events: 1 instead of 0");
  for (size_t byte = 0; byte < zero.size(); ++byte) EXPECT_NE(at(byte), "") << byte;
  if (GetParam()) {
    EXPECT_EQ(at(16 + 8), "window timestamps[1]: 1 instead of 0");
    EXPECT_EQ(at(16 + 4 * layout.window_items_offset + 4), "window items[1]: 1 instead of 0");
    return;
  }
  const size_t last = static_cast<size_t>(16 + 4 * layout.output_offset);
  EXPECT_THAT(at(last), HasSubstr("output[0]: "));
  EXPECT_THAT(at(static_cast<size_t>(16 + 4 * layout.conv_offset)),
              HasSubstr("layer 0 conv[0,0]: "));
  EXPECT_THAT(
      at(static_cast<size_t>(16 + 4 * (layout.layer_floats + layout.time_conv2_offset + 1))),
      HasSubstr("layer 1 time_conv2[0,1]: "));
}

INSTANTIATE_TEST_SUITE_P(Layouts, FirstDifferences, testing::Bool(),
                         [](const auto& info) { return info.param ? "Window" : "Recurrent"; });

}  // namespace
}  // namespace tim4rec
