// Reads Python pickles without running them: no import, no call, no object. The result is a graph
// of what the pickle says, calls and instances included, of which the reader of a certain format
// understands what it knows.
#ifndef TIM4REC_MODEL_WEIGHTS_PICKLE_READER_H_
#define TIM4REC_MODEL_WEIGHTS_PICKLE_READER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tim4rec {

enum class PickleKind {
  kNone,
  kBool,
  kInteger,
  kBigInteger,  // beyond 64 bits; its value is not kept
  kFloat,
  kText,
  kBytes,
  kList,
  kTuple,
  kDict,
  kSet,
  kGlobal,      // a reference to "module.name"
  kCall,        // callable(*arguments), or an instance of the class `callable`
  kPersistent,  // what the enclosing format keeps elsewhere: element 0 says what
};

using PickleIndex = uint32_t;
inline constexpr PickleIndex kNoPickleNode = UINT32_MAX;

struct PickleNode {
  PickleKind kind = PickleKind::kNone;
  int64_t integer = 0;                   // kBool, kInteger
  std::string_view text;                 // kText (UTF-8 unless the file lies), kBytes, kGlobal;
                                         // kFloat: its eight bytes, big-endian
  std::vector<PickleIndex> elements;     // containers; dicts as key, value, …; also what is added
                                         // to the result of a call
  PickleIndex callable = kNoPickleNode;  // kCall
  PickleIndex arguments = kNoPickleNode;  // kCall: usually a tuple
  PickleIndex state = kNoPickleNode;      // what the object would be restored from
};

// Views the bytes it was read from. Values may be shared, and may contain themselves: walk it only
// along known paths.
class PickleGraph {
 public:
  const PickleNode& node(PickleIndex index) const { return nodes_[index]; }
  const PickleNode& root() const { return nodes_[root_]; }

  // The value of a text key in a dict or in what is built on one; null if absent.
  const PickleNode* Find(const PickleNode& dict, std::string_view key) const;
  // Element `i`; null if there are fewer.
  const PickleNode* Element(const PickleNode& node, size_t i) const;
  // Argument `i` of a call; null if there are fewer or it is no call.
  const PickleNode* Argument(const PickleNode& call, size_t i) const;
  // The "module.name" that a call calls; empty if it is no call.
  std::string_view Called(const PickleNode& node) const;

 private:
  friend class PickleParser;
  std::vector<PickleNode> nodes_;
  std::deque<std::string> names_;  // what kGlobal nodes view
  PickleIndex root_ = 0;
};

// Parses one pickle of protocols 2 to 5. References to classes and instances of them are kept as
// opaque values; a call of a function is kept if it is one that torch, numpy, pandas or RecBole
// write for their own values, else INVALID_ARGUMENT names it. INVALID_ARGUMENT also on anything
// malformed or larger than a checkpoint's description can be; memory is bounded by a multiple of
// the bytes and by about 1 GiB.
absl::StatusOr<PickleGraph> ReadPickle(std::span<const std::byte> bytes);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_WEIGHTS_PICKLE_READER_H_
