// The Admin service of the real process.
#include "gmock/gmock.h"
#include "tests/e2e/server_process.h"

namespace tim4rec {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::MatchesRegex;

using Admin = ServerTest;

TEST_F(Admin, ListsTheModelThatServes) {
  auto server = Serve(dir_ + "/data");
  auto admin = ConnectAdmin(*server);
  v1::ListModelsResponse models;
  Context context;
  ASSERT_TRUE(admin->ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  const v1::Model& model = models.models(0);
  EXPECT_THAT(model.fingerprint(), MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(model.version(), "tiny_model@" + model.fingerprint());
  EXPECT_EQ(model.state(), v1::MODEL_STATE_SERVING);
  // That of this machine, which the server has said.
  EXPECT_THAT(server->errors(), HasSubstr("\"backend\":\"" + model.backend() + "\""));
  EXPECT_EQ(model.item_count(), 60u);
  EXPECT_EQ(model.variant(), "streaming");
  EXPECT_EQ(model.directory(), kTinyModel);
  EXPECT_NEAR(static_cast<double>(model.loaded_at_ms()), static_cast<double>(NowMs()), 60'000);
}

TEST_F(Admin, TellsTheEffectiveConfiguration) {
  auto server = Serve(dir_ + "/data");
  auto admin = ConnectAdmin(*server);
  v1::GetConfigResponse config;
  Context context;
  ASSERT_TRUE(admin->GetConfig(&context, {}, &config).ok());
  EXPECT_THAT(config.yaml(), AllOf(HasSubstr("dir: " + dir_ + "/data"), HasSubstr("max_batch: ")));
}

TEST_F(Admin, DrainEndsTheServerAsSigtermDoes) {
  auto server = Serve(dir_ + "/data");
  auto admin = ConnectAdmin(*server);
  v1::DrainRequest request;
  v1::DrainResponse response;
  {
    request.set_timeout_ms(-1);
    Context context;
    EXPECT_THAT(ViolationsOf(admin->Drain(&context, request, &response)),
                testing::ElementsAre("timeout_ms: -1 is negative"));
  }
  request.set_timeout_ms(5000);
  Context context;
  const grpc::Status drained = admin->Drain(&context, request, &response);
  EXPECT_TRUE(drained.ok()) << drained.error_message();
  EXPECT_EQ(server->Wait(), 0) << server->errors();
  EXPECT_THAT(server->errors(), HasSubstr("draining"));
}

TEST_F(Admin, IsNotOnThePublicListener) {
  auto server = Serve(dir_ + "/data");
  std::string response;
  EXPECT_EQ(CallRaw(server->address(), "/tim4rec.v1.Admin/ListModels", "", &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace tim4rec
