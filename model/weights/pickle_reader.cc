#include "model/weights/pickle_reader.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tim4rec {
namespace {

constexpr size_t kMaxNodes = 4 << 20;
constexpr size_t kMaxStack = 4 << 20;
constexpr size_t kMaxMemo = 4 << 20;
constexpr size_t kMaxGlobals = 64 << 10;
constexpr size_t kMaxNameBytes = 512;

// Functions that checkpoints call for values of their own; none of them is run here.
bool IsKnownFunction(absl::string_view name) {
  static constexpr absl::string_view kNames[] = {
      "torch._utils._rebuild_tensor_v2",
      "torch._utils._rebuild_tensor",
      "torch._utils._rebuild_parameter",
      "torch.storage._load_from_bytes",
      "torch.device",
      "torch.Size",
      "numpy.dtype",
      "numpy.ndarray",
      "numpy.random._pickle.__randomstate_ctor",
      "numpy.random._pickle.__generator_ctor",
      "numpy.random._pickle.__bit_generator_ctor",
      "collections.OrderedDict",
      "collections.defaultdict",
      "collections.Counter",
      "collections.deque",
      "_codecs.encode",
      "copyreg._reconstructor",
      "copy_reg._reconstructor",
      "logging.getLogger",
      "datetime.datetime",
      "datetime.date",
      "datetime.timedelta",
      "pathlib.PosixPath",
      "pathlib.PurePosixPath",
  };
  static constexpr absl::string_view kBuiltins[] = {"set",       "frozenset", "slice", "complex",
                                                    "bytearray", "range",     "object"};
  static constexpr absl::string_view kFamilies[] = {"numpy.core.", "numpy._core.", "pandas.",
                                                    "recbole."};
  if (std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames)) return true;
  for (const absl::string_view family : kFamilies) {
    if (absl::StartsWith(name, family)) return true;
  }
  for (const absl::string_view module : {"builtins.", "__builtin__."}) {
    if (!absl::StartsWith(name, module)) continue;
    const absl::string_view rest = name.substr(module.size());
    return std::find(std::begin(kBuiltins), std::end(kBuiltins), rest) != std::end(kBuiltins);
  }
  return false;
}

absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

// One pass over the opcodes with pickle's stack and memo, iterative throughout.
class PickleParser {
 public:
  explicit PickleParser(std::span<const std::byte> bytes)
      : rest_(reinterpret_cast<const char*>(bytes.data()), bytes.size()), size_(bytes.size()) {}

  absl::StatusOr<PickleGraph> Parse() {
    while (!stopped_) {
      if (!Execute()) {
        return absl::InvalidArgumentError(
            absl::StrCat("pickle, byte ", size_ - rest_.size(), ": ", fault_));
      }
    }
    return std::move(graph_);
  }

 private:
  // ---- input

  bool Fail(std::string fault) {
    if (fault_.empty()) fault_ = std::move(fault);
    return false;
  }

  bool Take(uint64_t length, std::string_view* taken) {
    if (length > rest_.size()) {
      return Fail(absl::StrCat("it ends within a value of ", length, " bytes"));
    }
    *taken = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return true;
  }

  template <typename T>
  bool TakeNumber(T* value) {
    std::string_view bytes;
    if (!Take(sizeof(T), &bytes)) return false;
    std::memcpy(value, bytes.data(), sizeof(T));
    return true;
  }

  // A length as T, then as many bytes.
  template <typename T>
  bool TakeCounted(std::string_view* bytes) {
    T length;
    return TakeNumber(&length) && Take(length, bytes);
  }

  bool TakeLine(std::string_view* line) {
    const size_t end = rest_.substr(0, kMaxNameBytes + 1).find('\n');
    if (end == std::string_view::npos) return Fail("a name without an end, or a very long one");
    *line = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return true;
  }

  // ---- nodes and stack

  PickleNode& At(PickleIndex index) { return graph_.nodes_[index]; }

  bool Push(PickleIndex index) {
    if (stack_.size() >= kMaxStack) return Fail("more values on the stack than are allowed");
    stack_.push_back(index);
    return true;
  }

  bool PushNode(PickleNode node) {
    if (graph_.nodes_.size() >= kMaxNodes) {
      return Fail(absl::StrCat("more than ", kMaxNodes, " values"));
    }
    graph_.nodes_.push_back(std::move(node));
    return Push(static_cast<PickleIndex>(graph_.nodes_.size() - 1));
  }

  bool PushKind(PickleKind kind) {
    PickleNode node;
    node.kind = kind;
    return PushNode(std::move(node));
  }

