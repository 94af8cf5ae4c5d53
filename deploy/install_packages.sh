#!/usr/bin/env bash
# Installs what deploy/packages.txt lists (Debian 12), and only what is missing.
# Usage: deploy/install_packages.sh [--tests]     with --tests also what only the tests need
set -euo pipefail
list="$(cd "$(dirname "$0")" && pwd)/packages.txt"
case "${1:-}" in
  "") part() { sed '/^\[tests\]$/,$d' "$list"; } ;;
  --tests) part() { sed '/^\[tests\]$/d' "$list"; } ;;
  *) echo "packages: unknown option $1" >&2; exit 2 ;;
esac
mapfile -t wanted < <(part | grep -Ev '^[[:space:]]*(#|$)')

missing=()
for line in "${wanted[@]}"; do
  IFS='| ' read -ra choices <<<"$line"
  found=0
  for package in "${choices[@]}"; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" != installed ] || found=1
  done
  [ "$found" = 1 ] || missing+=("${choices[0]}")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "packages: all ${#wanted[@]} are installed"
  exit 0
fi

echo "packages: installing ${#missing[@]} of ${#wanted[@]}: ${missing[*]}"
terminal=0
[ -t 1 ] && terminal=1
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "packages: root is needed to install them: run this as root, or install sudo" >&2
    exit 1
  }
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  -o Dpkg::Use-Pty=0 "${missing[@]}" \
  | awk -v tty="$terminal" '
      /^Setting up/ { n++; if (tty) { printf "\r\033[Kpackages: %d set up, %s", n, $3; fflush() } }
      END { printf "%spackages: %d set up\n", tty ? "\r\033[K" : "", n }'
