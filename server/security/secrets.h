// The files of tls.* and auth.*: read at start, and again when they change.
#ifndef TIM4REC_SERVER_SECURITY_SECRETS_H_
#define TIM4REC_SERVER_SECURITY_SECRETS_H_

#include <prometheus/gauge.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/security/access.h"
#include "server/security/tls.h"
#include "server/security/tokens.h"
#include "server/telemetry/metrics.h"

namespace tim4rec {

// Paths; empty: none.
struct SecretFiles {
  std::string certificate;
  std::string key;
  std::string client_ca;
  std::string tokens;
};

// What the files hold, or what is wrong with them; nothing for those that there are none of.
struct SecretTexts {
  std::optional<absl::StatusOr<TlsTexts>> tls;
  std::optional<absl::StatusOr<Tokens>> tokens;

  // All faults.
  absl::Status status() const;

  bool operator==(const SecretTexts&) const = default;
};

// Looks at the files every second from a thread of its own, and takes what two looks found, since
// others may write them as it reads. What does not read, or does not fit, leaves the certificates
// or the tokens as they were, is logged, and shows in tim4rec_secrets_unusable. Thread-safe.
class Secrets {
 public:
  // INVALID_ARGUMENT listing every fault, each with its key. `metrics` outlives it.
  static absl::StatusOr<std::unique_ptr<Secrets>> Open(SecretFiles files, Metrics* metrics);
  ~Secrets();

  // Of one listener; all of this outlives its server.
  std::shared_ptr<grpc::ServerCredentials> CredentialsOfListener();
  const Access& access() const { return access_; }

  // What the files hold now.
  SecretTexts Read() const;
  // Takes what reads well and differs from what there was.
  void Take(const SecretTexts& texts);

 private:
  Secrets(SecretFiles files, const SecretTexts& texts, Metrics* metrics);

  // Of one kind.
  struct Health {
    absl::Status last;
    prometheus::Gauge* unusable;
  };

  void Watch();
  // With mutex_ held.
  void TakeLocked(const SecretTexts& texts);
  void TakeTls(const TlsTexts& texts);
  void TakeTokens(const Tokens& tokens);
  // Shows what is wrong, and logs it once.
  static void Note(const absl::Status& status, Health* health);

  const SecretFiles files_;
  Metrics& metrics_;
  std::unique_ptr<Certificates> certificates_;  // null: clear text
  Access access_;

  std::mutex mutex_;  // guards all below; one Take at a time
  std::condition_variable wake_;
  bool stop_ = false;
  Health tls_health_;
  Health tokens_health_;

  std::thread watch_;  // last: starts when all else is built
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SECURITY_SECRETS_H_
