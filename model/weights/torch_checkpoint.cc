#include "model/weights/torch_checkpoint.h"

#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "model/weights/pickle_reader.h"
#include "model/weights/zip_reader.h"

namespace tim4rec {
namespace {

using Bytes = std::span<const std::byte>;
using Entries = std::map<std::string, Bytes>;
using Tensor = std::pair<std::vector<int64_t>, std::vector<float>>;
using Tensors = std::map<std::string, Tensor>;

constexpr size_t kMaxRank = 8;
constexpr absl::string_view kLegacyMagic =
    "\x80\x02\x8a\nl\xfc\x9c"
    "F\xf9 j\xa8P\x19.";

absl::Status Invalid(const std::string& what) { return absl::InvalidArgumentError(what); }

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

absl::string_view TextOf(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool Is(const PickleNode* node, PickleKind kind) { return node != nullptr && node->kind == kind; }

// ---- storages

enum class Scalar { kFloat32, kFloat64, kFloat16, kBfloat16 };

std::optional<Scalar> ScalarOf(std::string_view storage_class) {
  static const auto* const names =
      new std::map<std::string_view, Scalar>{{"torch.FloatStorage", Scalar::kFloat32},
                                             {"torch.DoubleStorage", Scalar::kFloat64},
                                             {"torch.HalfStorage", Scalar::kFloat16},
                                             {"torch.BFloat16Storage", Scalar::kBfloat16}};
  const auto it = names->find(storage_class);
  return it == names->end() ? std::optional<Scalar>() : it->second;
}

size_t SizeOf(Scalar scalar) {
  return scalar == Scalar::kFloat64 ? 8 : scalar == Scalar::kFloat32 ? 4 : 2;
}

float FromHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity and NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  // The exponents' biases differ by 112; the product also makes denormals right.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

struct Storage {
  Scalar scalar;
  Bytes bytes;

  uint64_t size() const { return bytes.size() / SizeOf(scalar); }

  template <typename T>
  T Load(uint64_t i) const {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }

  float Value(uint64_t i) const {
    switch (scalar) {
      case Scalar::kFloat32:
        return Load<float>(i);
      case Scalar::kFloat64:
        return static_cast<float>(Load<double>(i));
      case Scalar::kFloat16:
        return FromHalf(Load<uint16_t>(i));
      case Scalar::kBfloat16:
        return std::bit_cast<float>(static_cast<uint32_t>(Load<uint16_t>(i)) << 16);
    }
    return 0;
  }
};

// ---- tensors

class StateDictReader {
 public:
  StateDictReader(const PickleGraph& graph, const Entries& entries, std::string prefix,
                  uint64_t max_values)
      : graph_(graph), entries_(entries), prefix_(std::move(prefix)), values_left_(max_values) {}

  absl::StatusOr<Tensors> Read() {
    const PickleNode* dict = &graph_.root();
    if (const PickleNode* inner = graph_.Find(*dict, "state_dict"); inner != nullptr) dict = inner;
    if (dict->kind != PickleKind::kDict && graph_.Called(*dict) != "collections.OrderedDict") {
      return Invalid("the file holds neither a state dict nor a dict with a \"state_dict\"");
    }
    Tensors tensors;
    std::vector<std::string> faults;
    for (size_t i = 0; i + 1 < dict->elements.size(); i += 2) {
      const PickleNode& name = *graph_.Element(*dict, i);
      if (name.kind != PickleKind::kText) return Invalid("a tensor's name is not text");
      Tensor tensor;
      if (absl::Status status = ReadTensor(*graph_.Element(*dict, i + 1), &tensor); !status.ok()) {
        faults.push_back(
            absl::StrCat("tensor ", Absl(name.text), ": ", std::string(status.message())));
        if (faults.size() == 20) break;
        continue;
      }
      tensors[std::string(name.text)] = std::move(tensor);
    }
    if (!faults.empty()) return Invalid(absl::StrJoin(faults, "; "));
    if (tensors.empty()) return Invalid("the state dict is empty");
    return tensors;
  }

 private:
  absl::Status ReadTensor(const PickleNode& value, Tensor* tensor) {
    const PickleNode* call = &value;
    if (graph_.Called(*call) == "torch._utils._rebuild_parameter") {
      call = graph_.Argument(*call, 0);
    }
    if (call == nullptr || call->kind != PickleKind::kCall) return Invalid("it is not a tensor");
    if (graph_.Called(*call) != "torch._utils._rebuild_tensor_v2") {
      return Invalid(
          absl::StrCat("it is made by ", Absl(graph_.Called(*call)), ", which is not understood"));
    }
    auto storage = ReadStorage(graph_.Argument(*call, 0));
    if (!storage.ok()) return storage.status();
    const PickleNode* offset = graph_.Argument(*call, 1);
    std::vector<int64_t> strides;
    if (!Is(offset, PickleKind::kInteger) || offset->integer < 0 ||
        !ReadExtents(graph_.Argument(*call, 2), &tensor->first) ||
        !ReadExtents(graph_.Argument(*call, 3), &strides) ||
        strides.size() != tensor->first.size()) {
      return Invalid("its offset, sizes and strides are not lists of sizes");
    }
    return Gather(*storage, static_cast<uint64_t>(offset->integer), strides, tensor);
  }

  bool ReadExtents(const PickleNode* node, std::vector<int64_t>* extents) const {
    if (node != nullptr && graph_.Called(*node) == "torch.Size") node = graph_.Argument(*node, 0);
    if (!Is(node, PickleKind::kTuple) || node->elements.size() > kMaxRank) return false;
    for (size_t i = 0; i < node->elements.size(); ++i) {
      const PickleNode* extent = graph_.Element(*node, i);
      if (extent->kind != PickleKind::kInteger || extent->integer < 0) return false;
      extents->push_back(extent->integer);
    }
    return true;
  }

  // The persistent value ("storage", class, key, location, number of elements).
  absl::StatusOr<Storage> ReadStorage(const PickleNode* node) const {
    const PickleNode* id = Is(node, PickleKind::kPersistent) ? graph_.Element(*node, 0) : nullptr;
    if (!Is(id, PickleKind::kTuple) || id->elements.size() < 5) {
      return Invalid("its values are not in the archive");
    }
    const PickleNode* storage_class = graph_.Element(*id, 1);
    const PickleNode* key = graph_.Element(*id, 2);
    const PickleNode* count = graph_.Element(*id, 4);
    if (!Is(storage_class, PickleKind::kGlobal) || !Is(key, PickleKind::kText) ||
        !Is(count, PickleKind::kInteger)) {
      return Invalid("its values are not in the archive");
    }
    const std::optional<Scalar> scalar = ScalarOf(storage_class->text);
    if (!scalar.has_value()) {
      return Invalid(absl::StrCat("it is a ", Absl(storage_class->text),
                                  ", only floating-point tensors are read"));
    }
    const auto entry = entries_.find(absl::StrCat(prefix_, "data/", Absl(key->text)));
    if (entry == entries_.end()) {
      return Invalid(absl::StrCat("the archive has no entry data/", Absl(key->text)));
    }
    const Storage storage = {*scalar, entry->second};
    if (count->integer < 0 || static_cast<uint64_t>(count->integer) > storage.size()) {
      return Invalid(absl::StrCat("its storage should have ", count->integer, " values, it has ",
                                  storage.size()));
    }
    return storage;
  }

  // Copies the strided values in row-major order.
  absl::Status Gather(const Storage& storage, uint64_t offset, const std::vector<int64_t>& strides,
                      Tensor* tensor) {
    const std::vector<int64_t>& shape = tensor->first;
    uint64_t count = 1, last = offset;
    bool overflow = false;
    for (size_t i = 0; i < shape.size(); ++i) {
      overflow |= __builtin_mul_overflow(count, static_cast<uint64_t>(shape[i]), &count);
      uint64_t span = 0;
      if (shape[i] > 1) {
        overflow |= __builtin_mul_overflow(static_cast<uint64_t>(shape[i] - 1),
                                           static_cast<uint64_t>(strides[i]), &span);
      }
      overflow |= __builtin_add_overflow(last, span, &last);
    }
    if (overflow || (count > 0 && (last >= storage.size() || count > storage.size()))) {
      return Invalid(absl::StrCat("its sizes [", absl::StrJoin(shape, ","), "] and strides [",
                                  absl::StrJoin(strides, ","), "] reach beyond its ",
                                  storage.size(), " values"));
    }
    if (count > values_left_) return Invalid("the tensors are larger than the file they came in");
    values_left_ -= count;
    tensor->second.resize(count);
    std::vector<int64_t> index(shape.size(), 0);
    for (uint64_t i = 0, at = offset; i < count; ++i) {
      tensor->second[i] = storage.Value(at);
      for (size_t axis = shape.size(); axis-- > 0;) {
        at += static_cast<uint64_t>(strides[axis]);
        if (++index[axis] < shape[axis]) break;
        at -= static_cast<uint64_t>(strides[axis]) * static_cast<uint64_t>(shape[axis]);
        index[axis] = 0;
      }
    }
    return absl::OkStatus();
  }

  const PickleGraph& graph_;
  const Entries& entries_;
  const std::string prefix_;
  uint64_t values_left_;
};

// "archive/" of the entry "archive/data.pkl".
absl::StatusOr<std::string> ArchivePrefix(const Entries& entries) {
  std::vector<std::string> prefixes;
  for (const auto& [name, bytes] : entries) {
    absl::string_view prefix = name;
    if (absl::ConsumeSuffix(&prefix, "/data.pkl") && !absl::StrContains(prefix, "/")) {
      prefixes.push_back(absl::StrCat(prefix, "/"));
    }
  }
  if (prefixes.size() != 1) {
    return Invalid("it is a zip archive, but not one of torch.save: it has no single data.pkl");
  }
  const auto order = entries.find(prefixes[0] + "byteorder");
  if (order != entries.end() && TextOf(order->second) != "little") {
    return Invalid("its tensors are big-endian; save it on a little-endian machine");
  }
  return prefixes[0];
}

// ---- item tokens

// The bytes of a bytes value; protocol 2 writes them as _codecs.encode(text, "latin1").
std::optional<std::string> BytesOf(const PickleGraph& graph, const PickleNode* node) {
  if (node == nullptr) return std::nullopt;
  if (node->kind == PickleKind::kBytes) return std::string(node->text);
  const PickleNode* text = graph.Argument(*node, 0);
  if (graph.Called(*node) != "_codecs.encode" || !Is(text, PickleKind::kText)) return std::nullopt;
  std::string bytes;
  for (size_t i = 0; i < text->text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text->text[i]);
    if (c < 0x80) {
      bytes.push_back(static_cast<char>(c));
    } else if ((c == 0xc2 || c == 0xc3) && i + 1 < text->text.size()) {
      const auto next = static_cast<unsigned char>(text->text[++i]);
      bytes.push_back(static_cast<char>(((c & 3) << 6) | (next & 0x3f)));
    } else {
      return std::nullopt;
    }
  }
  return bytes;
}

void AppendUtf8(uint32_t c, std::string* text) {
  if (c < 0x80) {
    text->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    text->push_back(static_cast<char>(0xc0 | (c >> 6)));
    text->push_back(static_cast<char>(0x80 | (c & 0x3f)));
  } else if (c < 0x10000) {
    text->push_back(static_cast<char>(0xe0 | (c >> 12)));
    text->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3f)));
    text->push_back(static_cast<char>(0x80 | (c & 0x3f)));
  } else {
    text->push_back(static_cast<char>(0xf0 | ((c >> 18) & 7)));
    text->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3f)));
    text->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3f)));
    text->push_back(static_cast<char>(0x80 | (c & 0x3f)));
  }
}

