// Tokens, certificates and their files.
#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/security/secrets.h"
#include "tests/server/certificates.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

const std::string kFirst = "first-token-0123456789";
const std::string kSecond = "second+token/0123456789==";
const std::string kThird = "third.token~0123456789";

TEST(Tokens, LinesGiveRoles) {
  const auto tokens = Tokens::Parse(
      "# comment\n\nread " + kFirst + "\r\n  read,write\t" + kSecond + "\nadmin " + kThird, "file");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->size(), 3u);
  EXPECT_EQ(tokens->Find(DigestOf(kFirst)), kRead);
  EXPECT_EQ(tokens->Find(DigestOf(kSecond)), kRead | kWrite);
  EXPECT_EQ(tokens->Find(DigestOf(kThird)), kAdmin);
  EXPECT_EQ(tokens->Find(DigestOf(kFirst + "x")), 0);
  EXPECT_EQ(tokens->Find(DigestOf(kFirst.substr(1))), 0);
  EXPECT_EQ(tokens->Find(DigestOf("")), 0);
}

TEST(Tokens, FaultsNameTheLineAndNeverTheToken) {
  const auto tokens =
      Tokens::Parse("read " + kFirst + "\nreed " + kSecond + "\nwrite\nadmin short\n" + "admin " +
                        kThird + " more\nread " + kThird + ";\nwrite " + kFirst + "\n",
                    "auth.tokens_file: f");
  EXPECT_THAT(Message(tokens.status()),
              AllOf(HasSubstr("auth.tokens_file: f: line 2 does not begin with read, write, admin"),
                    HasSubstr("line 3 is not \"ROLES TOKEN\""),
                    HasSubstr("line 4 has no token of 16 to 512"), HasSubstr("line 5 is not"),
                    HasSubstr("line 6 has no token"), HasSubstr("line 7 repeats a token"),
                    Not(HasSubstr("0123456789")), Not(HasSubstr("short"))));
  EXPECT_THAT(Message(Tokens::Parse("# nothing\n", "f").status()), HasSubstr("f: holds no token"));
  std::string many;
  for (int i = 0; i <= 1000; ++i) many += "read a-token-of-many-" + std::to_string(i) + "\n";
  EXPECT_THAT(Message(Tokens::Parse(many, "f").status()), HasSubstr("more than 1000 tokens"));
}

// What a call that shows `headers` may do with the token of `roles`.
struct FakeContext {
  std::multimap<grpc::string_ref, grpc::string_ref> metadata;
  const std::multimap<grpc::string_ref, grpc::string_ref>& client_metadata() const {
    return metadata;
  }
};

TEST(Access, EveryMethodAsksForItsRoles) {
  Metrics metrics;
  const std::set<Method> reads = {Method::kRecommend, Method::kRecommendForHistory,
                                  Method::kRecommendBatch, Method::kGetUser};
  const std::set<Method> writes = {Method::kRecordInteractions, Method::kStreamInteractions,
                                   Method::kDeleteUser};
  for (const Roles roles : {1, 2, 3, 4, 5, 6, 7}) {
    std::string names = RoleNames(roles);
    names.erase(std::remove(names.begin(), names.end(), ' '), names.end());
    const Access access(*Tokens::Parse(names + " " + kFirst, "f"), &metrics);
    const Credential shown =
        access.CredentialOf(FakeContext{{{"authorization", "Bearer first-token-0123456789"}}});
    for (int m = 0; m < kMethods; ++m) {
      const auto method = static_cast<Method>(m);
      const Roles needed = reads.contains(method)    ? kRead
                           : writes.contains(method) ? kWrite
                           : method == Method::kRecordAndRecommend
                               ? static_cast<Roles>(kRead | kWrite)
                               : kAdmin;
      const absl::Status allowed = access.Check(shown, method);
      EXPECT_EQ(allowed.code(), (roles & needed) == needed ? absl::StatusCode::kOk
                                                           : absl::StatusCode::kPermissionDenied)
          << MethodName(method) << " with " << names;
      if (!allowed.ok()) {
        EXPECT_THAT(Message(allowed), AllOf(HasSubstr(std::string(MethodName(method)) +
                                                      " needs a token for " + RoleNames(needed)),
                                            HasSubstr("this one is for " + RoleNames(roles))));
      }
    }
  }
}

TEST(Access, OneBearerTokenIsAskedFor) {
  Metrics metrics;
  Access access(*Tokens::Parse("read " + kFirst, "f"), &metrics);
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;
  const std::pair<Metadata, const char*> cases[] = {
      {{}, "no bearer token"},
      {{{"authorization", "Basic first-token-0123456789"}}, "no bearer token"},
      {{{"authorization", "first-token-0123456789"}}, "no bearer token"},
      {{{"authorization", "Bearer"}}, "no bearer token"},
      {{{"authorization", "Bearer first-token-0123456789"},
        {"authorization", "Bearer first-token-0123456789"}},
       "no bearer token"},
      {{{"authorization", "Bearer "}}, "knows no such token"},
      {{{"authorization", "Bearer first-token-012345678"}}, "knows no such token"},
      {{{"authorization", "Bearer first-token-0123456789 "}}, "knows no such token"},
  };
  for (const auto& [metadata, message] : cases) {
    const absl::Status refused =
        access.Check(access.CredentialOf(FakeContext{metadata}), Method::kRecommend);
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(Message(refused), AllOf(HasSubstr(message), Not(HasSubstr("first-token"))));
  }
  EXPECT_EQ(metrics.refused_no_token->Value(), 5);
  EXPECT_EQ(metrics.refused_unknown_token->Value(), 3);
  const Credential shown =
      access.CredentialOf(FakeContext{{{"authorization", "bearer first-token-0123456789"}}});
  EXPECT_TRUE(access.Check(shown, Method::kRecommend).ok());
  access.Replace(*Tokens::Parse("read " + kSecond, "f"));
  EXPECT_EQ(access.Check(shown, Method::kRecommend).code(), absl::StatusCode::kUnauthenticated);
}

