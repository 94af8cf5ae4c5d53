// Parsing of requests whose text may be malformed.
#ifndef TIM4REC_SERVER_SERVICE_PARSE_H_
#define TIM4REC_SERVER_SERVICE_PARSE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace tim4rec {

// Paths of string fields that did not hold UTF-8, for instance "interactions[3].item_id".
using BrokenText = std::set<std::string>;

// Parses `buffer` into `message`, whose file imports no other. proto3's own parser refuses a
// message as a whole if one string is not UTF-8; here such a string is left empty and its path goes
// into `broken`, so that the caller can answer for that field alone. Only a message with such a
// string pays for it. INVALID_ARGUMENT if the bytes are no such message.
absl::Status ParseRequest(const grpc::ByteBuffer& buffer, google::protobuf::Message* message,
                          BrokenText* broken);

bool IsValidUtf8(std::string_view text);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SERVICE_PARSE_H_
