#!/usr/bin/env bash
# Installs, builds and runs every test; ends with ctest's summary.
# Usage: tests/run.sh [CTEST ARGUMENT ...]     for instance: tests/run.sh -R store
# TIM4REC_PRESET picks another preset of CMakePresets.json (asan-ubsan, tsan, …).
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${TIM4REC_PRESET:-release}"
deploy/install_packages.sh --tests
deploy/build.sh
ctest --preset "$preset" --parallel "$(nproc)" "$@"
