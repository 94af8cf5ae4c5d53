#!/usr/bin/env bash
# All that needs a GPU, in one go and under 8 minutes: every kernel against the scalar truth, compute-sanitizer on small
# cases, then the benches of G1 to G4 with their ceilings, and, where Python has PyTorch, beside it. Needs nvcc, a C++
# compiler and CMake, or --programs. Without a GPU it says so and exits with 77.
#
# Usage: tests/gpu/run.sh [--json FILE] [--programs DIR] [--server DIR]
#   --json FILE      also write the benches' figures to it, a JSON object per line
#   --programs DIR   take the programs built there (build/release/bin, or another build/gpu/bin) instead of building them
#   --server DIR     instead, a server from a bundle (tests/gpu/bundle.sh) end to end, cuda and cpu on one store
set -euo pipefail
cd "$(dirname "$0")/../.."
json=/dev/null programs="" bundle=""
while [ $# -gt 0 ]; do
  case "$1" in
    --json) json="$(realpath "$2")"; : >"$json"; shift 2 ;;
    --programs) programs="$2"; shift 2 ;;
    --server) bundle="$2"; shift 2 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

# The programs ask the driver themselves; this is for where there is none at all.
if ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
  echo "gpu: no NVIDIA device on this machine: nothing was checked or measured" >&2
  exit 77
fi

if [ -n "$bundle" ]; then
  LD_LIBRARY_PATH="$bundle/lib" timeout 200 "$bundle/bin/backend_contract_test" --gtest_brief=1 --gtest_filter='*/cuda'
  LD_LIBRARY_PATH="$bundle/lib" timeout 200 "$bundle/bin/cuda_backend_test" --gtest_brief=1 \
    --gtest_filter='*ThisMachinesDevice'
  python3 tests/gpu/serve.py "$bundle"
  exit
fi

mkdir -p build
say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }
if [ -z "$programs" ]; then
  say "building"
  cmake -S tests/gpu/device -B build/gpu >build/gpu.log 2>&1 || { tail -n 20 build/gpu.log >&2; exit 1; }
  cmake --build build/gpu -j "$(nproc)" >>build/gpu.log 2>&1 || { tail -n 40 build/gpu.log >&2; exit 1; }
  programs=build/gpu/bin
fi

for check in "$programs"/*_check; do
  case "$check" in */host_*) continue ;; esac  # the same on the host
  say "$(basename "$check")"
  timeout 120 "$check"
done

sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)"
if [ -n "$sanitizer" ]; then
  for tool in memcheck racecheck synccheck; do
    for case in "fold_check --small 1 --models 2" rank_check bulk_check; do
      say "compute-sanitizer $tool: $case"
      # shellcheck disable=SC2086
      TIM4REC_TEST_SMALL=1 timeout 30 "$sanitizer" --tool "$tool" --error-exitcode 1 "$programs/"$case >build/gpu_sanitizer.log 2>&1 || {
        rc=$?
        tail -n 20 build/gpu_sanitizer.log
        if [ $rc -ne 124 ] || grep -qE '^=+ .*(Invalid|Uninitialized|hazard|Barrier error|Program hit)' build/gpu_sanitizer.log; then
          exit 1
        fi
        echo "not finished within 30 s; nothing was found until then"
      }
      tail -n 1 build/gpu_sanitizer.log
    done
  done
else
  echo "gpu: no compute-sanitizer here: memory, races and barriers are checked by tests/gpu/host_device.h alone" >&2
fi

for bench in "$programs"/bench_*; do
  say "$(basename "$bench")"
  timeout 120 "$bench" | tee -a "$json"
done

if python3 -c 'import torch' 2>/dev/null; then
  say "peers"
  minutes=$(((420 - SECONDS) / 60))
  python3 tests/gpu/bench.py "$programs/libtim4rec_gpu_bench.so" --json "$json" --minutes "$((minutes > 1 ? minutes : 1))"
else
  echo "gpu: no PyTorch here: nothing was compared with it" >&2
fi
say "done"
