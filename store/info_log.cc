#include "store/info_log.h"

#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <mutex>

namespace tim4rec {
namespace {

constexpr long kMaxBytes = 4 << 20;

class InfoLog final : public rocksdb::Logger {
 public:
  explicit InfoLog(const std::string& dir)
      : Logger(rocksdb::InfoLogLevel::WARN_LEVEL), path_(dir + "/LOG") {
    file_ = std::fopen(path_.c_str(), "ae");
  }
  ~InfoLog() override {
    if (file_ != nullptr) std::fclose(file_);
  }

  using Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    std::lock_guard lock(mutex_);
    if (file_ != nullptr && std::ftell(file_) > kMaxBytes) Rotate();
    if (file_ == nullptr) return;
    std::timespec now{};
    std::timespec_get(&now, TIME_UTC);
    std::fprintf(file_, "%lld.%03ld ", static_cast<long long>(now.tv_sec), now.tv_nsec / 1'000'000);
    std::vfprintf(file_, format, arguments);
    std::fputc('\n', file_);
    std::fflush(file_);
  }

 private:
  void Rotate() {
    std::fclose(file_);
    std::rename(path_.c_str(), (path_ + ".old").c_str());
    file_ = std::fopen(path_.c_str(), "ae");
  }

  const std::string path_;
  std::mutex mutex_;
  std::FILE* file_;  // null if it could not be opened
};

}  // namespace

std::shared_ptr<rocksdb::Logger> NewInfoLog(const std::string& dir) {
  return std::make_shared<InfoLog>(dir);
}

}  // namespace tim4rec
