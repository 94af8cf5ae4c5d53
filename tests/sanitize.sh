#!/usr/bin/env bash
# Builds the asan-ubsan and tsan presets and runs every test of each: for every night, and before a release.
#
# Usage: tests/sanitize.sh [PRESET ...] [-- CTEST ARGUMENT ...]     default: asan-ubsan tsan, all tests
#
# A report ends the process that made it, and so fails the test, also where the server made it. Left out by the CMakeLists:
#   both   e2e_disk_test preloads a library, and a sanitizer's own must be the first one of a process;
#          fuzz_* run clang's sanitizer (the gcc builds of the targets, fuzz_*_corpus, run under ours);
#          instruction_counts is of the release build
#   tsan   tests/gpu is one thread; bundle_test runs where tsan.supp is not. That file says what tsan cannot see of
#          gRPC and RocksDB, which Debian has not built for it
set -euo pipefail
cd "$(dirname "$0")/.."
# The default quarantine, 256 MB, would hide what tests of memory look for.
export ASAN_OPTIONS="abort_on_error=1:quarantine_size_mb=32:${ASAN_OPTIONS:-}"
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0:${LSAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=1:second_deadlock_stack=1:ignore_noninstrumented_modules=1:suppressions=$PWD/tests/tsan.supp:${TSAN_OPTIONS:-}"

presets=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  presets+=("$1")
  shift
done
[ $# -eq 0 ] || shift
[ ${#presets[@]} -gt 0 ] || presets=(asan-ubsan tsan)
failed=()
for preset in "${presets[@]}"; do
  TIM4REC_PRESET="$preset" tests/run.sh "$@" || failed+=("$preset")
done
[ ${#failed[@]} -eq 0 ] || { echo "sanitize: failed: ${failed[*]}" >&2; exit 1; }
