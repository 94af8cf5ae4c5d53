#!/usr/bin/env bash
# Runs clang-tidy with .clang-tidy over our C++ sources; a warning is an error.
# Usage: tests/tree/run_clang_tidy.sh [FILE ...]     (default: every .cc that the preset compiles)
# Needs a configured and built preset (TIM4REC_PRESET, default release) for compile_commands.json and the
# generated headers. Takes about a quarter of an hour on 2 cores, so it is not part of the tests. Files that
# include libtorch are left out and named: clang 14 cannot parse libtorch 1.13's headers as C++20.
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${TIM4REC_PRESET:-release}"
database="build/$preset/compile_commands.json"
[ -f "$database" ] || { echo "run_clang_tidy: no $database: run deploy/build.sh first" >&2; exit 1; }
files=("$@")
if [ ${#files[@]} -eq 0 ]; then
  mapfile -t files < <(git ls-files 'model/*.cc' 'store/*.cc' 'server/*.cc' 'tests/*.cc')
fi
# g++'s precompiled headers are not clang's: the compile commands go without them.
stripped=$(mktemp -d)
trap 'rm -rf "$stripped"' EXIT
sed -E 's/-Winvalid-pch//g; s/-include [^ ]*cmake_pch[^ ]*//g' "$database" >"$stripped/compile_commands.json"
with_torch=$(ninja -C "build/$preset" -t deps |
  awk '/^[^ ].*: #deps/ { object = $1 } /\/torch\// { print object }' | sort -u)
checked=()
for file in "${files[@]}"; do
  grep -q "/$file\"" "$database" || continue
  if grep -q "/$(basename "$file").o:" <<<"$with_torch"; then
    echo "run_clang_tidy: left out, includes libtorch: $file"
  else
    checked+=("$file")
  fi
done
echo "run_clang_tidy: ${#checked[@]} files"
# The count of warnings in others' headers, one line a file, is noise.
printf '%s\0' "${checked[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 -p "$stripped" --quiet \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-unused-command-line-argument \
    2> >(grep -vE '^[0-9]+ warnings? (generated|treated as errors)' >&2)
echo "run_clang_tidy: clean"