  bool PushInteger(PickleKind kind, int64_t value) {
    PickleNode node;
    node.kind = kind;
    node.integer = value;
    return PushNode(std::move(node));
  }

  bool PushText(PickleKind kind, std::string_view text) {
    PickleNode node;
    node.kind = kind;
    node.text = text;
    return PushNode(std::move(node));
  }

  // The stack above the last mark; nothing below it may be popped.
  size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }

  bool Pop(PickleIndex* index) {
    if (stack_.size() <= Floor()) return Fail("it takes a value from an empty stack");
    *index = stack_.back();
    stack_.pop_back();
    return true;
  }

  bool PopToMark(std::vector<PickleIndex>* values) {
    if (marks_.empty()) return Fail("it looks for a mark that was not set");
    values->assign(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return true;
  }

  bool Top(PickleIndex* index) {
    if (stack_.size() <= Floor()) return Fail("it looks at an empty stack");
    *index = stack_.back();
    return true;
  }

  // ---- opcodes

  bool PushContainer(PickleKind kind, size_t count) {
    PickleNode node;
    node.kind = kind;
    node.elements.resize(count);
    for (size_t i = count; i-- > 0;) {
      if (!Pop(&node.elements[i])) return false;
    }
    return PushNode(std::move(node));
  }

  bool PushMarked(PickleKind kind) {
    PickleNode node;
    node.kind = kind;
    if (!PopToMark(&node.elements)) return false;
    if (kind == PickleKind::kDict && node.elements.size() % 2 != 0) {
      return Fail("a dict with a key that has no value");
    }
    return PushNode(std::move(node));
  }

  // Adds to the container, or to the result of the call, on top of the stack.
  bool AddToTop(const std::vector<PickleIndex>& values, PickleKind kind) {
    PickleIndex target;
    if (!Top(&target)) return false;
    PickleNode& node = At(target);
    if (node.kind != kind && node.kind != PickleKind::kCall) {
      return Fail("it adds elements to something that has none");
    }
    if (kind == PickleKind::kDict && values.size() % 2 != 0) {
      return Fail("a dict with a key that has no value");
    }
    node.elements.insert(node.elements.end(), values.begin(), values.end());
    return true;
  }

  bool AddMarked(PickleKind kind) {
    std::vector<PickleIndex> values;
    return PopToMark(&values) && AddToTop(values, kind);
  }

  bool AddPopped(PickleKind kind, size_t count) {
    std::vector<PickleIndex> values(count);
    for (size_t i = count; i-- > 0;) {
      if (!Pop(&values[i])) return false;
    }
    return AddToTop(values, kind);
  }

  bool PushGlobal(std::string_view module, std::string_view name) {
    if (module.size() > kMaxNameBytes || name.size() > kMaxNameBytes) {
      return Fail("a very long name of a class");
    }
    if (graph_.names_.size() >= kMaxGlobals) return Fail("more class names than are allowed");
    graph_.names_.push_back(absl::StrCat(Absl(module), ".", Absl(name)));
    return PushText(PickleKind::kGlobal, graph_.names_.back());
  }

  bool PushGlobalLines() {
    std::string_view module, name;
    return TakeLine(&module) && TakeLine(&name) && PushGlobal(module, name);
  }

  bool PushStackGlobal() {
    PickleIndex module, name;
    if (!Pop(&name) || !Pop(&module)) return false;
    if (At(module).kind != PickleKind::kText || At(name).kind != PickleKind::kText) {
      return Fail("a class whose name is not text");
    }
    return PushGlobal(At(module).text, At(name).text);
  }

  // `instance`: the class is instantiated without its constructor; else any callable is called.
  bool PushCall(bool instance, bool keywords) {
    PickleIndex ignored, arguments, callable;
    if ((keywords && !Pop(&ignored)) || !Pop(&arguments) || !Pop(&callable)) return false;
    if (At(callable).kind != PickleKind::kGlobal) {
      return Fail("it calls something that is not a named class or function");
    }
    const std::string_view name = At(callable).text;
    if (!instance && !IsKnownFunction(Absl(name))) {
      return Fail(absl::StrCat(
          "it calls ", Absl(name),
          ", which no description of a model needs: refused, nothing of it was run. If you trust "
          "the file, save its tensors alone: torch.save(torch.load(FILE)[\"state_dict\"], NEW)"));
    }
    PickleNode node;
    node.kind = PickleKind::kCall;
    node.callable = callable;
    node.arguments = arguments;
    return PushNode(std::move(node));
  }

  bool SetState() {
    PickleIndex state, target;
    if (!Pop(&state) || !Top(&target)) return false;
    if (At(target).kind != PickleKind::kCall) {
      return Fail("it sets the state of something that is not an object");
    }
    At(target).state = state;
    return true;
  }

  bool PushPersistent() {
    PickleNode node;
    node.kind = PickleKind::kPersistent;
    node.elements.resize(1);
    return Pop(&node.elements[0]) && PushNode(std::move(node));
  }

  bool PushLong(std::string_view bytes) {
    if (bytes.size() > 8) return PushKind(PickleKind::kBigInteger);
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    const int unused = static_cast<int>(8 - bytes.size()) * 8;
    if (bytes.empty()) return PushInteger(PickleKind::kInteger, 0);
    return PushInteger(PickleKind::kInteger, static_cast<int64_t>(value << unused) >> unused);
  }

  bool PushFloat() {
    std::string_view bytes;
    return Take(8, &bytes) && PushText(PickleKind::kFloat, bytes);
  }

  bool Remember(uint64_t key) {
    PickleIndex top = 0;
    if (!Top(&top)) return false;
    if (memo_.size() >= kMaxMemo) return Fail("more remembered values than are allowed");
    memo_[key] = top;
    return true;
  }

  bool Recall(uint64_t key) {
    const auto it = memo_.find(key);
    if (it == memo_.end()) return Fail("it recalls a value that it did not remember");
    return Push(it->second);
  }

  template <typename T>
  bool WithNumber(bool (PickleParser::*action)(uint64_t)) {
    T value;
    return TakeNumber(&value) && (this->*action)(value);
  }

  template <typename T>
  bool PushTakenInteger() {
    T value;
    return TakeNumber(&value) && PushInteger(PickleKind::kInteger, value);
  }

  template <typename T>
  bool PushTakenText(PickleKind kind) {
    std::string_view bytes;
    return TakeCounted<T>(&bytes) && PushText(kind, bytes);
  }

  template <typename T>
  bool PushTakenLong() {
    std::string_view bytes;
    return TakeCounted<T>(&bytes) && PushLong(bytes);
  }

  bool Mark() {
    if (marks_.size() >= kMaxStack) return Fail("more marks than are allowed");
    marks_.push_back(stack_.size());
    return true;
  }

  bool Protocol() {
    uint8_t version;
    if (!TakeNumber(&version)) return false;
    if (version < 2 || version > 5) {
      return Fail(absl::StrCat("protocol ", int{version}, ", 2 to 5 are read"));
    }
    return true;
  }

  bool Stop() {
    stopped_ = true;
    if (!marks_.empty()) return Fail("it ends with a mark that is still set");
    return Pop(&graph_.root_);
  }

  bool Drop() {
    PickleIndex ignored;
    if (!marks_.empty() && stack_.size() == marks_.back()) {
      marks_.pop_back();
      return true;
    }
    return Pop(&ignored);
  }

  // Reads and executes one opcode; names as in Python's pickletools.
  bool Execute() {
    uint8_t opcode;
    if (!TakeNumber(&opcode)) return Fail("it ends without its stop mark");
    switch (opcode) {
      case 0x80:  // PROTO
        return Protocol();
      case 0x95: {  // FRAME
        uint64_t ignored;
        return TakeNumber(&ignored);
      }
      case '.':  // STOP
        return Stop();
      case '(':  // MARK
        return Mark();
      case '0':  // POP
        return Drop();
      case '1': {  // POP_MARK
        std::vector<PickleIndex> ignored;
        return PopToMark(&ignored);
      }
      case '2': {  // DUP
        PickleIndex top;
        return Top(&top) && Push(top);
      }
      case 'c':  // GLOBAL
        return PushGlobalLines();
      case 0x93:  // STACK_GLOBAL
        return PushStackGlobal();
      case 'R':  // REDUCE
        return PushCall(/*instance=*/false, /*keywords=*/false);
      case 0x81:  // NEWOBJ
        return PushCall(/*instance=*/true, /*keywords=*/false);
      case 0x92:  // NEWOBJ_EX
        return PushCall(/*instance=*/true, /*keywords=*/true);
      case 'b':  // BUILD
        return SetState();
      case 'Q':  // BINPERSID
        return PushPersistent();
      case 'q':  // BINPUT
        return WithNumber<uint8_t>(&PickleParser::Remember);
      case 'r':  // LONG_BINPUT
        return WithNumber<uint32_t>(&PickleParser::Remember);
      case 0x94:  // MEMOIZE
        return Remember(memo_.size());
      case 'h':  // BINGET
        return WithNumber<uint8_t>(&PickleParser::Recall);
      case 'j':  // LONG_BINGET
        return WithNumber<uint32_t>(&PickleParser::Recall);
      default:
        return ExecuteValue(opcode);
    }
  }

  bool ExecuteValue(uint8_t opcode) {
    switch (opcode) {
      case 'N':  // NONE
        return PushKind(PickleKind::kNone);
      case 0x88:  // NEWTRUE
        return PushInteger(PickleKind::kBool, 1);
      case 0x89:  // NEWFALSE
        return PushInteger(PickleKind::kBool, 0);
      case 'K':  // BININT1
        return PushTakenInteger<uint8_t>();
      case 'M':  // BININT2
        return PushTakenInteger<uint16_t>();
      case 'J':  // BININT
        return PushTakenInteger<int32_t>();
      case 0x8a:  // LONG1
        return PushTakenLong<uint8_t>();
      case 0x8b:  // LONG4
        return PushTakenLong<uint32_t>();
      case 'G':  // BINFLOAT
        return PushFloat();
      case 0x8c:  // SHORT_BINUNICODE
        return PushTakenText<uint8_t>(PickleKind::kText);
      case 'X':  // BINUNICODE
        return PushTakenText<uint32_t>(PickleKind::kText);
      case 0x8d:  // BINUNICODE8
        return PushTakenText<uint64_t>(PickleKind::kText);
      case 'C':  // SHORT_BINBYTES
      case 'U':  // SHORT_BINSTRING
        return PushTakenText<uint8_t>(PickleKind::kBytes);
      case 'B':  // BINBYTES
      case 'T':  // BINSTRING
        return PushTakenText<uint32_t>(PickleKind::kBytes);
      case 0x8e:  // BINBYTES8
      case 0x96:  // BYTEARRAY8
        return PushTakenText<uint64_t>(PickleKind::kBytes);
      case ']':  // EMPTY_LIST
        return PushKind(PickleKind::kList);
      case 'l':  // LIST
        return PushMarked(PickleKind::kList);
      case 'a':  // APPEND
        return AddPopped(PickleKind::kList, 1);
      case 'e':  // APPENDS
        return AddMarked(PickleKind::kList);
      case '}':  // EMPTY_DICT
        return PushKind(PickleKind::kDict);
      case 'd':  // DICT
        return PushMarked(PickleKind::kDict);
      case 's':  // SETITEM
        return AddPopped(PickleKind::kDict, 2);
      case 'u':  // SETITEMS
        return AddMarked(PickleKind::kDict);
      case 0x8f:  // EMPTY_SET
        return PushKind(PickleKind::kSet);
      case 0x90:  // ADDITEMS
        return AddMarked(PickleKind::kSet);
      case 0x91:  // FROZENSET
        return PushMarked(PickleKind::kSet);
      case ')':  // EMPTY_TUPLE
        return PushKind(PickleKind::kTuple);
      case 't':  // TUPLE
        return PushMarked(PickleKind::kTuple);
      case 0x85:  // TUPLE1
        return PushContainer(PickleKind::kTuple, 1);
      case 0x86:  // TUPLE2
        return PushContainer(PickleKind::kTuple, 2);
      case 0x87:  // TUPLE3
        return PushContainer(PickleKind::kTuple, 3);
      default:
        return Fail(absl::StrFormat("opcode 0x%02x is not one of a checkpoint", opcode));
    }
  }

  std::string_view rest_;
  const size_t size_;
  PickleGraph graph_;
  std::vector<PickleIndex> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, PickleIndex> memo_;
  std::string fault_;
  bool stopped_ = false;
};

const PickleNode* PickleGraph::Find(const PickleNode& dict, std::string_view key) const {
  const PickleNode* found = nullptr;
  for (size_t i = 0; i + 1 < dict.elements.size(); i += 2) {
    const PickleNode& candidate = nodes_[dict.elements[i]];
    if (candidate.kind == PickleKind::kText && candidate.text == key) {
      found = &nodes_[dict.elements[i + 1]];  // the last one counts, as in Python
    }
  }
  return found;
}

const PickleNode* PickleGraph::Element(const PickleNode& node, size_t i) const {
  return i < node.elements.size() ? &nodes_[node.elements[i]] : nullptr;
}

const PickleNode* PickleGraph::Argument(const PickleNode& call, size_t i) const {
  if (call.kind != PickleKind::kCall) return nullptr;
  return Element(nodes_[call.arguments], i);
}

std::string_view PickleGraph::Called(const PickleNode& node) const {
  if (node.kind != PickleKind::kCall) return {};
  return nodes_[node.callable].text;
}

absl::StatusOr<PickleGraph> ReadPickle(std::span<const std::byte> bytes) {
  return PickleParser(bytes).Parse();
}

}  // namespace tim4rec
