// Who may call what.
#ifndef TIM4REC_SERVER_SECURITY_ACCESS_H_
#define TIM4REC_SERVER_SECURITY_ACCESS_H_

#include <grpcpp/support/string_ref.h>

#include <map>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "server/security/tokens.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// What a call shows: the digest of its bearer token.
using Credential = std::optional<TokenDigest>;

// Thread-safe.
class Access {
 public:
  // Without tokens everybody may call everything.
  Access(std::optional<Tokens> tokens, Metrics* metrics)
      : on_(tokens.has_value()), metrics_(*metrics), tokens_(std::move(tokens)) {}

  // From the next check on. Only if there were tokens from the start.
  void Replace(Tokens tokens);
  bool Has(const Tokens& tokens) const;

  // Of the metadata "authorization: Bearer TOKEN"; read only if there are tokens.
  template <typename ServerContext>
  Credential CredentialOf(const ServerContext& context) const {
    if (!on_) return std::nullopt;
    return FromMetadata(context.client_metadata());
  }

  // OK, or UNAUTHENTICATED or PERMISSION_DENIED saying what to do, counted by reason.
  absl::Status Check(const Credential& credential, Method method) const;

 private:
  static Credential FromMetadata(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata);

  const bool on_;
  Metrics& metrics_;
  mutable std::mutex mutex_;
  std::optional<Tokens> tokens_;  // guarded by mutex_
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SECURITY_ACCESS_H_
