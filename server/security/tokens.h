// Bearer tokens and the roles that they give.
#ifndef TIM4REC_SERVER_SECURITY_TOKENS_H_
#define TIM4REC_SERVER_SECURITY_TOKENS_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tim4rec {

// A set of roles. No role holds another.
using Roles = uint8_t;
inline constexpr Roles kRead = 1;
inline constexpr Roles kWrite = 2;
inline constexpr Roles kAdmin = 4;

// "read, write".
std::string RoleNames(Roles roles);

// SHA-256 of a token.
using TokenDigest = std::array<uint8_t, 32>;
TokenDigest DigestOf(std::string_view token);

// Holds digests alone.
class Tokens {
 public:
  // Lines of "ROLES TOKEN": read, write, admin, several of them joined by commas; 16 to 512
  // characters of A-Z a-z 0-9 - . _ ~ + / =. Empty lines and those that begin with # are skipped.
  // INVALID_ARGUMENT beginning with `source` and listing the faulty lines by number, never by
  // content; for a token that is there twice, no token at all, or more than 1000.
  static absl::StatusOr<Tokens> Parse(std::string_view text, std::string_view source);

  // 0 if there is no such token. The time that it takes tells nothing about which one it is.
  Roles Find(const TokenDigest& digest) const;

  size_t size() const { return tokens_.size(); }
  bool operator==(const Tokens&) const = default;

 private:
  struct Token {
    TokenDigest digest;
    Roles roles;
    bool operator==(const Token&) const = default;
  };
  std::vector<Token> tokens_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SECURITY_TOKENS_H_
