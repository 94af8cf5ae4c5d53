#!/usr/bin/env bash
# Builds the Dockerfile's stages without a container engine: its instructions are executed in Debian root file systems
# made by debootstrap; then the server runs there as the image says, with a read-only root, is called, and ends cleanly.
# Not part of ctest: it installs the packages and compiles everything, 15 minutes on 2 idle cores.
#
# Usage: dockerfile_test.sh [FOLDER [BINARY]]     as root; needs debootstrap and the network
#   FOLDER  keeps the root file systems (4 GB); a later run goes on from there if the instructions are the same
#   BINARY  a tim4rec-server built on Debian 12 before, in place of compiling one
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
[ "$(id -u)" = 0 ] || { echo "skipped: root is needed for chroot"; exit 77; }
command -v debootstrap >/dev/null || { echo "skipped: no debootstrap (apt-get install debootstrap)"; exit 77; }
folder=${1:-}
if [ -z "$folder" ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
# In namespaces of their own: mounts and processes end with this script.
unshare --mount --pid --fork --mount-proc /usr/bin/python3 "$root/tests/deploy/dockerfile_build.py" "$root" "$folder" ${2:+"$2"}
