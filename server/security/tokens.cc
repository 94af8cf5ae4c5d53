#include "server/security/tokens.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace tim4rec {
namespace {

constexpr size_t kFewestCharacters = 16;
constexpr size_t kMostCharacters = 512;
constexpr size_t kMostTokens = 1000;

struct Role {
  Roles role;
  const char* name;
};
constexpr Role kRoles[] = {{kRead, "read"}, {kWrite, "write"}, {kAdmin, "admin"}};

// 0 if a name is none of them.
Roles ParseRoles(absl::string_view names) {
  Roles roles = 0;
  for (const absl::string_view name : absl::StrSplit(names, ',')) {
    const auto* found = std::find_if(std::begin(kRoles), std::end(kRoles),
                                     [&](const Role& r) { return r.name == name; });
    if (found == std::end(kRoles)) return 0;
    roles |= found->role;
  }
  return roles;
}

bool IsToken(absl::string_view token) {
  return token.size() >= kFewestCharacters && token.size() <= kMostCharacters &&
         std::all_of(token.begin(), token.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::string_view("-._~+/=").find(c) != absl::string_view::npos;
         });
}

}  // namespace

std::string RoleNames(Roles roles) {
  std::vector<std::string> names;
  for (const Role& r : kRoles) {
    if (roles & r.role) names.emplace_back(r.name);
  }
  return absl::StrJoin(names, ", ");
}

TokenDigest DigestOf(std::string_view token) {
  // Looking the algorithm up takes three times as long as the digest.
  static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  TokenDigest digest;
  // Fails for want of memory alone.
  if (EVP_Digest(token.data(), token.size(), digest.data(), nullptr, kSha256, nullptr) != 1) {
    std::abort();
  }
  return digest;
}

absl::StatusOr<Tokens> Tokens::Parse(std::string_view text, std::string_view source) {
  Tokens tokens;
  std::vector<std::string> faults;
  int number = 0;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty() || words[0].front() == '#') continue;
    const Roles roles = ParseRoles(words[0]);
    if (words.size() != 2) {
      faults.push_back(absl::StrCat("line ", number, " is not \"ROLES TOKEN\""));
    } else if (roles == 0) {
      faults.push_back(absl::StrCat(
          "line ", number, " does not begin with read, write, admin, or some of them with commas"));
    } else if (!IsToken(words[1])) {
      faults.push_back(absl::StrCat(
          "line ", number, " has no token of ", kFewestCharacters, " to ", kMostCharacters,
          " characters of A-Z a-z 0-9 - . _ ~ + / = (openssl rand -hex 32)"));
    } else {
      const Token token = {DigestOf({words[1].data(), words[1].size()}), roles};
      if (tokens.Find(token.digest) != 0) {
        faults.push_back(absl::StrCat("line ", number, " repeats a token"));
      }
      tokens.tokens_.push_back(token);
    }
    if (tokens.tokens_.size() > kMostTokens) {
      faults.push_back(absl::StrCat("has more than ", kMostTokens, " tokens"));
      break;
    }
  }
  if (tokens.tokens_.empty() && faults.empty()) faults.push_back("holds no token");
  if (faults.empty()) return tokens;
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(source), ": ", absl::StrJoin(faults, "; ")));
}

Roles Tokens::Find(const TokenDigest& digest) const {
  Roles roles = 0;
  for (const Token& token : tokens_) {
    const bool same = CRYPTO_memcmp(token.digest.data(), digest.data(), digest.size()) == 0;
    roles |= static_cast<Roles>(token.roles * same);
  }
  return roles;
}

}  // namespace tim4rec