class SecretsTest : public testing::Test {
 protected:
  SecretsTest() {
    std::string pattern = testing::TempDir() + "/secrets_XXXXXX";
    dir_ = mkdtemp(pattern.data());
  }
  ~SecretsTest() override { std::filesystem::remove_all(dir_); }

  std::string dir_;
  Metrics metrics_;
};

TEST_F(SecretsTest, WhatDoesNotFitIsListedWithItsKey) {
  const std::string a = dir_ + "/a", b = dir_ + "/b";
  MakeCertificate(a);
  MakeCertificate(b);
  EXPECT_TRUE(ReadTls(a + ".crt", a + ".key", b + ".crt").ok());
  EXPECT_THAT(Message(ReadTls(a + ".crt", b + ".key", "").status()),
              HasSubstr("tls.key: " + b + ".key: is not the key of the first certificate"));
  EXPECT_THAT(Message(ReadTls(dir_ + "/absent", dir_, a + ".key").status()),
              AllOf(HasSubstr("tls.certificate: " + dir_ + "/absent: No such file"),
                    HasSubstr("tls.key: " + dir_ + ": is no file"),
                    HasSubstr("tls.client_ca: " + a + ".key: holds no certificate")));
  EXPECT_THAT(Message(ReadTls(a + ".key", a + ".crt", "").status()),
              AllOf(HasSubstr("tls.certificate: " + a + ".key: holds no certificate"),
                    HasSubstr("tls.key: " + a + ".crt: ")));
  WriteSecret(dir_ + "/half.key", ReadText(a + ".key").substr(0, 60));
  EXPECT_THAT(Message(ReadTls(a + ".crt", dir_ + "/half.key", "").status()),
              AllOf(HasSubstr("holds no private key"), Not(HasSubstr("MIG"))));
  ASSERT_EQ(std::system(("openssl pkey -aes128 -passout pass:word -in " + a + ".key -out " + dir_ +
                         "/locked.key")
                            .c_str()),
            0);
  std::filesystem::permissions(dir_ + "/locked.key", std::filesystem::perms(0600));
  EXPECT_THAT(Message(ReadTls(a + ".crt", dir_ + "/locked.key", "").status()),
              HasSubstr("without a passphrase"));
}

TEST_F(SecretsTest, FilesThatEverybodyMayReadAreRefused) {
  const std::string tokens = dir_ + "/tokens";
  MakeCertificate(dir_ + "/a");
  WriteSecret(tokens, "read " + kFirst);
  const SecretFiles files = {dir_ + "/a.crt", dir_ + "/a.key", "", tokens};
  EXPECT_TRUE(Secrets::Open(files, &metrics_).ok());
  std::filesystem::permissions(tokens, std::filesystem::perms(0640));
  EXPECT_TRUE(Secrets::Open(files, &metrics_).ok());
  std::filesystem::permissions(tokens, std::filesystem::perms(0644));
  std::filesystem::permissions(dir_ + "/a.key", std::filesystem::perms(0604));
  EXPECT_THAT(Message(Secrets::Open(files, &metrics_).status()),
              AllOf(HasSubstr("auth.tokens_file: " + tokens +
                              ": everybody may read it: chmod o= " + tokens),
                    HasSubstr("tls.key: " + dir_ + "/a.key: everybody may read it")));
}

TEST_F(SecretsTest, AFaultyFileLeavesWhatThereWasAndShows) {
  const std::string path = dir_ + "/tokens";
  WriteSecret(path, "read " + kFirst);
  auto secrets = Secrets::Open({"", "", "", path}, &metrics_);
  ASSERT_TRUE(secrets.ok()) << secrets.status();
  const auto allowed = [&](const std::string& token) {
    return (*secrets)->access().Check(DigestOf(token), Method::kRecommend).ok();
  };
  const auto wait_for = [&](const std::function<bool()>& holds) {
    for (int i = 0; i < 2000 && !holds(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_TRUE(holds());
  };
  WriteSecret(path, "read");
  wait_for([&] { return metrics_.unusable_tokens->Value() == 1; });
  EXPECT_TRUE(allowed(kFirst));
  WriteSecret(path, "read " + kFirst + "\nread " + kSecond);
  wait_for([&] { return allowed(kSecond); });
  EXPECT_TRUE(allowed(kFirst));
  EXPECT_EQ(metrics_.unusable_tokens->Value(), 0);
  std::filesystem::remove(path);
  wait_for([&] { return metrics_.unusable_tokens->Value() == 1; });
  EXPECT_TRUE(allowed(kFirst));
  WriteSecret(path, "read " + kSecond);
  wait_for([&] { return !allowed(kFirst); });
  EXPECT_TRUE(allowed(kSecond));
  EXPECT_EQ(metrics_.unusable_tls->Value(), 0);
}

}  // namespace
}  // namespace tim4rec
