#!/usr/bin/env bash
# Mixed load on a server for a time: nothing may grow, and the store must be right at the end (tests/bench/soak.py).
#
# Usage: tests/soak.sh MINUTES [--rate CALLS_PER_SECOND]     MINUTES: at least 5; TIM4REC_PRESET: another build
set -euo pipefail
cd "$(dirname "$0")/.."
preset="${TIM4REC_PRESET:-release}"
deploy/build.sh tim4rec tim4rec-server tim4rec-loadgen
tests/python_env.sh make "build/$preset/venv"
exec tests/python_env.sh run "build/$preset/venv" python tests/bench/soak.py "build/$preset" "$@"
