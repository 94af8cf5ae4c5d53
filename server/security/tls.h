// Certificates of the server, which may be replaced while it serves.
#ifndef TIM4REC_SERVER_SECURITY_TLS_H_
#define TIM4REC_SERVER_SECURITY_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tim4rec {

// PEM texts that fit one another.
struct TlsTexts {
  std::string certificate;  // the server's own first
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
  absl::Time not_after;   // of the server's own certificate

  bool operator==(const TlsTexts&) const = default;
};

// Reads and checks the files; `client_ca` may be empty. INVALID_ARGUMENT listing every fault with
// its key: a file that cannot be read, holds no certificate or key, a key that is encrypted, or is
// not the certificate's. Never quotes a key.
absl::StatusOr<TlsTexts> ReadTls(const std::string& certificate, const std::string& key,
                                 const std::string& client_ca);

// What new connections are shown; those that there are go on as they began. Thread-safe.
class Certificates {
 public:
  explicit Certificates(TlsTexts texts) : texts_(std::move(texts)) {}

  // From the next handshake on. `texts` has a client_ca if the first ones had one.
  void Replace(TlsTexts texts);
  TlsTexts texts() const;

  // For one listener; the certificates outlive its server.
  std::shared_ptr<grpc::ServerCredentials> CredentialsOfListener();

 private:
  friend class ReplaceableCredentials;

  mutable std::mutex mutex_;
  TlsTexts texts_;
  int64_t version_ = 1;  // of texts_
  // Kept for gRPC, which calls them for as long as their listeners are there.
  std::vector<std::shared_ptr<grpc::ServerCredentials>> listeners_;
};

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_SECURITY_TLS_H_
