#include "model/training/interactions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/model/training/temporary.h"

namespace tim4rec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Interactions : public ::testing::Test {
 protected:
  absl::StatusOr<InteractionTable> Read(const std::string& content, bool skip = false,
                                        const std::string& name = "data.inter") {
    ReadOptions options;
    options.skip_bad_rows = skip;
    return ReadInteractions(directory_.Write(name, content), options);
  }
  // The message of a failed read.
  std::string Fault(const std::string& content) {
    const auto table = Read(content);
    EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument) << table.status();
    return std::string(table.status().message());
  }

  TemporaryDirectory directory_;
};

TEST_F(Interactions, ReadsAtomicFilesByColumnName) {
  const auto table = Read(
      "timestamp:float\trating:float\titem_id:token\tuser_id:token\n"
      "881250949\t3\t242\t196\n891717742\t4\t302\t186\n881250950.5\t1\t302\t196\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->user_ids, ElementsAre("196", "186"));
  EXPECT_THAT(table->item_ids, ElementsAre("242", "302"));
  ASSERT_EQ(table->rows.size(), 3u);
  EXPECT_EQ(table->rows[0].timestamp_ms, 881250949000);
  EXPECT_EQ(table->rows[2].timestamp_ms, 881250950500);
  EXPECT_EQ(table->rows[2].user, 0);
  EXPECT_EQ(table->rows[2].item, 1);
  EXPECT_EQ(table->time_unit, TimeUnit::kSeconds);
}

TEST_F(Interactions, ReadsMovieLensCsv) {
  const auto table =
      Read("userId,movieId,rating,timestamp\r\n1,296,5.0,1147880044\r\n", false, "ratings.csv");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->item_ids, ElementsAre("296"));
  EXPECT_EQ(table->rows[0].timestamp_ms, 1147880044000);
}

TEST_F(Interactions, ReadsQuotedFields) {
  const auto table = Read(
      "\"User\",\"Item\",\"Time\"\n\"a, \"\"b\"\"\",\"x\",\"5\"\nc \"d\",y z,6\n"
      "e,\"line\nbreak\",7\n",
      true, "data.csv");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->user_ids, ElementsAre("a, \"b\"", "c \"d\""));
  EXPECT_THAT(table->item_ids, ElementsAre("x", "y z"));
  EXPECT_EQ(table->bad_rows, 1);
  EXPECT_THAT(table->first_bad_row, HasSubstr("data.csv:4: item has a control character"));
}

TEST_F(Interactions, KeepsQuotesInAtomicFiles) {
  const auto table = Read("user_id\titem_id\ttimestamp\n\"u\"\t\"i\t1\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->user_ids, ElementsAre("\"u\""));
  EXPECT_THAT(table->item_ids, ElementsAre("\"i"));
}

TEST_F(Interactions, GoesOnAfterAQuoteThatIsNeverClosed) {
  EXPECT_THAT(Fault("user,item,time\nu,\"x,1\nu,y,2\n"),
              HasSubstr("data.inter:2: a field begins with a double quote that is never closed"));
  const auto table = Read("user,item,time\nu,y,2\n\"v,z,3\nw,z,4", true);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_THAT(table->user_ids, ElementsAre("u", "w"));
  EXPECT_EQ(table->bad_rows, 1);
  const auto last = Read("user,item,time\nu,y,2\n\"v,z,3", true);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->rows.size(), 1u);
}

TEST_F(Interactions, SkipsByteOrderMarkAndEmptyLines) {
  const auto table = Read("\xEF\xBB\xBFuser,item,time\n\nu,i,1\n\r\nu,j,2\n\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->rows.size(), 2u);
}

TEST_F(Interactions, KeepsSpacesAndUtf8InIds) {
  const auto table = Read("user,item,time\n Jos\xC3\xA9 ,\xE6\x98\xA0\xF0\x9F\x8E\xAC,1\n");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->user_ids[0], " Jos\xC3\xA9 ");
  EXPECT_EQ(table->item_ids[0], "\xE6\x98\xA0\xF0\x9F\x8E\xAC");
}

