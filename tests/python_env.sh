#!/usr/bin/env bash
# The Python of the tests: a virtual environment with requirements.txt and the client of proto/python in it.
#
# Usage: python_env.sh make DIR           makes or refreshes it; exits 77 (skipped) where the package index cannot be reached
#        python_env.sh run DIR COMMAND    runs COMMAND of the environment; exits 77 where it could not be made
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
mode=$1 dir=$2
shift 2

if [ "$mode" = run ]; then
  [ -e "$dir/made" ] || { echo "skipped: no $dir: the package index could not be reached"; exit 77; }
  exec "$dir/bin/$1" "${@:2}"
fi

wanted=$(cat "$root/tests/requirements.txt" "$0" | sha256sum)
if [ "$(cat "$dir/requirements" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$dir"
  /usr/bin/python3 -m venv "$dir"
  if ! "$dir/bin/pip" install -q --retries 1 --timeout 60 --only-binary :all: -r "$root/tests/requirements.txt" \
      >"$dir/pip.log" 2>&1; then
    cat "$dir/pip.log"
    # What pip says of a wrong name or version alone is a fault of ours.
    grep -qE 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|ConnectionResetError' "$dir/pip.log" || exit 1
    echo "skipped: the package index cannot be reached"
    exit 77
  fi
  echo "$wanted" >"$dir/requirements"
fi

# A copy, so that the build leaves nothing in the tree.
rm -f "$dir/made"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/proto" "$copy/"
"$dir/bin/pip" install -q --no-deps --no-build-isolation --no-index --force-reinstall "$copy/proto/python"
"$dir/bin/pip" check -q
touch "$dir/made"
