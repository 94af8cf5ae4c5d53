// What any store must do; instantiated for each of them.
#ifndef TIM4REC_TESTS_STORE_STORE_CONTRACT_H_
#define TIM4REC_TESTS_STORE_STORE_CONTRACT_H_

#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

// A store under test, which keeps its bytes over Reopen.
class StoreUnderTest {
 public:
  virtual ~StoreUnderTest() = default;
  virtual EventLog& log() = 0;
  virtual StateStore& states() = 0;
  virtual void Reopen() = 0;
};

struct StoreKind {
  std::string name;
  std::function<std::unique_ptr<StoreUnderTest>()> make;
};

class StoreContract : public testing::TestWithParam<StoreKind> {
 protected:
  std::unique_ptr<StoreUnderTest> under_test_ = GetParam().make();
  EventLog& log() { return under_test_->log(); }
  StateStore& states() { return under_test_->states(); }
};

}  // namespace tim4rec

#endif  // TIM4REC_TESTS_STORE_STORE_CONTRACT_H_