TEST_F(Interactions, NamesLineAndExpectationOfAMalformedRow) {
  const std::string head = "user\titem\ttime\nu\ti\t1\n";
  EXPECT_THAT(Fault(head + "u\ti\n"),
              HasSubstr("data.inter:3: expected 3 tab-separated fields as in the header, found 2"));
  EXPECT_THAT(Fault(head + "u\ti\t1\t2\n"), HasSubstr("found 4"));
  EXPECT_THAT(Fault(head + "\ti\t1\n"), HasSubstr(":3: user is empty"));
  EXPECT_THAT(Fault(head + "u\t\t1\n"), HasSubstr(":3: item is empty"));
  EXPECT_THAT(Fault(head + "u\t" + std::string(257, 'x') + "\t1\n"),
              HasSubstr(":3: item has 257 bytes; expected an id of 1 to 256 bytes"));
  EXPECT_THAT(Fault(head + "u\xFF\ti\t1\n"), HasSubstr(":3: user is not valid UTF-8 at byte 1"));
  EXPECT_THAT(Fault(head + "u\xED\xA0\x80\ti\t1\n"), HasSubstr("not valid UTF-8"));
  EXPECT_THAT(Fault(head + std::string("u\0\ti\t1\n", 7)), HasSubstr("control character"));
  for (const char* time : {"", "x", "1x", "nan", "inf", "-5", "2020-01-01"}) {
    EXPECT_THAT(Fault(head + "u\ti\t" + time + "\n"),
                HasSubstr("; expected seconds or milliseconds since 1970 as a number"));
  }
  EXPECT_THAT(Fault(head + "u\ti\t1600000000000000\n"), HasSubstr("microseconds"));
}

TEST_F(Interactions, AcceptsIdsOf256Bytes) {
  EXPECT_TRUE(Read("user\titem\ttime\n" + std::string(256, 'u') + "\ti\t1\n").ok());
}

TEST_F(Interactions, CountsSkippedRows) {
  const auto table = Read("user\titem\ttime\nu\ti\tx\nu\ti\t1\nv\ti\n", true);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->bad_rows, 2);
  EXPECT_THAT(table->first_bad_row, HasSubstr("data.inter:2: time is 'x'"));
  EXPECT_THAT(table->user_ids, ElementsAre("u"));
}

TEST_F(Interactions, DetectsTheUnitForTheWholeFile) {
  const auto ms = Read("user\titem\ttime\nu\ti\t1600000000123\nu\tj\t1.6e12\n");
  ASSERT_TRUE(ms.ok()) << ms.status();
  EXPECT_EQ(ms->time_unit, TimeUnit::kMilliseconds);
  EXPECT_EQ(ms->rows[0].timestamp_ms, 1600000000123);
  const std::string mixed = "user\titem\ttime\nu\ti\t1600000000\nu\ti\t1600000001\nv\tj\t1.6e12\n";
  EXPECT_THAT(Fault(mixed), HasSubstr(":4: time is 1600000000000; expected seconds"));
  const auto kept = Read(mixed, true);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(kept->bad_rows, 1);
  EXPECT_THAT(kept->user_ids, ElementsAre("u"));
  EXPECT_THAT(kept->item_ids, ElementsAre("i"));
  EXPECT_THAT(Fault("user\titem\ttime\nu\ti\t0\nu\ti\t1600000000000\n"),
              HasSubstr(":2: time is 0; expected milliseconds"));
}

TEST_F(Interactions, ExplainsMissingColumnsAndFiles) {
  EXPECT_THAT(
      Fault("user\ttime\nu\t1\n"),
      HasSubstr("no column is named item_id or itemid or movieid or product_id or item; the "
                "header (line 1) has user, time"));
  EXPECT_THAT(Fault(""), HasSubstr("the file is empty"));
  EXPECT_EQ(ReadInteractions(directory_.path("absent"), {}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadInteractions(directory_.path("."), {}).status().message()),
              HasSubstr("is a directory"));
}

TEST_F(Interactions, FindsAndReadsItemFiles) {
  const std::string inter = directory_.Write("x.inter", "");
  EXPECT_THAT(FindItemFile(inter), IsEmpty());
  const std::string item = directory_.Write(
      "x.item",
      "item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tToy Story\tComedy Film-Noir\n");
  EXPECT_EQ(FindItemFile(inter), item);
  const auto items = ReadItems(item, {});
  ASSERT_TRUE(items.ok()) << items.status();
  EXPECT_EQ((*items)[0].title, "Toy Story");
  EXPECT_THAT((*items)[0].categories, ElementsAre("Comedy", "Film-Noir"));

  const std::string ratings = directory_.Write("ratings.csv", "");
  const std::string movies = directory_.Write(
      "movies.csv", "movieId,title,genres\n11,\"American President, The (1995)\",Comedy|Drama\n");
  EXPECT_EQ(FindItemFile(ratings), movies);
  const auto read = ReadItems(movies, {});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)[0].title, "American President, The (1995)");
  EXPECT_THAT((*read)[0].categories, ElementsAre("Comedy", "Drama"));
}

}  // namespace
}  // namespace tim4rec
