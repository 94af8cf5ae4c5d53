// Checkpoints as PyTorch and RecBole write them, and files made to do harm.
#include "model/weights/torch_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "model/weights/pickle_reader.h"
#include "model/weights/zip_reader.h"
#include "tests/paths.h"

namespace tim4rec {
namespace {

using testing::HasSubstr;

const std::string kTestData = SourceDir() + "/tests/model/testdata/";

std::string ReadText(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

template <typename T>
std::string Little(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

uint32_t Crc(const std::string& text) {
  uint32_t crc = ~0u;
  for (const unsigned char c : text) {
    crc ^= c;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

// A zip archive with stored entries, correct but for `method`.
std::string Zip(const std::vector<std::pair<std::string, std::string>>& entries,
                uint16_t method = 0) {
  std::string file, directory;
  for (const auto& [name, data] : entries) {
    const std::string common = Little<uint16_t>(0) + Little(method) + Little<uint32_t>(0) +
                               Little(Crc(data)) + Little<uint32_t>(data.size()) +
                               Little<uint32_t>(data.size()) + Little<uint16_t>(name.size()) +
                               Little<uint16_t>(0);
    directory += "PK\x01\x02" + Little<uint16_t>(20) + Little<uint16_t>(20) + common +
                 std::string(10, '\0') + Little<uint32_t>(file.size()) + name;
    file += "PK\x03\x04" + Little<uint16_t>(20) + common + name + data;
  }
  const uint32_t at = file.size();
  return file + directory + "PK\x05\x06" + std::string(4, '\0') + Little<uint16_t>(entries.size()) +
         Little<uint16_t>(entries.size()) + Little<uint32_t>(directory.size()) + Little(at) +
         Little<uint16_t>(0);
}

absl::Status ReadWithPickle(const std::string& pickle,
                            std::vector<std::pair<std::string, std::string>> storages = {}) {
  storages.insert(storages.begin(), {"archive/data.pkl", pickle});
  return ReadTorchCheckpoint(BytesOf(Zip(storages))).status();
}

// {"state_dict": {"w": <value>}} around the opcodes of a value, in protocol 2.
std::string StateDict(const std::string& value) {
  const auto text = [](const std::string& s) {
    return std::string("X") + Little<uint32_t>(s.size()) + s;
  };
  return std::string("\x80\x02}", 3) + text("state_dict") + "}" + text("w") + value + "ss.";
}

std::string TensorOf(const std::string& storage_class, int64_t count, int64_t offset,
                     const std::string& sizes, const std::string& strides) {
  const auto integer = [](int64_t value) { return "\x8a\x08" + Little(value); };
  return std::string("ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagec") + storage_class + "\nX" +
         Little<uint32_t>(1) + "0X" + Little<uint32_t>(3) + "cpu" + integer(count) + "tQ" +
         integer(offset) + sizes + strides +
         "\x89"
         "ccollections\nOrderedDict\n)RtR";
}

TEST(TorchCheckpoint, ReadsWhatTorchSaved) {
  const std::string file = ReadText(kTestData + "checkpoint.pth");
  const auto tensors = ReadTorchCheckpoint(BytesOf(file));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const auto expected = nlohmann::json::parse(ReadText(kTestData + "tensors.json"));
  ASSERT_EQ(tensors->size(), expected.size());
  for (const auto& [name, tensor] : *tensors) {
    ASSERT_TRUE(expected.contains(name)) << name;
    const auto& summary = expected[name];
    EXPECT_EQ(tensor.first, summary["shape"].get<std::vector<int64_t>>()) << name;
    EXPECT_EQ(tensor.second.front(), summary["first"].get<float>()) << name;
    EXPECT_EQ(tensor.second.back(), summary["last"].get<float>()) << name;
    double sum = 0;
    for (const float value : tensor.second) sum += value;
    EXPECT_NEAR(sum, summary["sum"].get<double>(), 1e-9) << name;
  }
}

TEST(TorchCheckpoint, ConvertsOtherPrecisionsAndStrides) {
  const std::string sizes = "K\x02K\x02\x86", strides = "K\x01K\x02\x86";
  const auto read = [&](const std::string& storage_class, const std::string& bytes) {
    const std::string file =
        Zip({{"x/data.pkl", StateDict(TensorOf(storage_class, 4, 0, sizes, strides))},
             {"x/data/0", bytes}});
    const auto tensors = ReadTorchCheckpoint(BytesOf(file));
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    return tensors.ok() ? tensors->at("w").second : std::vector<float>();
  };
  const std::vector<float> expected = {1.5f, -3.0f, 0x1p-24f, 65504.0f};  // columns first
  EXPECT_EQ(read("torch\nFloatStorage",
                 Little(1.5f) + Little(0x1p-24f) + Little(-3.0f) + Little(65504.0f)),
            expected);
  EXPECT_EQ(
      read("torch\nDoubleStorage", Little(1.5) + Little(0x1p-24) + Little(-3.0) + Little(65504.0)),
      expected);
  EXPECT_EQ(read("torch\nHalfStorage", Little<uint16_t>(0x3e00) + Little<uint16_t>(1) +
                                           Little<uint16_t>(0xc200) + Little<uint16_t>(0x7bff)),
            expected);
  EXPECT_EQ(read("torch\nBFloat16Storage", Little<uint16_t>(0x3fc0) + Little<uint16_t>(0x3f80) +
                                               Little<uint16_t>(0xc040) + Little<uint16_t>(0x4000)),
            (std::vector<float>{1.5f, -3.0f, 1.0f, 2.0f}));
}

TEST(TorchCheckpoint, RefusesCallsAndNamesThem) {
  // os.system("touch hacked"), in several spellings and places.
  const std::string argument = std::string("X") + Little<uint32_t>(12) + "touch hacked\x85";
  for (const std::string name : {"os\nsystem", "posix\nsystem", "builtins\neval",
                                 "__builtin__\ngetattr", "subprocess\nPopen", "torch\nload"}) {
    std::string dotted = name;
    dotted[dotted.find('\n')] = '.';
    const std::string call = "c" + name + "\n" + argument + "R";
    const std::string pickles[] = {"\x80\x02" + call + ".", StateDict(call),
                                   "\x80\x02" + call + "0}.",  // called, then dropped
                                   "\x80\x02}X" + Little<uint32_t>(1) + "a" + call + "s."};
    for (const std::string& pickle : pickles) {
      const absl::Status status = ReadWithPickle(pickle);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(Message(status), testing::AllOf(HasSubstr("calls " + dotted + ","),
                                                  HasSubstr("nothing of it was run")));
    }
  }
  const std::string stack_global =
      std::string("\x80\x04\x8c\x02os\x8c\x06system\x93") + argument + "R.";
  EXPECT_THAT(Message(ReadWithPickle(stack_global)), HasSubstr("calls os.system,"));
  // What is made by a known function but not by the one for tensors is no tensor.
  EXPECT_THAT(Message(ReadWithPickle(StateDict("cpandas\nread_pickle\n)R"))),
              HasSubstr("tensor w: it is made by pandas.read_pickle"));
  // An instance, a result and a class of the attacker's are values, not callables.
  EXPECT_THAT(Message(ReadWithPickle("\x80\x02"
                                     "ccollections\nOrderedDict\n)R)R.")),
              HasSubstr("not a named class"));
  // Opcodes that construct objects in other ways are not understood.
  EXPECT_THAT(Message(ReadWithPickle("\x80\x02(X" + Little<uint32_t>(1) + "xios\nsystem\n.")),
              HasSubstr("opcode 0x69"));
  EXPECT_THAT(Message(ReadWithPickle("\x80\x02(cos\nsystem\no.")), HasSubstr("opcode 0x6f"));
  EXPECT_THAT(Message(ReadWithPickle("\x80\x02\x82\x01.")), HasSubstr("opcode 0x82"));
}

TEST(TorchCheckpoint, RefusesTensorsThatReachBeyondTheirStorage) {
  const std::string four(16, 'a');
  const auto fault = [&](const std::string& value) {
    return Message(ReadWithPickle(StateDict(value), {{"archive/data/0", four}}));
  };
  const std::string kTwo = "K\x02\x85", kOne = "K\x01\x85";
  EXPECT_EQ(fault(TensorOf("torch\nFloatStorage", 4, 2, kTwo, kOne)), "");
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, 3, kTwo, kOne)), HasSubstr("reach beyond"));
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, INT64_MAX, kTwo, kOne)),
              HasSubstr("reach beyond"));
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, -1, kTwo, kOne)), HasSubstr("offset"));
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 5, 0, kTwo, kOne)), HasSubstr("5 values"));
  EXPECT_THAT(fault(TensorOf("torch\nLongStorage", 1, 0, kOne, kOne)),
              HasSubstr("torch.LongStorage"));
  const std::string huge = "\x8a\x08" + Little(INT64_MAX) + "\x85";
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, 0, huge, kOne)), HasSubstr("reach beyond"));
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, 0, kTwo, huge)), HasSubstr("reach beyond"));
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, 0, kTwo, "K\x01K\x01\x86")),
              HasSubstr("strides"));
  // A small storage expanded to a large tensor, by a stride of 0.
  EXPECT_THAT(fault(TensorOf("torch\nFloatStorage", 4, 0, std::string("M\xff\xff\x85"),
                             std::string("K\0\x85", 3))),
              HasSubstr("reach beyond"));
}

