#include "server/service/parse.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/reflection.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"

namespace tim4rec {
namespace {

namespace pb = google::protobuf;

void StringsToBytes(pb::DescriptorProto* message) {
  for (pb::FieldDescriptorProto& field : *message->mutable_field()) {
    if (field.type() == pb::FieldDescriptorProto::TYPE_STRING) {
      field.set_type(pb::FieldDescriptorProto::TYPE_BYTES);
    }
  }
  for (pb::DescriptorProto& nested : *message->mutable_nested_type()) StringsToBytes(&nested);
}

// The same messages with `bytes` for `string`, which is the same on the wire, and is not checked.
class Twins {
 public:
  std::unique_ptr<pb::Message> NewTwin(const pb::Descriptor& of) {
    std::lock_guard lock(mutex_);
    const pb::Descriptor* twin = pool_.FindMessageTypeByName(of.full_name());
    if (twin == nullptr) {
      pb::FileDescriptorProto file;
      of.file()->CopyTo(&file);
      for (pb::DescriptorProto& message : *file.mutable_message_type()) StringsToBytes(&message);
      if (pool_.BuildFile(file) == nullptr) return nullptr;
      twin = pool_.FindMessageTypeByName(of.full_name());
    }
    return std::unique_ptr<pb::Message>(factory_.GetPrototype(twin)->New());
  }

 private:
  std::mutex mutex_;
  pb::DescriptorPool pool_;
  pb::DynamicMessageFactory factory_{&pool_};
};

// Empties every field of `twin` that is `string` in `original` and holds no UTF-8.
void EmptyBrokenText(const pb::Descriptor& original, const std::string& prefix, pb::Message* twin,
                     BrokenText* broken) {
  const pb::Reflection& reflection = *twin->GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(*twin, &fields);
  for (const pb::FieldDescriptor* field : fields) {
    const pb::FieldDescriptor* declared = original.FindFieldByNumber(field->number());
    if (declared == nullptr) continue;
    const bool text = declared->type() == pb::FieldDescriptor::TYPE_STRING;
    const bool nested = declared->type() == pb::FieldDescriptor::TYPE_MESSAGE;
    if (!text && !nested) continue;
    const int count = field->is_repeated() ? reflection.FieldSize(*twin, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string path = prefix + field->name();
      if (field->is_repeated()) absl::StrAppend(&path, "[", i, "]");
      if (nested) {
        pb::Message* inner = field->is_repeated()
                                 ? reflection.MutableRepeatedMessage(twin, field, i)
                                 : reflection.MutableMessage(twin, field);
        EmptyBrokenText(*declared->message_type(), path + ".", inner, broken);
      } else if (field->is_repeated()) {
        if (IsValidUtf8(reflection.GetRepeatedString(*twin, field, i))) continue;
        reflection.SetRepeatedString(twin, field, i, "");
        broken->insert(path);
      } else {
        if (IsValidUtf8(reflection.GetString(*twin, field))) continue;
        reflection.SetString(twin, field, "");
        broken->insert(path);
      }
    }
  }
}

template <typename Message>
bool ParseBuffer(const grpc::ByteBuffer& buffer, Message* message) {
  grpc::ByteBuffer view = buffer;  // shares the slices; the reader empties it
  grpc::ProtoBufferReader reader(&view);
  return reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
}

}  // namespace

bool IsValidUtf8(std::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    if (*p < 0x80) {
      ++p;
      continue;
    }
    const int length = *p >= 0xc2 && *p <= 0xdf   ? 2
                       : (*p & 0xf0) == 0xe0      ? 3
                       : *p >= 0xf0 && *p <= 0xf4 ? 4
                                                  : 0;
    if (length == 0 || end - p < length) return false;
    for (int i = 1; i < length; ++i) {
      if ((p[i] & 0xc0) != 0x80) return false;
    }
    // Overlong forms, surrogates, and what lies beyond U+10FFFF.
    if (*p == 0xe0 && p[1] < 0xa0) return false;
    if (*p == 0xed && p[1] > 0x9f) return false;
    if (*p == 0xf0 && p[1] < 0x90) return false;
    if (*p == 0xf4 && p[1] > 0x8f) return false;
    p += length;
  }
  return true;
}

absl::Status ParseRequest(const grpc::ByteBuffer& buffer, pb::Message* message,
                          BrokenText* broken) {
  if (ParseBuffer(buffer, message)) return absl::OkStatus();
  static Twins& twins = *new Twins;
  const pb::Descriptor& descriptor = *message->GetDescriptor();
  const std::unique_ptr<pb::Message> twin = twins.NewTwin(descriptor);
  if (twin != nullptr && ParseBuffer(buffer, twin.get())) {
    EmptyBrokenText(descriptor, "", twin.get(), broken);
    message->Clear();
    if (message->ParseFromString(twin->SerializeAsString())) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the request's bytes are no ", descriptor.full_name()));
}

}  // namespace tim4rec
