#!/usr/bin/env bash
# Fails, naming each place, if a C++ or CUDA source is not formatted as .clang-format says.
# Usage: tests/tree/check_format.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/../.."
mapfile -t files < <(find model store server tests \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \))
if [ "${1:-}" = --fix ]; then
  clang-format-14 -i "${files[@]}"
else
  clang-format-14 --dry-run -Werror "${files[@]}" || {
    echo "check_format: run tests/tree/check_format.sh --fix" >&2
    exit 1
  }
fi
echo "check_format: ${#files[@]} files"