TEST(TorchCheckpoint, BoundsWhatAPickleCanAskFor) {
  // Exponential sharing: each tuple holds the one before it twice. It is a graph, never a tree.
  std::string bomb = "\x80\x02)";
  for (int i = 0; i < 100'000; ++i) bomb += "2\x86";
  EXPECT_TRUE(ReadPickle(BytesOf(bomb + ".")).ok());
  // Deep nesting, on the stack and by marks.
  EXPECT_TRUE(ReadPickle(BytesOf("\x80\x02)" + std::string(1'000'000, '\x85') + ".")).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("\x80\x02" + std::string(5'000'000, '('))).ok());
  EXPECT_THAT(Message(ReadPickle(BytesOf("\x80\x02" + std::string(5'000'000, ')'))).status()),
              HasSubstr("values"));
  // Lengths beyond the file.
  for (const std::string& length :
       {std::string("X\xff\xff\xff\x7f"), std::string("\x8d") + std::string(8, '\xff'),
        std::string("\x8b\xff\xff\xff\xff")}) {
    EXPECT_THAT(Message(ReadPickle(BytesOf("\x80\x04" + length + "abc.")).status()),
                HasSubstr("ends within a value"));
  }
  // A value that contains itself.
  EXPECT_TRUE(ReadPickle(BytesOf(std::string("\x80\x02]q\0h\0a.", 9))).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("\x80\x02h\x07.")).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("\x80\x02.")).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("\x80\x02(0.")).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("\x80\x02N(t")).ok());
  EXPECT_FALSE(ReadPickle(BytesOf("")).ok());
  EXPECT_THAT(Message(ReadPickle(BytesOf("\x80\x06N.")).status()), HasSubstr("protocol 6"));
}

