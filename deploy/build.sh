#!/usr/bin/env bash
# Configures the release preset and builds it, with a progress line.
# Usage: deploy/build.sh [TARGET ...]     (default: everything)
# TIM4REC_PRESET picks another preset of CMakePresets.json.
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${TIM4REC_PRESET:-release}"
log="build/$preset/build.log"
mkdir -p "build/$preset"

if ! cmake --preset "$preset" >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "build: configuring failed; the whole log is $log" >&2
  exit 1
fi
# NINJA_STATUS is what progress.py reads.
NINJA_STATUS='[%f/%t] ' cmake --build "build/$preset" --target "${@:-all}" 2>&1 \
  | tee -a "$log" | python3 deploy/progress.py --label build || {
  echo "build: failed; the whole log is $log" >&2
  exit 1
}