// Fixed-width UCS-4 texts, padded with zeros.
std::optional<std::vector<std::string>> SplitUcs4(const std::string& bytes, uint64_t width) {
  if (width == 0 || width > 4096 || bytes.size() % (4 * width) != 0) return std::nullopt;
  std::vector<std::string> texts;
  for (size_t at = 0; at < bytes.size(); at += 4 * width) {
    std::string& text = texts.emplace_back();
    for (size_t i = 0; i < width; ++i) {
      uint32_t c;
      std::memcpy(&c, bytes.data() + at + 4 * i, 4);
      if (c != 0) AppendUtf8(c, &text);
    }
  }
  return texts;
}

std::optional<std::vector<std::string>> TextsOf(const PickleGraph& graph, const PickleNode& list) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < list.elements.size(); ++i) {
    const PickleNode* text = graph.Element(list, i);
    if (text->kind != PickleKind::kText) return std::nullopt;
    texts.emplace_back(text->text);
  }
  return texts;
}

// A numpy array of texts, or a plain list. An array is _reconstruct(…) with the state (version,
// shape, dtype, fortran order, data), or since protocol 5 _frombuffer(data, dtype, …); its dtype is
// numpy.dtype("U12", …) or "O8".
std::optional<std::vector<std::string>> TokensOf(const PickleGraph& graph, const PickleNode* node) {
  if (node == nullptr) return std::nullopt;
  if (node->kind == PickleKind::kList) return TextsOf(graph, *node);
  const std::string_view called = graph.Called(*node);
  const PickleNode *dtype = nullptr, *data = nullptr;
  if (called.ends_with("._frombuffer")) {
    data = graph.Argument(*node, 0);
    dtype = graph.Argument(*node, 1);
  } else if (called.ends_with("multiarray._reconstruct") && node->state != kNoPickleNode) {
    const PickleNode& state = graph.node(node->state);
    dtype = graph.Element(state, 2);
    data = graph.Element(state, 4);
  }
  if (dtype == nullptr || graph.Called(*dtype) != "numpy.dtype") return std::nullopt;
  if (Is(data, PickleKind::kList)) return TextsOf(graph, *data);
  const PickleNode* code = graph.Argument(*dtype, 0);
  const std::optional<std::string> bytes = BytesOf(graph, data);
  if (!Is(code, PickleKind::kText) || !code->text.starts_with("U") || !bytes.has_value()) {
    return std::nullopt;
  }
  uint64_t width = 0;
  if (!absl::SimpleAtoi(Absl(code->text.substr(1)), &width)) return std::nullopt;
  return SplitUcs4(*bytes, width);
}

}  // namespace

