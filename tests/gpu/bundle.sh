#!/usr/bin/env bash
# Server and load generator with their libraries, and a random model of the served sizes, in a folder that runs on another
# Linux machine: what tests/gpu/run.sh --server takes. With --cli also tim4rec, which brings libtorch: then states are verified
# there too.
#
# Usage: tests/gpu/bundle.sh [--cli] BUILD DIR [ITEMS]     BUILD: build/release, built; DIR is replaced; ITEMS: 100000
set -euo pipefail
components=(serve)
[ "${1:-}" != --cli ] || { components+=(cli); shift; }
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
build="$1" dir="$2" items="${3:-100000}"
rm -rf "$dir"
for component in "${components[@]}"; do
  cmake --install "$build" --prefix "$dir" --component "$component" --strip >/dev/null
done
# The backend's own tests, which take the device where there is one.
cp "$build/bin/backend_contract_test" "$build/bin/cuda_backend_test" "$dir/bin/"
strip "$dir"/bin/*_test
"$build/bin/write_tiny_model" "$dir/model" "$items"
du -sh "$dir" | sed 's/^/bundle: /'
