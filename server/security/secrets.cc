#include "server/security/secrets.h"

#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "server/security/secret_file.h"
#include "server/telemetry/log.h"

namespace tim4rec {
namespace {

constexpr std::chrono::seconds kLook(1);
constexpr char kTokensKey[] = "auth.tokens_file";

absl::StatusOr<Tokens> ReadTokens(const std::string& path) {
  const auto text = ReadSmallFile(kTokensKey, path, Privacy::kSecret);
  if (!text.ok()) return text.status();
  return Tokens::Parse(*text, std::string(kTokensKey) + ": " + path);
}

SecretTexts ReadFiles(const SecretFiles& files) {
  SecretTexts texts;
  if (!files.certificate.empty()) {
    texts.tls = ReadTls(files.certificate, files.key, files.client_ca);
  }
  if (!files.tokens.empty()) texts.tokens = ReadTokens(files.tokens);
  return texts;
}

std::string Date(absl::Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone());
}

}  // namespace

absl::Status SecretTexts::status() const {
  std::vector<std::string> faults;
  if (tls.has_value() && !tls->ok()) faults.emplace_back(tls->status().message());
  if (tokens.has_value() && !tokens->ok()) faults.emplace_back(tokens->status().message());
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

absl::StatusOr<std::unique_ptr<Secrets>> Secrets::Open(SecretFiles files, Metrics* metrics) {
  const SecretTexts texts = ReadFiles(files);
  if (absl::Status read = texts.status(); !read.ok()) return read;
  return std::unique_ptr<Secrets>(new Secrets(std::move(files), texts, metrics));
}

Secrets::Secrets(SecretFiles files, const SecretTexts& texts, Metrics* metrics)
    : files_(std::move(files)),
      metrics_(*metrics),
      access_(texts.tokens.has_value() ? std::optional<Tokens>(**texts.tokens) : std::nullopt,
              metrics) {
  tls_health_.unusable = metrics->unusable_tls;
  tokens_health_.unusable = metrics->unusable_tokens;
  if (texts.tls.has_value()) {
    certificates_ = std::make_unique<Certificates>(**texts.tls);
    metrics->certificate_expiry->Set(
        absl::ToDoubleSeconds(certificates_->texts().not_after - absl::UnixEpoch()));
  }
  if (texts.tls.has_value() || texts.tokens.has_value()) watch_ = std::thread([this] { Watch(); });
}

Secrets::~Secrets() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (watch_.joinable()) watch_.join();
}

std::shared_ptr<grpc::ServerCredentials> Secrets::CredentialsOfListener() {
  return certificates_ == nullptr ? grpc::InsecureServerCredentials()
                                  : certificates_->CredentialsOfListener();
}

SecretTexts Secrets::Read() const { return ReadFiles(files_); }

void Secrets::Take(const SecretTexts& texts) {
  std::lock_guard lock(mutex_);
  TakeLocked(texts);
}

void Secrets::TakeLocked(const SecretTexts& texts) {
  if (texts.tls.has_value()) {
    if (texts.tls->ok()) TakeTls(**texts.tls);
    Note(texts.tls->status(), &tls_health_);
  }
  if (texts.tokens.has_value()) {
    if (texts.tokens->ok()) TakeTokens(**texts.tokens);
    Note(texts.tokens->status(), &tokens_health_);
  }
}

void Secrets::TakeTls(const TlsTexts& texts) {
  if (certificates_->texts() == texts) return;
  certificates_->Replace(texts);
  metrics_.certificate_expiry->Set(absl::ToDoubleSeconds(texts.not_after - absl::UnixEpoch()));
  Log(LogLevel::kInfo, "new connections get the new certificates",
      {{"not_after", Date(texts.not_after)}});
}

void Secrets::TakeTokens(const Tokens& tokens) {
  if (access_.Has(tokens)) return;
  access_.Replace(tokens);
  Log(LogLevel::kInfo, "the new tokens are valid, others no more", {{"tokens", tokens.size()}});
}

void Secrets::Note(const absl::Status& status, Health* health) {
  health->unusable->Set(status.ok() ? 0 : 1);
  if (!status.ok() && status != health->last) {
    Log(LogLevel::kError, "secrets cannot be used; what was read before stays",
        {{"error", LogText(status)}});
  }
  health->last = status;
}

void Secrets::Watch() {
  SecretTexts last = Read();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kLook, [this] { return stop_; })) {
    // Under the lock, lest it takes back what a Take brings meanwhile.
    SecretTexts now = Read();
    if (now == last) TakeLocked(now);
    last = std::move(now);
  }
}

}  // namespace tim4rec
