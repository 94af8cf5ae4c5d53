// Certificates for tests, made by the openssl program.
#ifndef TIM4REC_TESTS_SERVER_CERTIFICATES_H_
#define TIM4REC_TESTS_SERVER_CERTIFICATES_H_

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

namespace tim4rec {

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A file that only its owner may read, there at once and whole.
inline void WriteSecret(const std::string& path, const std::string& text) {
  std::ofstream(path + ".new") << text;
  std::filesystem::permissions(
      path + ".new", std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  std::filesystem::rename(path + ".new", path);
}

// BASE.crt and BASE.key: of localhost, signed by AUTHORITY.crt and .key; an authority itself if
// that is empty.
inline void MakeCertificate(const std::string& base, const std::string& authority = "") {
  std::string command =
      "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
      "-days 2 -subj /CN=" +
      std::filesystem::path(base).filename().string() + " -keyout " + base + ".key -out " + base +
      ".crt";
  if (!authority.empty()) {
    command += " -CA " + authority + ".crt -CAkey " + authority +
               ".key -addext basicConstraints=critical,CA:false"
               " -addext subjectAltName=DNS:localhost,IP:127.0.0.1";
  }
  ASSERT_EQ(std::system((command + " 2>/dev/null").c_str()), 0) << command;
}

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_SERVER_CERTIFICATES_H_
