// Keeps the trend of a model's items up to what the server records.
#ifndef TIM4REC_SERVER_PIPELINE_MODEL_USE_H_
#define TIM4REC_SERVER_PIPELINE_MODEL_USE_H_

#include "absl/status/status.h"
#include "server/pipeline/models.h"
#include "store/rocksdb_store.h"

namespace tim4rec {

// Tells the model's engine how its items are used in the store, now and as long as the model lives,
// as the use of that share of all users. Nothing, for a model without a trend. Before the model
// serves. Errors: ObserveUse's.
absl::Status FollowUse(RocksDbStore& store, double user_share, LoadedModel* model);

}  // namespace tim4rec

#endif  // TIM4REC_SERVER_PIPELINE_MODEL_USE_H_
