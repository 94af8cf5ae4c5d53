// Writes to a store until it is killed, and tells on stdout what was acknowledged.
//
// usage: crash_writer DIR FIRST_BATCH
//
// Two threads; thread t writes batch b, as described in crash_batches.h, and then a line "t b".
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "store/rocksdb_store.h"
#include "tests/store/crash_batches.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  tim4rec::RocksDbStoreOptions options;
  options.write_buffer_bytes = 128 << 10;
  auto store = tim4rec::RocksDbStore::Open(argv[1], options);
  if (!store.ok()) {
    std::fprintf(stderr, "%s\n", store.status().ToString().c_str());
    return 1;
  }
  const int first = std::atoi(argv[2]);
  const auto write_batches = [&](int thread) {
    for (int batch = first;; ++batch) {
      const tim4rec::CrashBatch contents(thread, batch);
      const auto durability =
          batch % 4 == 0 ? tim4rec::Durability::kSynced : tim4rec::Durability::kBuffered;
      if (!(*store)->Append(contents.users(), durability).ok()) std::_Exit(1);
      char line[32];
      const int size = std::snprintf(line, sizeof(line), "%d %d\n", thread, batch);
      if (write(STDOUT_FILENO, line, static_cast<size_t>(size)) != size) std::_Exit(1);
      tim4rec::StateRecord record;
      record.payload = std::string(2000, 's');
      const tim4rec::UserState put[] = {
          {contents.users()[0].user_id, "00112233445566778899aabbccddeeff", &record}};
      if (!(*store)->Put(put).ok()) std::_Exit(1);
    }
  };
  std::thread other(write_batches, 1);
  write_batches(0);
}