TEST(TorchCheckpoint, SaysWhatAFileIsThatItDoesNotRead) {
  const std::string legacy = std::string(
                                 "\x80\x02\x8a\nl\xfc\x9c"
                                 "F\xf9 j\xa8P\x19.") +
                             "rest";
  EXPECT_THAT(Message(ReadTorchCheckpoint(BytesOf(legacy)).status()), HasSubstr("before PyTorch"));
  EXPECT_THAT(Message(ReadTorchCheckpoint(BytesOf("{}")).status()), HasSubstr("not a zip"));
  EXPECT_THAT(Message(ReadTorchCheckpoint(BytesOf(Zip({{"a", "b"}}))).status()),
              HasSubstr("no single data.pkl"));
  EXPECT_THAT(Message(ReadTorchCheckpoint(BytesOf(Zip({{"a/data.pkl", "N."}}, 8))).status()),
              HasSubstr("compressed"));
  EXPECT_THAT(Message(ReadWithPickle(StateDict("N"), {{"archive/byteorder", "big"}})),
              HasSubstr("big-endian"));
  EXPECT_THAT(Message(ReadWithPickle("\x80\x02N.")), HasSubstr("neither a state dict"));
  EXPECT_THAT(Message(ReadWithPickle(StateDict("N"))), HasSubstr("tensor w: it is not a tensor"));
  std::string damaged = Zip({{"archive/data.pkl", StateDict("N")}});
  damaged[60] ^= 1;
  EXPECT_EQ(ReadTorchCheckpoint(BytesOf(damaged)).status().code(), absl::StatusCode::kDataLoss);
}

TEST(TorchCheckpoint, SurvivesMutations) {
  constexpr uint64_t kSeed = 5;
  std::mt19937_64 random(kSeed);
  const std::string file = ReadText(kTestData + "checkpoint.pth");
  auto entries = ReadStoredZip(BytesOf(file));
  ASSERT_TRUE(entries.ok()) << entries.status();
  std::vector<std::pair<std::string, std::string>> owned;
  for (const auto& [name, bytes] : *entries) {
    owned.emplace_back(name,
                       std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  const auto mutate = [&](std::string text) {
    if (random() % 4 == 0) text.resize(random() % (text.size() + 1));
    for (uint64_t n = 1 + random() % 4; n > 0 && !text.empty(); --n) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 9);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    return text;
  };
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", round " << round);
    // The archive as a whole, or the pickle in a sound archive.
    if (round % 2 == 0) {
      accepted += ReadTorchCheckpoint(BytesOf(mutate(file))).ok();
      continue;
    }
    auto changed = owned;
    for (auto& [name, data] : changed) {
      if (name.ends_with("/data.pkl")) data = mutate(data);
    }
    accepted += ReadTorchCheckpoint(BytesOf(Zip(changed))).ok();
  }
  std::printf("%d of 3000 mutations were still readable\n", accepted);
  const std::string dataset = ReadText(kTestData + "dataset.pth");
  for (int round = 0; round < 3000; ++round) {
    (void)ReadRecBoleItemTokens(BytesOf(mutate(dataset)));
    std::string noise(random() % 300, '\0');
    for (char& c : noise) c = static_cast<char>(random());
    (void)ReadPickle(BytesOf(noise));
    (void)ReadStoredZip(BytesOf(noise));
  }
}

TEST(RecBoleDataset, GivesItemTokensByIndex) {
  const std::string file = ReadText(kTestData + "dataset.pth");
  const auto tokens = ReadRecBoleItemTokens(BytesOf(file));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(*tokens, testing::ElementsAre("[PAD]", "B001", "B002", "B003", "B004", "B005", "B006",
                                            "B007", "B008", "B009", "größe 7", "物品"));
  EXPECT_THAT(Message(ReadRecBoleItemTokens(BytesOf("\x80\x02}.")).status()),
              HasSubstr("not a dataset"));
}

}  // namespace
}  // namespace tim4rec