absl::StatusOr<Tensors> ReadTorchCheckpoint(Bytes file) {
  const absl::string_view text = TextOf(file);
  if (absl::StartsWith(text, kLegacyMagic)) {
    return Invalid(
        "it is in torch.save's format from before PyTorch 1.6; convert it where it came from: "
        "torch.save(torch.load(FILE, map_location=\"cpu\")[\"state_dict\"], NEW)");
  }
  if (!absl::StartsWith(text, "PK")) {
    return Invalid("it is not a zip archive as torch.save writes it");
  }
  const auto entries = ReadStoredZip(file);
  if (!entries.ok()) return entries.status();
  const auto prefix = ArchivePrefix(*entries);
  if (!prefix.ok()) return prefix.status();
  const auto graph = ReadPickle(entries->at(*prefix + "data.pkl"));
  if (!graph.ok()) return graph.status();
  // Tensors may share storage, but not so that a small file becomes a large model.
  return StateDictReader(*graph, *entries, *prefix, file.size()).Read();
}

absl::StatusOr<std::vector<std::string>> ReadRecBoleItemTokens(Bytes file) {
  const auto graph = ReadPickle(file);
  if (!graph.ok()) return graph.status();
  const PickleNode* dataset = &graph->root();
  if (dataset->kind == PickleKind::kCall && dataset->state != kNoPickleNode) {
    dataset = &graph->node(dataset->state);
  }
  const PickleNode* field = graph->Find(*dataset, "iid_field");
  const PickleNode* tokens = graph->Find(*dataset, "field2id_token");
  if (!Is(field, PickleKind::kText) || tokens == nullptr) {
    return Invalid("it has no iid_field and field2id_token: it is not a dataset saved by RecBole");
  }
  auto items = TokensOf(*graph, graph->Find(*tokens, field->text));
  if (!items.has_value()) {
    return Invalid(
        absl::StrCat("field2id_token of ", Absl(field->text), " is not an array of texts"));
  }
  return *std::move(items);
}

}  // namespace tim4rec
