#include "server/security/tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/security/secret_file.h"

namespace tim4rec {
namespace {

struct Free {
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

Owned<BIO> Reader(const std::string& text) {
  return Owned<BIO>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Asks nobody at a terminal for a passphrase.
int NoPassphrase(char*, int, int, void*) { return 0; }

Owned<X509> FirstCertificate(const std::string& pem) {
  Owned<X509> certificate(PEM_read_bio_X509(Reader(pem).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  return certificate;
}

Owned<EVP_PKEY> PrivateKey(const std::string& pem) {
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(Reader(pem).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  return key;
}

absl::Time NotAfter(const X509& certificate) {
  std::tm time{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &time) != 1) return absl::InfinitePast();
  return absl::FromTM(time, absl::UTCTimeZone());
}

}  // namespace

absl::StatusOr<TlsTexts> ReadTls(const std::string& certificate, const std::string& key,
                                 const std::string& client_ca) {
  TlsTexts texts;
  std::vector<std::string> faults;
  const auto read = [&](const char* name, const std::string& path, Privacy privacy,
                        std::string* text) {
    auto content = ReadSmallFile(name, path, privacy);
    if (!content.ok()) {
      faults.emplace_back(content.status().message());
      return false;
    }
    *text = *std::move(content);
    return true;
  };
  Owned<X509> leaf;
  if (read("tls.certificate", certificate, Privacy::kPublic, &texts.certificate)) {
    leaf = FirstCertificate(texts.certificate);
    if (leaf == nullptr) {
      faults.push_back(
          absl::StrCat("tls.certificate: ", certificate, ": holds no certificate (PEM)"));
    } else {
      texts.not_after = NotAfter(*leaf);
    }
  }
  if (read("tls.key", key, Privacy::kSecret, &texts.key)) {
    const Owned<EVP_PKEY> private_key = PrivateKey(texts.key);
    if (private_key == nullptr) {
      faults.push_back(
          absl::StrCat("tls.key: ", key, ": holds no private key (PEM, without a passphrase)"));
    } else if (leaf != nullptr && X509_check_private_key(leaf.get(), private_key.get()) != 1) {
      ERR_clear_error();
      faults.push_back(absl::StrCat(
          "tls.key: ", key, ": is not the key of the first certificate in tls.certificate, ",
          certificate));
    }
  }
  if (!client_ca.empty() && read("tls.client_ca", client_ca, Privacy::kPublic, &texts.client_ca) &&
      FirstCertificate(texts.client_ca) == nullptr) {
    faults.push_back(absl::StrCat("tls.client_ca: ", client_ca, ": holds no certificate (PEM)"));
  }
  if (!faults.empty()) return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
  return texts;
}

// gRPC's FileWatcherCertificateProvider serves whatever lies in the files: between the exchange of
// a key and that of its certificate every handshake fails. gRPC's core asks for certificates at
// each handshake instead, but has no C++ face for that.
class ReplaceableCredentials final : public grpc::ServerCredentials {
 public:
  explicit ReplaceableCredentials(const Certificates* certificates) : certificates_(*certificates) {
    const auto request = certificates->texts().client_ca.empty()
                             ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                             : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, Fetch, this));
  }
  ~ReplaceableCredentials() override { grpc_server_credentials_release(credentials_); }

  // service/ asks for tokens itself, on listeners in clear text too.
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // Called by gRPC at each handshake, one at a time.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    auto& mine = *static_cast<ReplaceableCredentials*>(self);
    std::lock_guard lock(mine.certificates_.mutex_);
    if (std::exchange(mine.version_, mine.certificates_.version_) == mine.certificates_.version_) {
      return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    }
    const TlsTexts& texts = mine.certificates_.texts_;
    const grpc_ssl_pem_key_cert_pair pair = {texts.key.c_str(), texts.certificate.c_str()};
    // gRPC insists on roots, also where no client is asked for a certificate.
    const std::string& roots = texts.client_ca.empty() ? texts.certificate : texts.client_ca;
    *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const Certificates& certificates_;
  grpc_server_credentials* credentials_;
  int64_t version_ = 0;  // of what gRPC has; guarded by certificates_.mutex_
};

void Certificates::Replace(TlsTexts texts) {
  std::lock_guard lock(mutex_);
  texts_ = std::move(texts);
  ++version_;
}

TlsTexts Certificates::texts() const {
  std::lock_guard lock(mutex_);
  return texts_;
}

std::shared_ptr<grpc::ServerCredentials> Certificates::CredentialsOfListener() {
  auto credentials = std::make_shared<ReplaceableCredentials>(this);
  std::lock_guard lock(mutex_);
  return listeners_.emplace_back(std::move(credentials));
}

}  // namespace tim4rec
