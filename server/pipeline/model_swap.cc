#include "server/pipeline/model_swap.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/telemetry/log.h"

namespace tim4rec {

absl::StatusOr<std::unique_lock<std::mutex>> ModelSwap::Begin() {
  std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (lock.owns_lock()) return lock;
  return absl::AbortedError("another model is being loaded, promoted or unloaded; try again later");
}

absl::StatusOr<ModelHandle> ModelSwap::Load(const std::string& directory, const std::string& name,
                                            const std::string& backend) {
  auto lock = Begin();
  if (!lock.ok()) return lock.status();
  ModelHandle listed;
  auto model = OpenModel(directory, name, *deps_.backends,
                         backend.empty() ? options_.backend : backend, [&](ModelHandle opened) {
                           absl::Status added = deps_.models->Add(opened);
                           if (added.ok()) listed = std::move(opened);
                           return added;
                         });
  if (model.ok() && options_.exact_only) {
    if (absl::Status exact = CheckExact(**model); !exact.ok()) model = exact;
  }
  if (model.ok()) {
    if (absl::Status follows = deps_.follow_use(model->get()); !follows.ok()) model = follows;
  }
  if (!model.ok()) {
    if (listed != nullptr) deps_.models->Remove(listed.get());
    return model.status();
  }
  deps_.models->Replace(listed.get(), *model);
  Log(LogLevel::kInfo, "model loaded",
      {{"model", (*model)->version}, {"backend", (*model)->engine->backend().name()}});
  return *model;
}

absl::StatusOr<ModelSwap::Promotion> ModelSwap::Promote(std::string_view version,
                                                        const std::function<bool()>& stop) {
  auto lock = Begin();
  if (!lock.ok()) return lock.status();
  auto model = deps_.models->Find(version);
  if (!model.ok()) return model.status();
  const ModelHandle previous = deps_.models->serving();
  if (*model == previous) return Promotion{*model, previous};
  const absl::Time start = absl::Now();
  const int64_t kept_until_ms = (*model)->kept_until_ms;
  const bool kept =
      kept_until_ms != LoadedModel::kForEver && absl::ToUnixMillis(start) < kept_until_ms;
  (*model)->kept_until_ms = LoadedModel::kForEver;
  // The second round is for those who had events meanwhile.
  for (int round = 0; round < 2 && !kept; ++round) {
    absl::Status refolded = deps_.pipeline->Refold(previous, *model, stop);
    if (!refolded.ok()) return refolded;
  }
  if (stop()) return absl::CancelledError("given up before the model served");
  deps_.models->SetServing(*model);
  previous->kept_until_ms = absl::ToUnixMillis(absl::Now() + options_.keep_states_for);
  deps_.pipeline->ReleaseStates();
  deps_.metrics->SetModel((*model)->name(), (*model)->fingerprint(),
                          std::string((*model)->variant()),
                          std::string((*model)->engine->backend().name()));
  deps_.metrics->promotions->Increment();
  Log(LogLevel::kInfo, "model promoted",
      {{"model", (*model)->version},
       {"previous", previous->version},
       {"ms", absl::ToInt64Milliseconds(absl::Now() - start)}});
  return Promotion{*model, previous};
}

absl::Status ModelSwap::Unload(std::string_view version) {
  auto lock = Begin();
  if (!lock.ok()) return lock.status();
  auto model = deps_.models->Find(version);
  if (!model.ok()) return model.status();
  if (*model == deps_.models->serving()) {
    return absl::FailedPreconditionError(
        absl::StrCat((*model)->version, " serves; promote another model first"));
  }
  deps_.models->Remove(model->get());
  (*model)->unloaded = true;
  // After this no worker writes a state of it any more.
  deps_.pipeline->ReleaseStates();
  absl::Status removed = deps_.states->DeleteStates((*model)->fingerprint());
  Log(LogLevel::kInfo, "model unloaded", {{"model", (*model)->version}});
  if (removed.ok()) return absl::OkStatus();
  deps_.metrics->failed_delete->Increment();
  return absl::Status(
      removed.code(),
      absl::StrCat((*model)->version, " is unloaded, its checkpoints are not removed: ",
                   std::string(removed.message())));
}

}  // namespace tim4rec
