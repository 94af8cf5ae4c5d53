// Is a user's state what the log gives?
#ifndef TIM4REC_SERVER_PIPELINE_VERIFY_USER_H_
#define TIM4REC_SERVER_PIPELINE_VERIFY_USER_H_

#include "absl/status/status.h"
#include "server/pipeline/job.h"
#include "server/pipeline/models.h"
#include "server/pipeline/residents.h"
#include "store/event_log.h"
#include "store/state_store.h"

namespace tim4rec {

// Folds the user's log from zero, or from what retention kept, and compares, byte for byte, with
// the resident state (null if the user is not resident), which has nothing pending and is not
// behind, and with the checkpoint. Called by the worker that owns the user. FAILED_PRECONDITION for
// a backend that is not exact; else the log's errors, the store's, Backend's.
absl::Status VerifyUser(const LoadedModel& model, const EventLog& log, const StateStore& states,
                        std::string_view user_id, const Resident* resident,
                        VerifyUserCommand* command);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_VERIFY_USER_H_
